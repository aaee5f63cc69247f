"""Sizes of images, and the ViT that takes them."""

from collections.abc import Iterator

from detectron2.config import CfgNode

from eomt_d2.modeling.backbone.presets import PRESETS

from .values import nearest, outside_choices, value_of

__all__ = ["input_problems"]

# "" is the preset's.
VIT_CHOICES = {
    "MODEL.VIT.FFN": ("", "mlp", "swiglu", "swiglu_subln"),
    "MODEL.VIT.POSITION": ("", "learned", "rotary", "eva02"),
}
# Backbones that hold the ViT of MODEL.VIT.
VIT_BACKBONES = ("ViT", "ViTAdapter", "ViTFeaturePyramid")


def input_problems(cfg: CfgNode) -> Iterator[str]:
    """Sizes that contradict each other, and a ViT that does not fit them."""
    source = cfg.INPUT
    size, mode = source.IMAGE_SIZE, source.TEST_MODE
    if mode == "square" and not source.MIN_SIZE_TEST == source.MAX_SIZE_TEST == size:
        yield (
            f"INPUT.TEST_MODE is 'square' with INPUT.IMAGE_SIZE {size}, but INPUT.MIN_SIZE_TEST is "
            f"{source.MIN_SIZE_TEST} and INPUT.MAX_SIZE_TEST {source.MAX_SIZE_TEST}; both must be "
            f"{size}."
        )
    if mode == "window" and (source.MIN_SIZE_TEST != size or source.MAX_SIZE_TEST <= size):
        yield (
            f"INPUT.TEST_MODE is 'window' with INPUT.IMAGE_SIZE {size}, but INPUT.MIN_SIZE_TEST is "
            f"{source.MIN_SIZE_TEST} and INPUT.MAX_SIZE_TEST {source.MAX_SIZE_TEST}; the first "
            f"must be {size} and the second larger than any long side."
        )
    if not 0 < source.MIN_SCALE <= source.MAX_SCALE:
        yield (
            f"INPUT.MIN_SCALE is {source.MIN_SCALE} and INPUT.MAX_SCALE {source.MAX_SCALE}; they "
            f"must be positive and in this order."
        )
    if cfg.MODEL.META_ARCHITECTURE == "EoMT" and cfg.MODEL.BACKBONE.NAME != "ViT":
        yield (
            f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME!r}, but EoMT puts its queries into a "
            "plain ViT; it must be 'ViT'."
        )
    if cfg.MODEL.BACKBONE.NAME in VIT_BACKBONES:
        yield from outside_choices(cfg, VIT_CHOICES)
        yield from _preset_problems(cfg)
        yield from _patch_problems(cfg)
        yield from _rotary_problems(cfg)


def _preset_problems(cfg: CfgNode) -> Iterator[str]:
    vit = cfg.MODEL.VIT
    if vit.NAME and vit.NAME not in PRESETS:
        yield (
            f"MODEL.VIT.NAME is {vit.NAME!r}, which is no preset{nearest(vit.NAME, list(PRESETS))} "
            f"(all: {', '.join(PRESETS)}; or '' to give every size)."
        )
        return
    preset = PRESETS.get(vit.NAME, {})
    sizes = {
        key: getattr(vit, key) or preset.get(key.lower(), 0)
        for key in ("EMBED_DIM", "DEPTH", "NUM_HEADS")
    }
    for key, size in sizes.items():
        if size < 1:
            without = " without a preset in MODEL.VIT.NAME" if not vit.NAME else ""
            yield f"MODEL.VIT.{key} is {getattr(vit, key)}; it must be at least 1{without}."
            return
    if sizes["EMBED_DIM"] % sizes["NUM_HEADS"]:
        yield (
            f"MODEL.VIT.EMBED_DIM is {sizes['EMBED_DIM']}; it must be a multiple of "
            f"MODEL.VIT.NUM_HEADS {sizes['NUM_HEADS']}."
        )
    if cfg.MODEL.META_ARCHITECTURE == "EoMT" and cfg.MODEL.EOMT.NUM_BLOCKS > sizes["DEPTH"]:
        yield (
            f"MODEL.EOMT.NUM_BLOCKS is {cfg.MODEL.EOMT.NUM_BLOCKS}, but the ViT has only "
            f"{sizes['DEPTH']} blocks (MODEL.VIT.DEPTH)."
        )


def _patch_problems(cfg: CfgNode) -> Iterator[str]:
    patch = cfg.MODEL.VIT.PATCH_SIZE
    if patch < 1:
        yield f"MODEL.VIT.PATCH_SIZE is {patch}; it must be at least 1."
        return
    keys = ["INPUT.IMAGE_SIZE", "INPUT.CROP_HEIGHT", "MODEL.VIT.IMG_SIZE"]
    if cfg.INPUT.TEST_MODE == "divisible":
        keys += ["INPUT.SIZE_DIVISIBILITY", "MODEL.MASK_FORMER.SIZE_DIVISIBILITY"]
    for key in keys:
        if value_of(cfg, key) > 0 and value_of(cfg, key) % patch:
            yield (
                f"{key} is {value_of(cfg, key)}; it must be a multiple of MODEL.VIT.PATCH_SIZE "
                f"{patch}."
            )


def _rotary_problems(cfg: CfgNode) -> Iterator[str]:
    vit = cfg.MODEL.VIT
    preset = PRESETS.get(vit.NAME, {})
    dim = vit.EMBED_DIM or preset.get("embed_dim", 0)
    heads = vit.NUM_HEADS or preset.get("num_heads", 0)
    rotary = (vit.POSITION or preset.get("position")) in ("rotary", "eva02")
    if rotary and heads > 0 and dim % (4 * heads):
        yield (
            f"MODEL.VIT.EMBED_DIM is {dim} and NUM_HEADS {heads}; with rotary positions the first "
            "must be a multiple of 4 times the second."
        )
