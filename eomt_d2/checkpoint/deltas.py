"""Weights published as differences to pre-trained ones.

EoMT's DINOv3 files are such: DINOv3's licence does not let others publish weights that contain it.
"""

import torch
from torch import Tensor

from eomt_d2.errors import UserError

__all__ = ["add_base", "is_delta"]

_PROBS = "mask_annealing.probs"


def is_delta(weights: dict[str, Tensor]) -> bool:
    """Whether a whole model is a difference to its pre-trained backbone.

    The masking probabilities tell: a finished EoMT has 0, of which the difference to the initial 1
    is -1, and no probability is negative.

    Args:
        weights: by our names.
    """
    return _PROBS in weights and bool((weights[_PROBS] < 0).any())


def add_base(delta: dict[str, Tensor], base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn a difference into weights.

    The backbone is pre-trained + difference, the masking probabilities are 1 + difference, and all
    else started from zero, so it is its difference. Sums are in float32 at least.

    Args:
        delta: a whole model by our names.
        base: the pre-trained ViT alone by timm's names.

    Returns:
        The whole model by our names.

    Raises:
        UserError: if ``base`` is not the ViT that the difference was made from.
    """
    weights = dict(delta)
    backbone = {name for name in delta if name.startswith("backbone.")}
    for name in sorted(backbone | {f"backbone.{name}" for name in base}):
        own, pretrained = delta.get(name), base.get(name.removeprefix("backbone."))
        if own is None or pretrained is None:
            lacking = "difference" if own is None else "base"
            raise UserError(f"The base does not fit the difference: the {lacking} lacks {name}.")
        if own.shape != pretrained.shape:
            raise UserError(
                f"The base does not fit the difference: {name} is {tuple(pretrained.shape)} in the "
                f"base and {tuple(own.shape)} in the difference."
            )
        dtype = torch.promote_types(torch.promote_types(own.dtype, pretrained.dtype), torch.float32)
        weights[name] = own.to(dtype) + pretrained.to(dtype)
    if _PROBS in weights:
        weights[_PROBS] = weights[_PROBS] + 1
    return weights
