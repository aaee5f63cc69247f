"""Checks of config values that would otherwise fail late, or quietly train something else."""

import math
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from eomt_d2.errors import UserError
from eomt_d2.evaluation.average_precision import COCO_EVALUATORS
from eomt_d2.modeling import MaskClassificationModel
from eomt_d2.modeling.compilation import COMPILE_MODES
from eomt_d2.modeling.mask_classification import TEST_PRECISIONS

from .released_mask2former import released_mask2former_problems
from .validation.inputs import input_problems
from .validation.masks import annealing_problems, decoder_problems, task_problems
from .validation.training import (
    batch_problems,
    best_metric_problems,
    device_problems,
    precision_problems,
    schedule_problems,
)
from .validation.values import empty_values, nearest, outside_choices, outside_ranges, value_of

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
    "TEST.COCO_EVALUATOR": COCO_EVALUATORS,
}
MASK_CLASSIFICATION_CHOICES = {
    "INPUT.TEST_MODE": ("square", "divisible", "window"),
    "TEST.SEMANTIC_OUTPUT": ("scores", "labels"),
    "TEST.PRECISION": tuple(TEST_PRECISIONS),
    "MODEL.COMPILE": COMPILE_MODES,
    "MODEL.MASK_FORMER.LOSS_NORMALIZER": ("matched", "segments"),
    "MODEL.MASK_FORMER.MASK_ANNEALING.SCHEDULE": ("staggered", "fractions", "iterations", "none"),
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": ("MSDeformAttnPixelDecoder", "none"),
}
# (key, smallest value, largest value)
RANGES = (
    ("SOLVER.BASE_LR", 0, None),
    ("SOLVER.MAX_ITER", 1, None),
    ("SOLVER.IMS_PER_BATCH", 1, None),
    ("SOLVER.ACCUMULATION_STEPS", 1, None),
    ("SOLVER.CHECKPOINT_PERIOD", 1, None),
    ("SOLVER.CHECKPOINT_KEEP", 0, None),
    ("SOLVER.MAX_SKIPPED_STEPS", 1, None),
    ("SOLVER.REFERENCE_WORLD_SIZE", 0, None),
    ("SOLVER.WARMUP_ITERS_HEAD", 0, None),
    ("SOLVER.WARMUP_ITERS_BACKBONE", 0, None),
    ("SOLVER.POLY_LR_POWER", 0, None),
    ("SOLVER.LAYER_DECAY", 0, 1),
    ("SOLVER.BACKBONE_MULTIPLIER", 0, None),
    ("SOLVER.WEIGHT_DECAY", 0, None),
    ("TEST.EVAL_PERIOD", 0, None),
    ("DATALOADER.NUM_WORKERS", 0, None),
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
    empty = list(empty_values(cfg))
    yield from empty
    if empty:
        return  # nothing can be compared with them
    unknown = list(_unknown_names(cfg))
    yield from unknown
    yield from outside_choices(cfg, CHOICES)
    yield from outside_ranges(cfg, RANGES)
    yield from schedule_problems(cfg)
    yield from batch_problems(cfg)
    yield from precision_problems(cfg)
    yield from device_problems(cfg)
    yield from best_metric_problems(cfg)
    yield from _pixel_problems(cfg)
    yield from _data_name_problems(cfg)
    if unknown or not is_mask_classification(cfg):
        return
    yield from outside_choices(cfg, MASK_CLASSIFICATION_CHOICES)
    yield from outside_ranges(cfg, MASK_CLASSIFICATION_RANGES)
    yield from input_problems(cfg)
    yield from task_problems(cfg)
    yield from annealing_problems(cfg)
    yield from released_mask2former_problems(cfg)
    if cfg.MODEL.META_ARCHITECTURE == "Mask2Former":
        yield from decoder_problems(cfg)


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
        if value_of(cfg, key) not in names:
            near = nearest(value_of(cfg, key), names)
            yield (f"{key} is {value_of(cfg, key)!r}; it must be one of {', '.join(names)}{near}.")


def _pixel_problems(cfg: CfgNode) -> Iterator[str]:
    for key, low in (("MODEL.PIXEL_MEAN", -math.inf), ("MODEL.PIXEL_STD", 0)):
        values = value_of(cfg, key)
        numbers = all(isinstance(value, int | float) for value in values)
        if not numbers or not all(low < value < math.inf for value in values):
            kind = "positive numbers" if low == 0 else "numbers"
            yield f"{key} is {values}; it must be a list of {kind}, one for each channel."


def _data_name_problems(cfg: CfgNode) -> Iterator[str]:
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        if not all(isinstance(name, str) for name in value_of(cfg, key)):
            yield f"{key} is {value_of(cfg, key)}; it must be the names of data sets."
