"""Maps at several strides from the last layer of a plain ViT, without an adapter."""

import math
from collections.abc import Sequence

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from eomt_d2.errors import UserError

from ..upscale import DownscaleBlock, UpscaleBlock
from .vit import ViT

__all__ = ["PYRAMID_STRIDES", "ViTFeaturePyramid"]

# Detectron2's names of the stages of a hierarchical backbone, and their strides in pixels.
PYRAMID_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


@BACKBONE_REGISTRY.register()
class ViTFeaturePyramid(Backbone):
    """A ViT and, for every wanted stride, blocks of their own that double or halve its last map
    (EoMT, arXiv 2503.19108, section 3.1: Mask2Former without ViT-Adapter).

    With patches of 16 pixels, strides 4, 8, 16 and 32 take two upscale blocks, one, none, and one
    downscale block. Other patch sizes are taken for the nearest power of two.

    Args:
        vit: the ViT, C channels.
        out_features: which of "res2" to "res5" to make. What nothing reads must not be made: its
            parameters would get no gradient.
    """

    @configurable
    def __init__(self, *, vit: ViT, out_features: Sequence[str] = tuple(PYRAMID_STRIDES)):
        super().__init__()
        unknown = [name for name in out_features if name not in PYRAMID_STRIDES]
        if unknown or not out_features:
            raise UserError(
                f"MODEL.VIT_PYRAMID.OUT_FEATURES is {list(out_features)}; it must name some of "
                f"{', '.join(PYRAMID_STRIDES)}."
            )
        self.vit = vit
        self._num_halvings = 0
        stages = {}
        for name in out_features:
            # Positive: how often the patch grid is doubled.
            doublings = round(math.log2(vit.patch_size)) - int(math.log2(PYRAMID_STRIDES[name]))
            block = UpscaleBlock if doublings > 0 else DownscaleBlock
            stages[name] = nn.Sequential(*[block(vit.embed_dim) for _ in range(abs(doublings))])
            self._num_halvings = max(self._num_halvings, -doublings)
        self.stages = nn.ModuleDict(stages)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec | None = None) -> dict:
        vit = ViT(cfg, input_shape)
        return {"vit": vit, "out_features": cfg.MODEL.VIT_PYRAMID.OUT_FEATURES}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W) to a map (B, C, H / stride, W / stride) by name. H and W
        are multiples of :attr:`size_divisibility`."""
        patches = self.vit(images)["vit"]
        return {name: stage(patches) for name, stage in self.stages.items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """The maps that are made, with their strides."""
        return {
            name: ShapeSpec(channels=self.vit.embed_dim, stride=PYRAMID_STRIDES[name])
            for name in self.stages
        }

    @property
    def size_divisibility(self) -> int:
        """Sides of the input are multiples of this, so that every halving is exact."""
        return self.vit.patch_size * 2**self._num_halvings
