"""Hungarian matching of queries and ground-truth segments (DETR, equation 1; costs: Mask2Former).

Shapes: B images, Q queries, K classes, M ground-truth segments, P points, L predictions.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .chunking import chunk_numel
from .point_sampling import sample_binary_masks, sample_many_channels
from .structures import MaskPrediction, MaskTarget

__all__ = ["HungarianMatcher", "matching_cost"]

# linear_sum_assignment refuses infinite costs; beyond this any cost means "never if avoidable".
_MAX_COST = 1e10

# 2^5 = 32 probabilities are multiplied before a logarithm is taken: 2^-32 is far from underflow.
_HALVINGS = 5


def matching_cost(
    class_logits: Tensor,
    mask_logits: Tensor,
    labels: Tensor,
    masks: Tensor,
    *,
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
) -> Tensor:
    """Cost of pairing each query with each ground-truth segment.

    ``class_weight * -softmax(class_logits)[label] + mask_weight * BCE + dice_weight * dice``, where
    BCE is the mean over points and dice is ``1 - (2 <p, t> + 1) / (sum p + sum t + 1)``.

    Args:
        class_logits: (..., Q, K + 1) float32.
        mask_logits: (..., Q, P) float32, at points.
        labels: (M,) int64 in [0, K).
        masks: (..., M, P) float32 in [0, 1], at the same points.
        class_weight: weight of the class term.
        mask_weight: weight of the binary cross-entropy.
        dice_weight: weight of the dice term.

    Returns:
        (..., Q, M) float32, finite: clamped to +-1e10, NaN becomes 0.
    """
    class_cost = -class_logits.softmax(-1)[..., labels]

    masks_t = masks.transpose(-1, -2)
    probabilities = mask_logits.sigmoid()
    # BCE(x, t) = softplus(x) - x * t: one product of matrices instead of two.
    mask_cost = _sum_of_softplus(mask_logits)[..., None] - mask_logits @ masks_t
    mask_cost = mask_cost / mask_logits.shape[-1]

    sizes = probabilities.sum(-1)[..., :, None] + masks.sum(-1)[..., None, :]
    dice_cost = 1 - (2 * (probabilities @ masks_t) + 1) / (sizes + 1)

    cost = class_weight * class_cost + mask_weight * mask_cost + dice_weight * dice_cost
    return cost.nan_to_num(0.0).clamp(-_MAX_COST, _MAX_COST)


def _sum_of_softplus(logits: Tensor) -> Tensor:
    """Sum of log(1 + exp(x)) over the last dimension of (..., P) logits.

    softplus(x) = (x + |x|) / 2 - log(sigmoid(|x|)). These sigmoids are at least 1/2, so 32 of them
    can be multiplied before the logarithm is taken, which would cost more than all the rest.
    """
    magnitudes = logits.abs()
    positive = (logits.sum(-1) + magnitudes.sum(-1)) / 2
    products = magnitudes.sigmoid_()
    padding = -products.shape[-1] % 2**_HALVINGS
    if padding:
        products = F.pad(products, (0, padding), value=1.0)
    for _ in range(_HALVINGS):
        first, second = products.chunk(2, dim=-1)
        products = first * second
    return positive - products.log().sum(-1)


class HungarianMatcher:
    """Finds, per prediction and image, the cheapest one-to-one pairing of queries and segments.

    Args:
        class_weight, mask_weight, dice_weight: see :func:`matching_cost`.
        num_points: P, uniform points per image at which masks are compared.
    """

    def __init__(
        self,
        *,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        num_points: int = 12544,
    ) -> None:
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.num_points = num_points

    @torch.no_grad()
    def match(
        self, predictions: Sequence[MaskPrediction], targets: Sequence[MaskTarget]
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """Match all predictions of a batch with one transfer to the host and one back.

        Random numbers: ``torch.rand(1, P, 2)`` per prediction per image, images varying fastest.

        Args:
            predictions: L predictions of B images with Q queries each.
            targets: ground truth of the B images; any number of segments, also more than Q.

        Returns:
            ``matches[l][b] = (query_indices, target_indices)``, both (min(Q, M),) int64 on the
            logits' device, query indices ascending.
        """
        device = predictions[0].mask_logits.device
        points = [
            [torch.rand(1, self.num_points, 2, device=device) for _ in targets] for _ in predictions
        ]
        # Half precision underflows in the BCE term, hence no autocast.
        with torch.autocast(device.type, enabled=False):
            costs = [
                self._image_cost(
                    [prediction.class_logits[b] for prediction in predictions],
                    [prediction.mask_logits[b] for prediction in predictions],
                    target,
                    torch.cat([prediction_points[b] for prediction_points in points]),
                )
                for b, target in enumerate(targets)
            ]

        pairs_by_image = _assign(costs)
        return [list(pairs) for pairs in zip(*pairs_by_image, strict=True)]

    def _image_cost(
        self,
        class_logits: list[Tensor],
        mask_logits: list[Tensor],
        target: MaskTarget,
        points: Tensor,
    ) -> Tensor:
        """(L, Q, M) cost of one image in all predictions, at points (L, P, 2)."""
        all_points = points.flatten(0, 1).expand(len(target.masks), -1, -1)
        sampled_masks = sample_binary_masks(target.masks, all_points)
        sampled_masks = sampled_masks.unflatten(1, points.shape[:2]).transpose(0, 1)
        # On a GPU all predictions at once, on a CPU what its cache holds.
        numel = len(mask_logits[0]) * self.num_points
        chunk = max(1, chunk_numel(points.device) // numel)
        costs = [
            matching_cost(
                torch.stack(class_logits[i : i + chunk]).float(),
                sample_many_channels(
                    torch.stack(mask_logits[i : i + chunk]), points[i : i + chunk]
                ),
                target.labels,
                sampled_masks[i : i + chunk],
                class_weight=self.class_weight,
                mask_weight=self.mask_weight,
                dice_weight=self.dice_weight,
            )
            for i in range(0, len(points), chunk)
        ]
        return torch.cat(costs)


def _assign(costs: list[Tensor]) -> list[list[tuple[Tensor, Tensor]]]:
    """Solve B x L assignments; ``costs[b]`` is (L, Q, M_b), the result is indexed [b][l]."""
    device = costs[0].device
    on_host = torch.cat([cost.flatten() for cost in costs]).cpu()
    chunks = on_host.split([cost.numel() for cost in costs])
    solutions = [
        torch.as_tensor(np.stack(linear_sum_assignment(matrix.numpy())))
        for cost, chunk in zip(costs, chunks, strict=True)
        for matrix in chunk.view(cost.shape)
    ]

    lengths = [solution.shape[1] for solution in solutions]
    queries, segments = torch.cat(solutions, dim=1).to(device)
    pairs = list(zip(queries.split(lengths), segments.split(lengths), strict=True))
    num_predictions = len(costs[0])
    return [pairs[i : i + num_predictions] for i in range(0, len(pairs), num_predictions)]
