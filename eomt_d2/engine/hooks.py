"""Hooks: mask annealing, and the logs of learning rates and of the process's memory."""

import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from eomt_d2.modeling.masked_attention import (
    MaskAnnealing,
    annealing_windows,
    masking_probability,
)

__all__ = ["HostMemoryLogger", "LearningRateLogger", "MaskAnnealingHook", "configured_windows"]

_MEMORY_FILE = Path("/proc/self/statm")


class LearningRateLogger(HookBase):
    """Writes each parameter group's rate of this iteration as ``lr/<name of the group>``.

    It must come before the hook that advances the schedule.
    """

    def after_step(self) -> None:
        for group in self.trainer.optimizer.param_groups:
            self.trainer.storage.put_scalar(
                f"lr/{group['name']}", group["lr"], smoothing_hint=False
            )


class HostMemoryLogger(HookBase):
    """Writes the memory that this process holds, every 20 iterations, as ``host_memory`` in MiB.

    Resident memory, without that of the loader's workers and without a GPU's (which Detectron2
    prints). A long training whose line is not flat has a leak. Only Linux tells.
    """

    PERIOD = 20

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.PERIOD == 0 and _MEMORY_FILE.is_file():
            pages = int(_MEMORY_FILE.read_text().split()[1])
            mebibytes = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            self.trainer.storage.put_scalar("host_memory", mebibytes, smoothing_hint=False)


class MaskAnnealingHook(HookBase):
    """Anneals the masked attention of each query block away (EoMT, section 3.3).

    Iteration t runs with :func:`~eomt_d2.modeling.masked_attention.masking_probability` at t. The
    model then gets the value of t + 1, so a checkpoint or an evaluation after the last iteration
    T - 1 has the final value, and a training that starts again from a finished checkpoint masks
    again. It must come before the hooks that save and evaluate. The probabilities used are written
    as ``mask_annealing/block_<i>``, counted from the first query block.

    Args:
        annealing: the model's probabilities, the same object inside and outside of DDP.
        windows: (start, end) in iterations for each query block; None keeps every mask.
        power: of the polynomial between start and end.
    """

    def __init__(
        self,
        annealing: MaskAnnealing,
        windows: Sequence[tuple[float, float]] | None,
        power: float = 0.9,
    ):
        if windows is not None and len(windows) != annealing.num_blocks:
            raise ValueError(f"{len(windows)} windows for {annealing.num_blocks} query blocks.")
        self._annealing = annealing
        self._windows = windows
        self._power = power
        self._probs: list[float] = []

    def probabilities(self, iteration: int) -> list[float]:
        """Masking probability of each query block at an iteration."""
        if self._windows is None:
            return [1.0] * self._annealing.num_blocks
        return [
            masking_probability(iteration, start, end, self._power) for start, end in self._windows
        ]

    def before_train(self) -> None:
        self._set(self.trainer.start_iter)

    def after_step(self) -> None:
        for i, prob in enumerate(self._probs):
            self.trainer.storage.put_scalar(f"mask_annealing/block_{i}", prob, smoothing_hint=False)
        self._set(self.trainer.iter + 1)

    def _set(self, iteration: int) -> None:
        probs = self.probabilities(iteration)
        # Most iterations change nothing, and each change is a copy to the device.
        if probs != self._probs:
            self._annealing.set_probs(probs)
            self._probs = probs


def configured_windows(cfg: CfgNode, num_blocks: int) -> Sequence[tuple[float, float]] | None:
    """Annealing windows of ``MODEL.MASK_FORMER.MASK_ANNEALING`` for a number of query blocks.

    Returns:
        (start, end) in iterations for each block, or None where SCHEDULE is "none".
    """
    node = cfg.MODEL.MASK_FORMER.MASK_ANNEALING
    max_iter = cfg.SOLVER.MAX_ITER
    if node.SCHEDULE == "none":
        return None
    if node.SCHEDULE == "staggered":
        return annealing_windows(num_blocks, max_iter)
    unit = max_iter if node.SCHEDULE == "fractions" else 1
    return [(start * unit, end * unit) for start, end in zip(node.STARTS, node.ENDS, strict=True)]
