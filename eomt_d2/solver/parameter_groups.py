"""Which learning rate each parameter gets: layer-wise decay inside a ViT, one rate elsewhere."""

import re
from typing import Any, NamedTuple

from torch import nn

from eomt_d2.modeling.backbone import ViT

__all__ = ["GroupKey", "layer_decay_factor", "parameter_groups"]


class GroupKey(NamedTuple):
    """What distinguishes one parameter group from another.

    Attributes:
        name: "head", "backbone", "embeddings", "block_<i>" or "norm"; names the rate in the logs.
        role: "head" (new parameters) or "backbone"; selects the warm-up of
            :class:`~eomt_d2.solver.lr_scheduler.TwoStageWarmupPolyLR`.
        factor: the group's learning rate relative to the base learning rate.
    """

    name: str
    role: str
    factor: float


HEAD = GroupKey("head", "head", 1.0)
PLAIN_BACKBONE = GroupKey("backbone", "backbone", 1.0)


def layer_decay_factor(
    block: int, depth: int, decay: float, num_full_rate_blocks: int = 0
) -> float:
    """Learning rate of a ViT block relative to the base rate, ``decay ** (depth - 1 - block)``.

    Args:
        block: index of the block, 0 nearest to the image.
        depth: number of blocks D.
        decay: d, the ratio between a block's rate and that of the block after it.
        num_full_rate_blocks: the last n blocks get the full rate (EoMT's DINOv3 recipes for the
            blocks that see the queries); the others keep the exponent they would have anyway.
    """
    if block >= depth - num_full_rate_blocks:
        return 1.0
    return decay ** (depth - 1 - block)


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    num_full_rate_blocks: int = 0,
) -> list[dict[str, Any]]:
    """Optimizer groups of a segmentation model (EoMT, section 4 and its released recipes).

    In a :class:`~eomt_d2.modeling.backbone.ViT` with D blocks, block i learns at
    ``base_lr * layer_decay ** (D - 1 - i)``; patch embedding, position embedding, class and
    register tokens at block 0's rate; the final norm at ``base_lr``. Any other ``backbone.*``
    parameter of a model without ViT learns at ``base_lr`` as the backbone. Everything else is new
    and learns at ``base_lr`` as the head. Every parameter decays, norms, biases and embeddings
    too. Frozen parameters are left out.

    Args:
        model: a model whose backbone, if it has one, is called ``backbone``.
        base_lr: learning rate of the head.
        weight_decay: for all parameters.
        layer_decay: ratio between the rates of one block and the next.
        num_full_rate_blocks: see :func:`layer_decay_factor`.

    Returns:
        One dict per group with keys ``params``, ``name``, ``role``, ``lr`` and ``weight_decay``,
        in the order embeddings, blocks, norm (or backbone), head.
    """
    vits = {name: module for name, module in model.named_modules() if isinstance(module, ViT)}
    members: dict[GroupKey, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        key = _group_key(name, vits, layer_decay, num_full_rate_blocks)
        members.setdefault(key, []).append(parameter)
    return [
        {
            "params": members[key],
            "name": key.name,
            "role": key.role,
            "lr": base_lr * key.factor,
            "weight_decay": weight_decay,
        }
        for key in sorted(members, key=_depth_order)
    ]


def _group_key(
    name: str, vits: dict[str, ViT], layer_decay: float, num_full_rate_blocks: int
) -> GroupKey:
    for prefix, vit in vits.items():
        if not name.startswith(f"{prefix}."):
            continue
        name = name[len(prefix) + 1 :]
        if name.startswith("norm."):
            return GroupKey("norm", "backbone", 1.0)
        block = re.match(r"blocks\.(\d+)\.", name)
        group = f"block_{block[1]}" if block else "embeddings"
        factor = layer_decay_factor(
            int(block[1]) if block else 0, len(vit.blocks), layer_decay, num_full_rate_blocks
        )
        return GroupKey(group, "backbone", factor)
    return PLAIN_BACKBONE if not vits and name.startswith("backbone.") else HEAD


def _depth_order(key: GroupKey) -> tuple[int, int]:
    kind, _, index = key.name.partition("_")
    order = ("embeddings", "block", "norm", "backbone", "head")
    return order.index(kind), int(index or 0)
