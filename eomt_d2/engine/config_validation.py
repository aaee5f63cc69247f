"""Checks of config values that would otherwise fail late, or quietly train something else."""

import math
from collections.abc import Iterator, Mapping

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from eomt_d2.errors import UserError
from eomt_d2.modeling import MaskClassificationModel
from eomt_d2.modeling.backbone.presets import PRESETS

from .released_mask2former import released_mask2former_problems

__all__ = ["config_problems", "is_mask_classification", "validate_config"]

CHOICES = {
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.EMPTY_SAMPLES": ("redraw", "keep"),
    "INPUT.EMPTIED_SEGMENTS": ("drop", "keep"),
    "INPUT.SCALE_FIT": ("long", "short"),
    "INPUT.MASK_FORMAT": ("bitmask", "tensor", "polygon"),
    "DATALOADER.ON_BAD_SAMPLE": ("raise", "skip"),
    "SOLVER.OPTIMIZER": ("ADAMW", "SGD"),
    "SOLVER.AMP.PRECISION": ("float16", "bfloat16"),
}
MASK_CLASSIFICATION_CHOICES = {
    "INPUT.TEST_MODE": ("square", "divisible", "window"),
    "TEST.SEMANTIC_OUTPUT": ("scores", "labels"),
    "MODEL.MASK_FORMER.LOSS_NORMALIZER": ("matched", "segments"),
    "MODEL.MASK_FORMER.MASK_ANNEALING.SCHEDULE": ("staggered", "fractions", "iterations", "none"),
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": ("MSDeformAttnPixelDecoder", "none"),
}
# "" is the preset's.
VIT_CHOICES = {
    "MODEL.VIT.FFN": ("", "mlp", "swiglu", "swiglu_subln"),
    "MODEL.VIT.POSITION": ("", "learned", "rotary", "eva02"),
}
# (key, smallest value, largest value)
RANGES = (
    ("SOLVER.BASE_LR", 0, None),
    ("SOLVER.MAX_ITER", 1, None),
    ("SOLVER.IMS_PER_BATCH", 1, None),
    ("SOLVER.ACCUMULATION_STEPS", 1, None),
    ("SOLVER.REFERENCE_WORLD_SIZE", 0, None),
    ("SOLVER.WARMUP_ITERS_HEAD", 0, None),
    ("SOLVER.WARMUP_ITERS_BACKBONE", 0, None),
    ("SOLVER.POLY_LR_POWER", 0, None),
    ("SOLVER.LAYER_DECAY", 0, 1),
    ("SOLVER.BACKBONE_MULTIPLIER", 0, None),
    ("INPUT.IMAGE_SIZE", 1, None),
    ("INPUT.PAD_VALUE", 0, 255),
    ("INPUT.CROP_HEIGHT", 0, None),
)
MASK_CLASSIFICATION_RANGES = (
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 1, None),
    ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 1, None),
    ("MODEL.MASK_FORMER.CLASS_WEIGHT", 0, None),
    ("MODEL.MASK_FORMER.COST_CLASS_WEIGHT", 0, None),
    ("MODEL.MASK_FORMER.MASK_WEIGHT", 0, None),
    ("MODEL.MASK_FORMER.DICE_WEIGHT", 0, None),
    ("MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", 0, None),
    ("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 1, None),
    ("MODEL.MASK_FORMER.OVERSAMPLE_RATIO", 1, None),
    ("MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", 0, 1),
    ("MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0, 1),
    ("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 0, 1),
    ("MODEL.MASK_FORMER.MASK_ANNEALING.POWER", 0, None),
    ("MODEL.EOMT.NUM_BLOCKS", 0, None),
    ("MODEL.MASK_FORMER.NHEADS", 1, None),
    ("MODEL.MASK_FORMER.DIM_FEEDFORWARD", 1, None),
    ("MODEL.MASK_FORMER.DEC_LAYERS", 2, None),
    ("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1, None),
    ("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS", 1, None),
    ("MODEL.VIT_ADAPTER.NUM_HEADS", 0, None),
    ("MODEL.VIT_ADAPTER.NUM_POINTS", 1, None),
)
# Backbones that hold the ViT of MODEL.VIT.
VIT_BACKBONES = ("ViT", "ViTAdapter", "ViTFeaturePyramid")


def validate_config(cfg: CfgNode) -> None:
    """Check a config.

    Raises:
        UserError: with every sentence of :func:`config_problems`, one per line.
    """
    problems = list(config_problems(cfg))
    if problems:
        raise UserError("\n".join(problems))


def config_problems(cfg: CfgNode) -> Iterator[str]:
    """What is unknown or contradictory in a config: sentences that name key, value and choice.

    Keys that only mask classification reads are checked only for such models, so that any other
    architecture of Detectron2 can be trained too.
    """
    unknown = list(_unknown_names(cfg))
    yield from unknown
    yield from _outside_choices(cfg, CHOICES)
    yield from _outside_ranges(cfg, RANGES)
    yield from _schedule_problems(cfg)
    yield from _batch_problems(cfg)
    yield from _precision_problems(cfg)
    if unknown or not is_mask_classification(cfg):
        return
    yield from _outside_choices(cfg, MASK_CLASSIFICATION_CHOICES)
    yield from _outside_ranges(cfg, MASK_CLASSIFICATION_RANGES)
    yield from _input_problems(cfg)
    yield from _task_problems(cfg)
    yield from _annealing_problems(cfg)
    yield from released_mask2former_problems(cfg)
    if cfg.MODEL.META_ARCHITECTURE == "Mask2Former":
        yield from _decoder_problems(cfg)


def _get(cfg: CfgNode, key: str):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def is_mask_classification(cfg: CfgNode) -> bool:
    """Whether META_ARCHITECTURE names a model that classifies masks."""
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    return isinstance(model, type) and issubclass(model, MaskClassificationModel)


def _unknown_names(cfg: CfgNode) -> Iterator[str]:
    for key, registry in (
        ("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY),
    ):
        names = [name for name, _ in registry]
        if _get(cfg, key) not in names:
            yield f"{key} is {_get(cfg, key)!r}; it must be one of {', '.join(names)}."


def _outside_choices(cfg: CfgNode, choices: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for key, allowed in choices.items():
        if _get(cfg, key) not in allowed:
            yield f"{key} is {_get(cfg, key)!r}; it must be {_either(allowed)}."


def _outside_ranges(cfg: CfgNode, ranges: tuple) -> Iterator[str]:
    for key, low, high in ranges:
        value = _get(cfg, key)
        if value < low or (high is not None and value > high):
            allowed = f"at least {low}" if high is None else f"between {low} and {high}"
            yield f"{key} is {value}; it must be {allowed}."


def _schedule_problems(cfg: CfgNode) -> Iterator[str]:
    solver = cfg.SOLVER
    warmup = solver.WARMUP_ITERS_HEAD + solver.WARMUP_ITERS_BACKBONE
    if solver.LR_SCHEDULER_NAME == "TwoStageWarmupPolyLR" and solver.MAX_ITER <= warmup:
        yield (
            f"SOLVER.MAX_ITER is {solver.MAX_ITER}, which leaves nothing after the warm-ups "
            f"SOLVER.WARMUP_ITERS_HEAD {solver.WARMUP_ITERS_HEAD} and WARMUP_ITERS_BACKBONE "
            f"{solver.WARMUP_ITERS_BACKBONE}; train longer than {warmup} or shorten them."
        )


def _batch_problems(cfg: CfgNode) -> Iterator[str]:
    batch, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference > 0 and batch % reference:
        yield (
            f"SOLVER.REFERENCE_WORLD_SIZE is {reference}, which does not divide "
            f"SOLVER.IMS_PER_BATCH {batch}; give the number of processes the batch is meant for, "
            "or 0 to leave the batch as it is."
        )
        return
    steps = cfg.SOLVER.ACCUMULATION_STEPS
    share = batch // max(reference, 1)
    if steps > 0 and share % steps:
        of_process = f" (of which a process has {share})" if reference > 1 else ""
        yield (
            f"SOLVER.ACCUMULATION_STEPS is {steps}, which does not divide SOLVER.IMS_PER_BATCH "
            f"{batch}{of_process}; the batch is cut into that many equal parts."
        )


def _precision_problems(cfg: CfgNode) -> Iterator[str]:
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.PRECISION == "float16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        yield (
            f"SOLVER.AMP.PRECISION is 'float16', which needs a GPU, but MODEL.DEVICE is "
            f"{cfg.MODEL.DEVICE!r}; use 'bfloat16' or set SOLVER.AMP.ENABLED False."
        )


def _input_problems(cfg: CfgNode) -> Iterator[str]:
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
        yield from _outside_choices(cfg, VIT_CHOICES)
        yield from _patch_problems(cfg)
        yield from _rotary_problems(cfg)


def _patch_problems(cfg: CfgNode) -> Iterator[str]:
    patch = cfg.MODEL.VIT.PATCH_SIZE
    if patch < 1:
        yield f"MODEL.VIT.PATCH_SIZE is {patch}; it must be at least 1."
        return
    keys = ["INPUT.IMAGE_SIZE", "MODEL.VIT.IMG_SIZE"]
    if cfg.INPUT.TEST_MODE == "divisible":
        keys += ["INPUT.SIZE_DIVISIBILITY", "MODEL.MASK_FORMER.SIZE_DIVISIBILITY"]
    for key in keys:
        if _get(cfg, key) > 0 and _get(cfg, key) % patch:
            yield (
                f"{key} is {_get(cfg, key)}; it must be a multiple of MODEL.VIT.PATCH_SIZE {patch}."
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


def _task_problems(cfg: CfgNode) -> Iterator[str]:
    test = cfg.MODEL.MASK_FORMER.TEST
    if not (test.PANOPTIC_ON or test.INSTANCE_ON or test.SEMANTIC_ON):
        yield (
            "MODEL.MASK_FORMER.TEST.PANOPTIC_ON, INSTANCE_ON and SEMANTIC_ON are all False; switch "
            "at least one on."
        )
    if cfg.INPUT.TEST_MODE == "window" and (test.PANOPTIC_ON or test.INSTANCE_ON):
        yield (
            "INPUT.TEST_MODE is 'window', which only semantic results can be merged from; set "
            "MODEL.MASK_FORMER.TEST.PANOPTIC_ON and INSTANCE_ON False, or use 'square'."
        )


def _annealing_problems(cfg: CfgNode) -> Iterator[str]:
    node = cfg.MODEL.MASK_FORMER.MASK_ANNEALING
    key = "MODEL.MASK_FORMER.MASK_ANNEALING"
    if node.SCHEDULE in ("staggered", "none"):
        if node.STARTS or node.ENDS:
            yield (
                f"{key}.SCHEDULE is {node.SCHEDULE!r}, but STARTS is {node.STARTS} and ENDS "
                f"{node.ENDS}; leave both empty or set SCHEDULE to 'fractions' or 'iterations'."
            )
    if node.SCHEDULE not in ("fractions", "iterations"):
        return
    num_blocks = _num_query_blocks(cfg)
    if len(node.STARTS) != len(node.ENDS) or len(node.STARTS) != (num_blocks or len(node.STARTS)):
        kind = "query blocks" if cfg.MODEL.META_ARCHITECTURE == "EoMT" else "masked layers"
        yield (
            f"{key}.STARTS has {len(node.STARTS)} entries and ENDS {len(node.ENDS)}; both need one "
            f"for each of the {num_blocks or ''} {kind}.".replace("  ", " ")
        )
    last = 1 if node.SCHEDULE == "fractions" else cfg.SOLVER.MAX_ITER
    for start, end in zip(node.STARTS, node.ENDS, strict=False):
        if not 0 <= start < end <= last:
            yield (
                f"{key} has a window from {start} to {end}; with SCHEDULE {node.SCHEDULE!r} a "
                f"window must start before it ends and lie between 0 and {last}."
            )


def _decoder_problems(cfg: CfgNode) -> Iterator[str]:
    node, head = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
    # Of the group normalisation and of the heads.
    step = math.lcm(32, max(1, node.NHEADS))
    if node.HIDDEN_DIM < 1 or node.HIDDEN_DIM % step:
        yield (
            f"MODEL.MASK_FORMER.HIDDEN_DIM is {node.HIDDEN_DIM}; it must be a multiple of {step} "
            f"(32, and MODEL.MASK_FORMER.NHEADS {node.NHEADS})."
        )
    key = "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"
    names = list(head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES)
    if not names or len(set(names)) < len(names):
        yield f"{key} is {names}; it must name at least one map, and each only once."
    if node.DEC_LAYERS - 1 < len(names):
        yield (
            f"MODEL.MASK_FORMER.DEC_LAYERS is {node.DEC_LAYERS}, which is {node.DEC_LAYERS - 1} "
            f"layers for the {len(names)} maps of {key}; it must be at least {len(names) + 1}."
        )


def _num_query_blocks(cfg: CfgNode) -> int:
    """Query blocks of an EoMT, decoder layers of a Mask2Former that is to be annealed, or 0 where
    the config does not say."""
    if cfg.MODEL.META_ARCHITECTURE == "Mask2Former" and cfg.MODEL.MASK2FORMER.ANNEAL_MASKS:
        return cfg.MODEL.MASK_FORMER.DEC_LAYERS - 1
    if cfg.MODEL.META_ARCHITECTURE != "EoMT":
        return 0
    preset = PRESETS.get(cfg.MODEL.VIT.NAME, {})
    return cfg.MODEL.EOMT.NUM_BLOCKS or preset.get("num_query_blocks", 0)


def _either(names: tuple[str, ...]) -> str:
    return " or ".join((", ".join(map(repr, names[:-1])), repr(names[-1])))
