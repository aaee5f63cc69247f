"""The two-stage warm-up with polynomial decay of EoMT's recipes."""

import warnings
from functools import partial
from typing import Any

import detectron2.solver
import torch
from detectron2.config import CfgNode
from torch import Tensor

from eomt_d2.errors import UserError

__all__ = ["TwoStageWarmupPolyLR", "build_lr_scheduler", "two_stage_poly_factor"]


def two_stage_poly_factor(
    step: int,
    role: str,
    *,
    warmup_head: int,
    warmup_backbone: int,
    max_iter: int,
    power: float = 0.9,
) -> float:
    """Learning rate before update number ``step``, relative to the group's own rate.

    New parameters warm up linearly while the pre-trained backbone stands still; then the backbone
    warms up. After its own warm-up each decays polynomially to 0 at ``max_iter`` (EoMT's released
    recipes).

    Args:
        step: 0-based.
        role: "head" (new parameters) or "backbone".
        warmup_head: iterations w0 of the head's warm-up, and of the backbone's wait.
        warmup_backbone: iterations w1 of the backbone's warm-up, which follows.
        max_iter: iterations T of the whole training, larger than w0 + w1.
        power: of the polynomial.

    Returns:
        Between 0 and 1; 0 from ``max_iter`` on.
    """
    start, length = {
        "head": (0, warmup_head),
        "backbone": (warmup_head, warmup_backbone),
    }[role]
    if step < start:
        return 0.0
    if step < start + length:
        return (step - start) / length
    progress = (step - start - length) / (max_iter - start - length)
    return (1 - min(progress, 1.0)) ** power


# Detectron2 v0.6 saves and restores a schedule only if it is an instance of `_LRScheduler`, main
# only asks for `LRScheduler`, its base.
class TwoStageWarmupPolyLR(torch.optim.lr_scheduler._LRScheduler):
    """:func:`two_stage_poly_factor` for every group of an optimizer, by the group's ``role``.

    Args:
        optimizer: each group has a key ``role``, as those of
            :func:`~eomt_d2.solver.parameter_groups.parameter_groups` have.
        warmup_head, warmup_backbone, max_iter, power: see :func:`two_stage_poly_factor`.
        last_iter: the last finished iteration, -1 for a new training.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        warmup_head: int,
        warmup_backbone: int,
        max_iter: int,
        power: float = 0.9,
        last_iter: int = -1,
    ):
        if max_iter <= warmup_head + warmup_backbone:
            raise ValueError(
                f"max_iter ({max_iter}) must exceed the two warm-ups together "
                f"({warmup_head} + {warmup_backbone})."
            )
        self._factor = partial(
            two_stage_poly_factor,
            warmup_head=warmup_head,
            warmup_backbone=warmup_backbone,
            max_iter=max_iter,
            power=power,
        )
        super().__init__(optimizer, last_epoch=last_iter)

    def step(self, epoch: int | None = None) -> None:
        """Move to the next iteration, whether or not loss scaling skipped the update."""
        with warnings.catch_warnings():
            # PyTorch takes a skipped first update for calls in the wrong order.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            super().step(epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each group at the current step."""
        return [
            base_lr * self._factor(self.last_epoch, group["role"])
            for base_lr, group in zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Position and base rates; the shape of the schedule comes from the config."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved position; the optimizer's groups get that position's rates."""
        super().load_state_dict(state_dict)
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = self.get_lr()


def build_lr_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """Build the schedule named by ``SOLVER.LR_SCHEDULER_NAME``.

    ``TwoStageWarmupPolyLR`` reads ``SOLVER.{WARMUP_ITERS_HEAD, WARMUP_ITERS_BACKBONE,
    POLY_LR_POWER, MAX_ITER}``; ``WarmupPolyLR``, as Mask2Former's own semantic recipes have it, is
    the same without any warm-up; any other name goes to Detectron2's own builder, whose schedules
    apply one factor to all groups.

    Raises:
        UserError: if nobody knows the name.
        ValueError: if the warm-ups do not fit into MAX_ITER.
    """
    solver = cfg.SOLVER
    warmups = (solver.WARMUP_ITERS_HEAD, solver.WARMUP_ITERS_BACKBONE)
    if solver.LR_SCHEDULER_NAME == "WarmupPolyLR":
        if solver.WARMUP_ITERS > 0 and solver.WARMUP_FACTOR != 1:
            raise UserError(
                f"SOLVER.LR_SCHEDULER_NAME is 'WarmupPolyLR' with WARMUP_ITERS "
                f"{solver.WARMUP_ITERS} and WARMUP_FACTOR {solver.WARMUP_FACTOR}; only its form "
                "without warm-up is here (WARMUP_ITERS 0); TwoStageWarmupPolyLR warms up."
            )
        warmups = (0, 0)
    elif solver.LR_SCHEDULER_NAME != TwoStageWarmupPolyLR.__name__:
        try:
            return detectron2.solver.build_lr_scheduler(cfg, optimizer)
        except ValueError as error:
            raise UserError(
                f"SOLVER.LR_SCHEDULER_NAME is {solver.LR_SCHEDULER_NAME!r}, which Detectron2 "
                f"refuses ({error}); the schedule of this package is TwoStageWarmupPolyLR."
            ) from error
    return TwoStageWarmupPolyLR(
        optimizer,
        warmup_head=warmups[0],
        warmup_backbone=warmups[1],
        max_iter=solver.MAX_ITER,
        power=solver.POLY_LR_POWER,
    )
