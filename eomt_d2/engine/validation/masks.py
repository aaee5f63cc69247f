"""Tasks, mask annealing and Mask2Former's decoders."""

import math
from collections.abc import Iterator

from detectron2.config import CfgNode

from eomt_d2.modeling.backbone.presets import PRESETS

__all__ = ["annealing_problems", "decoder_problems", "task_problems"]


def task_problems(cfg: CfgNode) -> Iterator[str]:
    """Tasks that are all off, or that a test mode cannot give."""
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


def annealing_problems(cfg: CfgNode) -> Iterator[str]:
    """Windows that are not those of the schedule, or lie the wrong way."""
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


def decoder_problems(cfg: CfgNode) -> Iterator[str]:
    """Sizes of Mask2Former's decoders that do not fit each other."""
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
