"""ViT-Adapter (arXiv 2205.08534): a plain ViT that exchanges information with a convolutional
pyramid beside it, and gives maps at strides 4, 8, 16 and 32.

Shapes: B images, C channels, (h, w) grid of the ViT with N patches; M prior tokens, the pixels of
the strides 8, 16 and 32 one map after the other.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from ..deformable_attention import MSDeformAttn, pixel_centers
from .feature_pyramid import PYRAMID_STRIDES
from .spatial_prior import SpatialPrior, build_norm
from .vit import ViT

__all__ = ["ViTAdapter"]

NUM_INTERACTIONS = 4
NORM_EPS = 1e-6

Shapes = Sequence[tuple[int, int]]


class Injector(nn.Module):
    """The ViT's patches query the prior; what they read is added, weighted by a factor per channel
    that starts at 0, so a fresh adapter leaves the ViT as it was (section 3.3)."""

    def __init__(self, dim: int, **attention):
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.feat_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = MSDeformAttn(dim, num_levels=3, **attention)
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, patches: Tensor, centers: Tensor, prior: Tensor, shapes: Shapes) -> Tensor:
        """Patches (B, N, C) with centres (N, 2) read the prior (B, M, C), maps of ``shapes``."""
        read = self.attn(self.query_norm(patches), centers, self.feat_norm(prior), shapes)
        return patches + self.gamma * read


class ConvFFN(nn.Module):
    """Linear to a quarter of the width, one depthwise 3x3 for all three maps, GELU, linear."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = dim // 4
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor, shapes: Shapes) -> Tensor:
        """Tokens (B, M, C) of maps of ``shapes`` to the same."""
        maps = _to_maps(self.fc1(tokens), shapes)
        filtered = torch.cat([self.dwconv(x).flatten(2) for x in maps], dim=2)
        return self.fc2(F.gelu(filtered.transpose(1, 2)))


