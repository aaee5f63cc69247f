"""The two data types that networks, criterion and post-processing exchange."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["FactoredPrediction", "MaskPrediction", "MaskTarget", "Prediction"]


class MaskPrediction(NamedTuple):
    """What a mask classification network says about a batch of B images with Q queries.

    Attributes:
        mask_logits: (B, Q, h, w) float; a pixel belongs to the query's mask where it is > 0.
        class_logits: (B, Q, K + 1) float; the last class is "no object".
    """

    mask_logits: Tensor
    class_logits: Tensor


class FactoredPrediction(NamedTuple):
    """A :class:`MaskPrediction` in training, with what its masks are made from.

    Only the masks of matched queries, a few of Q, enter the losses. Made once more from these
    factors, they send their gradient to their own embeddings; the gradient of all Q masks, nearly
    all zeros, would take two products as large as the one that made them.

    Attributes:
        mask_logits: (B, Q, h, w) float, ``<mask_embeddings[b, q], mask_features[b, :, y, x]>``.
        class_logits: (B, Q, K + 1) float; the last class is "no object".
        mask_embeddings: (B, Q, C) float.
        mask_features: (B, C, h, w) float.
    """

    mask_logits: Tensor
    class_logits: Tensor
    mask_embeddings: Tensor
    mask_features: Tensor


Prediction = MaskPrediction | FactoredPrediction
"""What a network makes, in inference or in training."""


class MaskTarget(NamedTuple):
    """The M ground-truth segments of one training image. M may be 0.

    Attributes:
        labels: (M,) int64 class indices in [0, K).
        masks: (M, H, W) bool at the resolution of the network's (padded) input.
    """

    labels: Tensor
    masks: Tensor
