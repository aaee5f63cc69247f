"""Schedule, batch, precision and device."""

from collections.abc import Iterator

import torch
from detectron2.config import CfgNode

__all__ = ["batch_problems", "device_problems", "precision_problems", "schedule_problems"]


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


def device_problems(cfg: CfgNode) -> Iterator[str]:
    """Devices that PyTorch does not know."""
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        yield f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; it must be 'cuda', 'cuda:N' or 'cpu'."
