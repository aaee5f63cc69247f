"""Mask2Former (arXiv 2112.01527), the baseline of EoMT: a backbone with maps at several strides, a
pixel decoder, and a transformer decoder whose queries attend within their masks."""

from collections.abc import Mapping

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import Tensor, nn

from eomt_d2.errors import UserError

from .backbone.feature_pyramid import ViTFeaturePyramid
from .backbone.vit import ViT
from .mask_classification import MaskClassificationModel
from .masked_attention import MaskAnnealing
from .pixel_decoder import MSDeformAttnPixelDecoder, PixelProjection
from .structures import MaskPrediction
from .transformer_decoder import MaskedTransformerDecoder

__all__ = ["MASK_FEATURE", "Mask2Former"]

# The map at stride 4, which queries are compared with.
MASK_FEATURE = "res2"


@META_ARCH_REGISTRY.register()
class Mask2Former(MaskClassificationModel):
    """Backbone, pixel decoder and transformer decoder of n layers; n + 1 times they predict
    classes and masks.

    Over a plain ViT ``from_config`` puts a :class:`ViTFeaturePyramid` with just the maps that are
    read; over any other backbone of Detectron2 the maps must be there.

    Args:
        backbone: gives the maps that the pixel decoder reads, and no others.
        pixel_decoder: maps to mask features and key maps, from coarse to fine.
        transformer_decoder: these to predictions.
        anneal_masks: anneal the masked attention while training. False masks throughout, as
            published.
        kwargs: see :class:`MaskClassificationModel`.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        pixel_decoder: MSDeformAttnPixelDecoder | PixelProjection,
        transformer_decoder: MaskedTransformerDecoder,
        anneal_masks: bool = False,
        **kwargs,
    ):
        # A hierarchical backbone of Detectron2 does not say what it needs: its largest stride.
        super().__init__(size_divisibility=backbone.size_divisibility or 32, **kwargs)
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.decoder = transformer_decoder
        self.mask_annealing = MaskAnnealing(len(transformer_decoder.layers), anneal_masks)

    @classmethod
    def from_config(cls, cfg) -> dict:
        head, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        keys = list(head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES)
        backbone = build_backbone(cfg)
        if isinstance(backbone, ViT):
            backbone = ViTFeaturePyramid(vit=backbone, out_features=[MASK_FEATURE, *keys])
        input_shape = backbone.output_shape()
        _check_features(input_shape, keys)
        decoder = MaskedTransformerDecoder(
            num_classes=head.NUM_CLASSES,
            num_queries=node.NUM_OBJECT_QUERIES,
            num_levels=len(keys),
            dim=node.HIDDEN_DIM,
            num_layers=node.DEC_LAYERS - 1,
            num_heads=node.NHEADS,
            ffn_dim=node.DIM_FEEDFORWARD,
        )
        return {
            **super().from_config(cfg),
            "backbone": backbone,
            "pixel_decoder": _build_pixel_decoder(cfg, input_shape, keys),
            "transformer_decoder": decoder,
            "anneal_masks": cfg.MODEL.MASK2FORMER.ANNEAL_MASKS,
        }

    def predict(self, images: Tensor, all_predictions: bool = False) -> list[MaskPrediction]:
        """Normalised images (B, 3, H, W) to predictions, the last one final."""
        mask_features, maps = self.pixel_decoder(self.backbone(images))
        return self.decoder(mask_features, maps, self.mask_annealing, all_predictions)


def _build_pixel_decoder(cfg, input_shape: Mapping[str, ShapeSpec], keys: list[str]) -> nn.Module:
    head, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    maps = dict(mask_feature=MASK_FEATURE, key_features=keys, dim=node.HIDDEN_DIM)
    if head.PIXEL_DECODER_NAME == "none":
        return PixelProjection(input_shape, **maps)
    if head.PIXEL_DECODER_NAME == "MSDeformAttnPixelDecoder":
        return MSDeformAttnPixelDecoder(
            input_shape,
            num_layers=head.TRANSFORMER_ENC_LAYERS,
            num_heads=head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
            num_points=head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            ffn_dim=4 * node.HIDDEN_DIM,  # 1024 at the published width
            **maps,
        )
    raise UserError(
        f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME is {head.PIXEL_DECODER_NAME!r}; it must be "
        f"'MSDeformAttnPixelDecoder' or 'none'."
    )


def _check_features(input_shape: Mapping[str, ShapeSpec], keys: list[str]) -> None:
    """The backbone gives what is read and nothing else: DDP allows no parameters without use."""
    given, read = set(input_shape), {MASK_FEATURE, *keys}
    if given != read or not keys:
        raise UserError(
            f"Mask2Former compares queries with the map {MASK_FEATURE!r} and attends to those of "
            f"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES {keys}, but the "
            f"backbone gives {sorted(given)}; it must give exactly these (a ResNet by "
            f"MODEL.RESNETS.OUT_FEATURES)."
        )
