"""Fitting the weights of a ViT to one with another patch size, image size or class position."""

import math

from torch import Tensor

from eomt_d2.modeling.backbone import ViT
from eomt_d2.modeling.backbone.pos_embed import (
    resample_patch_embedding,
    resample_position_embedding,
)

__all__ = ["fit_vit_weights"]


def fit_vit_weights(weights: dict[str, Tensor], vit: ViT, prefix: str = "") -> list[str]:
    """Resample position and patch embedding to the shapes that a ViT has, in place.

    If the file's position embedding has an entry for the class token, that entry is added to the
    class token, which is what the network would do with it.

    Tensors of other dimensions than a ViT's are left for the comparison of shapes.

    Args:
        weights: by the names of :class:`ViT` (timm's), each with ``prefix`` in front.
        vit: the network that shall take them.
        prefix: where the ViT lives in the model, with its final dot.

    Returns:
        A line for each tensor that was changed.
    """
    changes = []
    wanted = vit.state_dict()
    name = f"{prefix}pos_embed"
    if name in weights and weights[name].dim() == 3 and "pos_embed" in wanted:
        position, class_token = weights[name], weights.get(f"{prefix}cls_token")
        has_class = position.shape[1] == math.isqrt(max(position.shape[1] - 1, 0)) ** 2 + 1
        if has_class and class_token is not None and class_token.shape == position[:, :1].shape:
            weights[f"{prefix}cls_token"] = class_token + position[:, :1]
            weights[name] = position = position[:, 1:]
            changes.append(f"{name}: the class token's position was added to the class token")
        old, new = (math.isqrt(tensor.shape[1]) for tensor in (position, wanted["pos_embed"]))
        if old != new and old**2 == position.shape[1]:
            weights[name] = resample_position_embedding(position, (old, old), (new, new))
            changes.append(f"{name}: resampled from {old}x{old} to {new}x{new} patches")
    name = f"{prefix}patch_embed.proj.weight"
    old = weights[name].shape[-1] if name in weights and weights[name].dim() == 4 else 0
    if old not in (0, vit.patch_size):
        weights[name] = resample_patch_embedding(weights[name], vit.patch_size)
        changes.append(f"{name}: resampled from {old} to {vit.patch_size} pixels")
    return changes