class Extractor(nn.Module):
    """The prior queries the ViT's patches; then a convolutional feed-forward network (section
    3.4). Both are residual."""

    def __init__(self, dim: int, **attention):
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.feat_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = MSDeformAttn(dim, num_levels=1, **attention)
        self.ffn_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.ffn = ConvFFN(dim)

    def forward(
        self,
        prior: Tensor,
        centers: Tensor,
        shapes: Shapes,
        patches: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        """The prior (B, M, C), maps of ``shapes`` with pixel centres (M, 2), reads patches
        (B, N, C) of a grid."""
        read = self.attn(self.query_norm(prior), centers, self.feat_norm(patches), [grid])
        prior = prior + read
        return prior + self.ffn(self.ffn_norm(prior), shapes)


@BACKBONE_REGISTRY.register()
class ViTAdapter(Backbone):
    """ViT and adapter. Class and register tokens pass through the ViT's blocks but take no part in
    the exchange.

    Args:
        vit: the ViT, C channels, at least four blocks, without its final norm, which nothing
            reads here.
        norm: of the convolutions and outputs: "SyncBN", "BN", "GN" or "LN", see
            :func:`~.spatial_prior.build_norm`.
        num_heads: of deformable attention; 0 means as many as the ViT has.
        num_points: of deformable attention, per head and map.
        value_ratio: channels of deformable attention's values over C.
    """

    @configurable
    def __init__(
        self,
        *,
        vit: ViT,
        norm: str = "SyncBN",
        num_heads: int = 0,
        num_points: int = 4,
        value_ratio: float = 0.5,
    ):
        super().__init__()
        dim, depth = vit.embed_dim, len(vit.blocks)
        if depth < NUM_INTERACTIONS:
            raise ValueError(
                f"A ViT of {depth} blocks is too short for an adapter: MODEL.VIT.DEPTH must be at "
                f"least {NUM_INTERACTIONS}."
            )
        if isinstance(vit.norm, nn.LayerNorm):
            raise ValueError("The ViT inside an adapter must be made with final_norm=False.")
        attention = dict(
            num_heads=num_heads or vit.blocks[0].attn.num_heads,
            num_points=num_points,
            value_ratio=value_ratio,
        )
        self.vit = vit
        # Blocks of each group: equal runs, as far as the depth can be divided.
        bounds = [i * depth // NUM_INTERACTIONS for i in range(NUM_INTERACTIONS + 1)]
        self._groups = [range(*pair) for pair in zip(bounds, bounds[1:], strict=False)]
        self.spatial_prior = SpatialPrior(dim, norm)
        self.level_embed = nn.Parameter(torch.empty(3, dim))
        self.injectors = nn.ModuleList(Injector(dim, **attention) for _ in range(NUM_INTERACTIONS))
        # Two more follow the last group.
        self.extractors = nn.ModuleList(
            Extractor(dim, **attention) for _ in range(NUM_INTERACTIONS + 2)
        )
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.norms = nn.ModuleList(build_norm(norm, dim) for _ in PYRAMID_STRIDES)
        self._initialise()

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec | None = None) -> dict:
        node, norm = cfg.MODEL.VIT_ADAPTER, cfg.MODEL.VIT_ADAPTER.NORM
        if norm == "SyncBN" and not cfg.MODEL.DEVICE.startswith("cuda"):
            norm = "BN"  # DistributedDataParallel refuses the other without GPUs
        return {
            "vit": ViT(**ViT.from_config(cfg, input_shape), final_norm=False),
            "norm": norm,
            "num_heads": node.NUM_HEADS,
            "num_points": node.NUM_POINTS,
            "value_ratio": node.VALUE_RATIO,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W) to {"res2", ..., "res5"}: maps
        (B, C, H / stride, W / stride). H and W are multiples of :attr:`size_divisibility`.

        Raises:
            ValueError: if they are not.
        """
        _check_size(*images.shape[-2:], self.size_divisibility)
        grid = self.vit.grid_size(*images.shape[-2:])
        fine, *coarse = self.spatial_prior(images)
        shapes = [(x.shape[-2], x.shape[-1]) for x in coarse]
        prior = torch.cat(
            [
                x.flatten(2).transpose(1, 2) + level
                for x, level in zip(coarse, self.level_embed, strict=True)
            ],
            dim=1,
        )
        prior, vit_maps = self._interact(images, grid, prior, shapes)
        maps = _to_maps(prior, shapes)
        maps = [fine + self.up(maps[0]), *maps]
        outputs = {}
        for name, norm, x, vit_map in zip(PYRAMID_STRIDES, self.norms, maps, vit_maps, strict=True):
            resized = F.interpolate(
                vit_map, size=x.shape[-2:], mode="bilinear", align_corners=False
            )
            outputs[name] = norm(x + resized)
        return outputs

    def _interact(
        self, images: Tensor, grid: tuple[int, int], prior: Tensor, shapes: Shapes
    ) -> tuple[Tensor, list[Tensor]]:
        """The prior after all exchanges, and the ViT's map (B, C, h, w) after each group."""
        vit, num_prefix = self.vit, self.vit.num_prefix_tokens
        patch_centers = pixel_centers([grid], images.device)
        prior_centers = pixel_centers(shapes, images.device)
        tokens, rotary = vit.embed(images)
        maps = []
        for i, (group, injector) in enumerate(zip(self._groups, self.injectors, strict=True)):
            prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
            patches = injector(patches, patch_centers, prior, shapes)
            tokens = torch.cat((prefix, patches), dim=1)
            for k in group:
                tokens = vit.run_block(vit.blocks[k], tokens, rotary)
            last = i == NUM_INTERACTIONS - 1
            for extractor in self.extractors[i:] if last else self.extractors[i : i + 1]:
                patches = tokens[:, num_prefix:]
                prior = extractor(prior, prior_centers, shapes, patches, grid)
            maps.append(vit.patch_map(tokens, grid))
        return prior, maps

    def output_shape(self) -> dict[str, ShapeSpec]:
        """The four maps."""
        return {
            name: ShapeSpec(channels=self.vit.embed_dim, stride=stride)
            for name, stride in PYRAMID_STRIDES.items()
        }

    @property
    def size_divisibility(self) -> int:
        """Sides of the input are multiples of this: of the largest stride and of a patch."""
        return math.lcm(32, self.vit.patch_size)

    def _initialise(self) -> None:
        """Linear layers as in a ViT, convolutions as in a ResNet; deformable attention has its own
        initialisation."""
        nn.init.normal_(self.level_embed)
        for module in (*self.spatial_prior.modules(), self.up):
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for extractor in self.extractors:
            for linear in (extractor.ffn.fc1, extractor.ffn.fc2):
                nn.init.trunc_normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)


def _to_maps(tokens: Tensor, shapes: Shapes) -> list[Tensor]:
    """Tokens (B, M, C) of several maps to one (B, C, h, w) each."""
    levels = tokens.transpose(1, 2).split([h * w for h, w in shapes], dim=2)
    return [x.unflatten(2, shape) for x, shape in zip(levels, shapes, strict=True)]


def _check_size(height: int, width: int, step: int) -> None:
    if height % step or width % step:
        raise ValueError(
            f"ViT-Adapter cannot take an image of {height} x {width} pixels: pad it to multiples "
            f"of {step}."
        )
