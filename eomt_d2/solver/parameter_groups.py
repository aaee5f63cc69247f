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
        kind: "norms" or "embeddings" where these decay otherwise than the rest, else "".
    """

    name: str
    role: str
    factor: float
    kind: str = ""


# BatchNorm in all its forms (also synchronised ones), and the others of PyTorch.
NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)

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
    backbone_multiplier: float = 1.0,
    weight_decay_norm: float | None = None,
    weight_decay_embed: float | None = None,
) -> list[dict[str, Any]]:
    """Optimizer groups of a segmentation model (EoMT, section 4 and its released recipes).

    In a :class:`~eomt_d2.modeling.backbone.ViT` with D blocks, block i learns at
    ``base_lr * layer_decay ** (D - 1 - i)``; patch embedding, position embedding, class and
    register tokens at block 0's rate; the final norm at ``base_lr``. Any other ``backbone.*``
    parameter of a model without ViT learns at ``base_lr`` as the backbone. Everything else is new
    and learns at ``base_lr`` as the head. Every parameter decays, norms, biases and embeddings
    too, unless these are given a decay of their own, as in Mask2Former. Frozen parameters are left
    out.

    Args:
        model: a model whose backbone, if it has one, is called ``backbone``.
        base_lr: learning rate of the head.
        weight_decay: for all parameters without another one.
        layer_decay: ratio between the rates of one block and the next.
        num_full_rate_blocks: see :func:`layer_decay_factor`.
        backbone_multiplier: the rates of the backbone's groups are multiplied with it.
        weight_decay_norm: of the parameters of normalisation layers; None: ``weight_decay``.
        weight_decay_embed: of the parameters of ``nn.Embedding``; None: ``weight_decay``.

    Returns:
        One dict per group with keys ``params``, ``name``, ``role``, ``lr`` and ``weight_decay``,
        in the order embeddings, blocks, norm (or backbone), head. Where norms or embeddings decay
        otherwise, a group is split, and the name of the part says so: "head_norms".
    """
    decays = {"": weight_decay, "norms": weight_decay_norm, "embeddings": weight_decay_embed}
    decays = {kind: weight_decay if decay is None else decay for kind, decay in decays.items()}
    kinds = _kinds(model)
    vits = {name: module for name, module in model.named_modules() if isinstance(module, ViT)}
    members: dict[GroupKey, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        key = _group_key(name, vits, layer_decay, num_full_rate_blocks)
        kind = kinds.get(name, "")
        if decays[kind] != weight_decay:
            key = key._replace(kind=kind)
        members.setdefault(key, []).append(parameter)
    return [
        {
            "params": members[key],
            "name": f"{key.name}_{key.kind}" if key.kind else key.name,
            "role": key.role,
            "lr": base_lr * key.factor * (backbone_multiplier if key.role == "backbone" else 1),
            "weight_decay": decays[key.kind],
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


def _kinds(model: nn.Module) -> dict[str, str]:
    """Which parameters, by name, belong to normalisations ("norms") and to embeddings."""
    kinds = {}
    for path, module in model.named_modules():
        kind = "embeddings" if isinstance(module, nn.Embedding) else "norms"
        if kind == "embeddings" or isinstance(module, NORMS):
            for name, _ in module.named_parameters(prefix=path, recurse=False):
                kinds[name] = kind
    return kinds


def _depth_order(key: GroupKey) -> tuple[int, int, str]:
    kind, _, index = key.name.partition("_")
    order = ("embeddings", "block", "norm", "backbone", "head")
    return order.index(kind), int(index or 0), key.kind
