"""The optimizer described by a config."""

import torch
from detectron2.config import CfgNode
from torch import nn

from eomt_d2.errors import UserError

from .parameter_groups import parameter_groups

__all__ = ["build_optimizer"]

BETAS = (0.9, 0.999)
EPS = 1e-8


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW or SGD over :func:`~eomt_d2.solver.parameter_groups.parameter_groups`.

    Gradients are not clipped inside the optimizer, as they are in Detectron2's: the training step
    does that after it has undone the loss scaling (see :mod:`eomt_d2.engine.train_step`).

    Args:
        cfg: reads ``SOLVER.{OPTIMIZER, BASE_LR, WEIGHT_DECAY, WEIGHT_DECAY_NORM,
            WEIGHT_DECAY_EMBED, LAYER_DECAY, BACKBONE_MULTIPLIER, QUERY_BLOCKS_FULL_LR, MOMENTUM,
            NESTEROV}``.
        model: on the device it will be trained on.

    Raises:
        UserError: if SOLVER.OPTIMIZER is neither ADAMW nor SGD.
    """
    solver = cfg.SOLVER
    groups = parameter_groups(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=_or(solver.WEIGHT_DECAY_NORM, solver.WEIGHT_DECAY),
        weight_decay_embed=_or(solver.WEIGHT_DECAY_EMBED, solver.WEIGHT_DECAY),
        backbone_multiplier=solver.BACKBONE_MULTIPLIER,
        layer_decay=solver.LAYER_DECAY,
        num_full_rate_blocks=(
            getattr(model, "num_blocks", 0) if solver.QUERY_BLOCKS_FULL_LR else 0
        ),
    )
    if solver.OPTIMIZER == "ADAMW":
        # One kernel per group and step; PyTorch offers it where every parameter is on the GPU.
        fused = all(p.is_cuda for group in groups for p in group["params"])
        return torch.optim.AdamW(groups, betas=BETAS, eps=EPS, fused=fused or None)
    if solver.OPTIMIZER == "SGD":
        return torch.optim.SGD(groups, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
    raise UserError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; it must be ADAMW or SGD.")


def _or(decay: float, default: float) -> float:
    return default if decay < 0 else decay
