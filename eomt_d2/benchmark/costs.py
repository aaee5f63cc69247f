"""The arithmetic of a network at one input size, to set beside its times."""

from typing import NamedTuple

import torch
from detectron2.config import CfgNode

from eomt_d2.analysis import build_meta_model, masked_when_finished, network_complexity
from eomt_d2.modeling.backbone.vit_block import Attention

from .plan import uncompiled

__all__ = ["Costs", "network_costs"]


class Costs(NamedTuple):
    """Of one input.

    Attributes:
        parameters: number of parameters.
        macs: multiply-accumulates, see :mod:`eomt_d2.analysis.complexity`.
        attention_macs: those of them that both products of the ViT's attention do, 2 T^2 C in a
            block of T tokens with C channels: the part that grows with the square of the tokens.
        masked: whether masked attention is counted; None where the network cannot switch it.
    """

    parameters: int
    macs: int
    attention_macs: int
    masked: bool | None


def network_costs(
    cfg: CfgNode, height: int, width: int, *, masked: bool = False, training: bool = False
) -> Costs:
    """Count ``predict`` on one input of (height, width) pixels.

    Args:
        cfg: of the model.
        height, width: of the network's input, in pixels.
        masked: count masked attention in all blocks; False counts the finished network.
        training: count the forward pass of training, which makes all predictions.

    Raises:
        UserError: see :func:`~eomt_d2.analysis.network_complexity`.
    """
    model = build_meta_model(uncompiled(cfg))
    finished = masked_when_finished(cfg, model)
    if training:
        # As a training begins: masked wherever that is possible.
        count = None if finished is None else True
    else:
        count = True if masked else finished
    tokens: list[torch.Size] = []
    for module in model.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape))
    total = network_complexity(model, height, width, masked=count)[""]
    attention = sum(2 * batch * count**2 * channels for batch, count, channels in tokens)
    return Costs(total.parameters, total.macs, attention, count)
