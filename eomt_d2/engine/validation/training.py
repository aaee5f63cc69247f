"""Schedule, batch, precision, device, and the metric of the best checkpoint."""

from collections.abc import Iterator

import torch
from detectron2.config import CfgNode

__all__ = [
    "batch_problems",
    "best_metric_problems",
    "device_problems",
    "precision_problems",
    "schedule_problems",
]


def schedule_problems(cfg: CfgNode) -> Iterator[str]:
    """Warm-ups that leave nothing of the training."""
    solver = cfg.SOLVER
    warmup = solver.WARMUP_ITERS_HEAD + solver.WARMUP_ITERS_BACKBONE
    if solver.LR_SCHEDULER_NAME == "TwoStageWarmupPolyLR" and solver.MAX_ITER <= warmup:
        yield (
            f"SOLVER.MAX_ITER is {solver.MAX_ITER}, which leaves nothing after the warm-ups "
            f"SOLVER.WARMUP_ITERS_HEAD {solver.WARMUP_ITERS_HEAD} and WARMUP_ITERS_BACKBONE "
            f"{solver.WARMUP_ITERS_BACKBONE}; train longer than {warmup} or shorten them."
        )


def batch_problems(cfg: CfgNode) -> Iterator[str]:
    """Batches that cannot be cut into equal parts."""
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


def precision_problems(cfg: CfgNode) -> Iterator[str]:
    """Precisions that the device does not have."""
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.PRECISION == "float16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        yield (
            f"SOLVER.AMP.PRECISION is 'float16', which needs a GPU, but MODEL.DEVICE is "
            f"{cfg.MODEL.DEVICE!r}; use 'bfloat16' or set SOLVER.AMP.ENABLED False."
        )
    if cfg.TEST.PRECISION == "float16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        yield (
            f"TEST.PRECISION is 'float16', which needs a GPU, but MODEL.DEVICE is "
            f"{cfg.MODEL.DEVICE!r}; use 'bfloat16' or 'float32'."
        )


def device_problems(cfg: CfgNode) -> Iterator[str]:
    """Devices that PyTorch does not know."""
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        yield f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; it must be 'cuda', 'cuda:N' or 'cpu'."


def best_metric_problems(cfg: CfgNode) -> Iterator[str]:
    """A metric of the best checkpoint that no evaluation gives."""
    test = cfg.TEST
    if not test.BEST_METRIC:
        return
    if "/" not in test.BEST_METRIC:
        yield (
            f"TEST.BEST_METRIC is {test.BEST_METRIC!r}; it must be a task and a metric, as in "
            "'panoptic_seg/PQ'."
        )
    if test.EVAL_PERIOD < 1:
        yield (
            f"TEST.BEST_METRIC is {test.BEST_METRIC!r}, but TEST.EVAL_PERIOD {test.EVAL_PERIOD} "
            "evaluates only the end; set a period in iterations."
        )
