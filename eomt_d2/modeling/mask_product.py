"""Masks as the product of queries and pixels (MaskFormer, arXiv 2107.06278, section 3.2).

Shapes: B images, Q queries, C channels, (h, w) pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .structures import FactoredPrediction, MaskPrediction, Prediction

__all__ = ["matched_masks", "predict_masks"]


def predict_masks(
    mask_embeddings: Tensor, mask_features: Tensor, class_logits: Tensor
) -> Prediction:
    """Every query's mask is the dot product of its embedding with each pixel.

    Args:
        mask_embeddings: (B, Q, C) float, of the queries.
        mask_features: (B, C, h, w) float, of the pixels.
        class_logits: (B, Q, K + 1) float, of the queries.

    Returns:
        The prediction, with its factors where gradients are recorded.
    """
    mask_logits = (mask_embeddings @ mask_features.flatten(2)).unflatten(2, mask_features.shape[2:])
    if torch.is_grad_enabled():
        return FactoredPrediction(mask_logits, class_logits, mask_embeddings, mask_features)
    return MaskPrediction(mask_logits, class_logits)


def matched_masks(prediction: Prediction, queries: Sequence[Tensor]) -> Tensor:
    """The masks of some queries, differentiable; from their factors if the prediction has them.

    Args:
        prediction: of B images.
        queries: for each image, (N_b,) int64 indices in [0, Q).

    Returns:
        (sum of N_b, h, w) float32, image by image.
    """
    if not isinstance(prediction, FactoredPrediction):
        masks = zip(prediction.mask_logits, queries, strict=True)
        return torch.cat([image_masks[indices].float() for image_masks, indices in masks])
    # unbind: its gradient is one stack, that of indexing would be a sum of B whole maps. Pixels
    # come first because the gradient then lies in memory as the norm that made them takes it.
    embeddings = prediction.mask_embeddings.unbind()
    features = prediction.mask_features.flatten(2).mT.unbind()
    masks = [
        (image_embeddings[indices] @ image_features.mT).float()
        for image_embeddings, image_features, indices in zip(
            embeddings, features, queries, strict=True
        )
    ]
    return torch.cat(masks).unflatten(1, prediction.mask_features.shape[-2:])
