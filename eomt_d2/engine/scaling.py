"""A config for another number of processes than it was written for."""

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer

__all__ = ["scale_to_world_size"]


def scale_to_world_size(cfg: CfgNode, num_workers: int) -> CfgNode:
    """Detectron2's scaling by SOLVER.REFERENCE_WORLD_SIZE, for this package's keys too.

    Both warm-ups and annealing windows in iterations shrink or grow with MAX_ITER.

    Args:
        cfg: is not changed.
        num_workers: number of processes.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
    if scaled is cfg:
        return cfg
    scale = num_workers / reference
    frozen = scaled.is_frozen()
    scaled.defrost()
    for key in ("WARMUP_ITERS_HEAD", "WARMUP_ITERS_BACKBONE"):
        scaled.SOLVER[key] = round(cfg.SOLVER[key] / scale)
    annealing = scaled.MODEL.MASK_FORMER.MASK_ANNEALING
    if annealing.SCHEDULE == "iterations":
        annealing.STARTS = [round(start / scale) for start in annealing.STARTS]
        annealing.ENDS = [round(end / scale) for end in annealing.ENDS]
    if frozen:
        scaled.freeze()
    return scaled
