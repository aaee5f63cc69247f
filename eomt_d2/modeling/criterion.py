"""The training loss of mask classification (Mask2Former, section 3.3; EoMT, section 3.2).

Shapes: B images, Q queries, K classes, N matched masks, P points.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn

from .mask_product import matched_masks
from .matcher import HungarianMatcher
from .point_sampling import sample_binary_masks, sample_points, uncertain_points
from .structures import MaskPrediction, MaskTarget

__all__ = [
    "LossNormalizers",
    "MaskClassificationCriterion",
    "dice_loss",
    "mask_cross_entropy",
    "mean_over_ranks",
]


class LossNormalizers(NamedTuple):
    """What the sums over the masks and queries of one effective batch are divided by.

    Attributes:
        num_masks: scalar float32, matched masks (or segments) per process.
        class_weight_sum: scalar float32, the cross-entropy's sum of class weights per process.
    """

    num_masks: Tensor
    class_weight_sum: Tensor


def mask_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each mask, the mean over its points.

    Args:
        logits: (N, P) float.
        targets: (N, P) float in [0, 1].

    Returns:
        (N,) float.
    """
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """``1 - (2 <p, t> + 1) / (sum p + sum t + 1)`` of each mask, with p = sigmoid(logits).

    Args:
        logits: (N, P) float.
        targets: (N, P) float in [0, 1].

    Returns:
        (N,) float in [0, 1).
    """
    probabilities = logits.sigmoid()
    intersection = (probabilities * targets).sum(1)
    return 1 - (2 * intersection + 1) / (probabilities.sum(1) + targets.sum(1) + 1)


def mean_over_ranks(values: Sequence[float], device: torch.device) -> Tensor:
    """The mean over all processes of each value, (len(values),) float32 on ``device``."""
    mean = torch.tensor(values, dtype=torch.float32, device=device)
    if comm.get_world_size() > 1:
        dist.all_reduce(mean)
        mean /= comm.get_world_size()
    return mean


class MaskClassificationCriterion(nn.Module):
    """Matches every prediction with the ground truth and weighs up class and mask losses.

    The class term is a cross-entropy over all queries in which "no object" counts
    ``no_object_weight``; the mask terms compare the matched masks at points.

    Both normalisers, the number of matched masks and the cross-entropy's sum of class weights, are
    those of the effective batch: summed over the batches whose gradients are accumulated and
    averaged over the processes, so that the average of gradients by DistributedDataParallel is
    the gradient of the whole batch however it is spread. The official code normalises the
    cross-entropy in each process alone; this differs on purpose.

    Args:
        num_classes: K.
        matcher: pairs queries and segments.
        class_weight: weight of ``loss_ce``.
        mask_weight: weight of ``loss_mask``.
        dice_weight: weight of ``loss_dice``.
        no_object_weight: weight of class K inside the cross-entropy.
        num_points, oversample_ratio, importance_sample_ratio: see :func:`uncertain_points`.
        normalizer: the mask losses are divided by the number of "matched" masks, or of all
            "segments", as in Mask2Former, also those for which no query is left.

    Raises:
        ValueError: if a sampling ratio is outside its range or ``normalizer`` unknown.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        normalizer: str = "matched",
    ) -> None:
        super().__init__()
        if normalizer not in ("matched", "segments"):
            raise ValueError(f"normalizer is {normalizer!r}, but must be 'matched' or 'segments'")
        if oversample_ratio < 1:
            raise ValueError(f"oversample_ratio is {oversample_ratio}, but must be at least 1")
        if not 0 <= importance_sample_ratio <= 1:
            raise ValueError(
                f"importance_sample_ratio is {importance_sample_ratio}, but must be in [0, 1]"
            )
        self.num_classes = num_classes
        self.matcher = matcher
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.no_object_weight = no_object_weight
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.normalizer = normalizer

        weights = torch.ones(num_classes + 1)
        weights[-1] = no_object_weight
        # A setting, not a state: checkpoints must not override the config.
        self.register_buffer("class_weights", weights, persistent=False)

    def normalizers(
        self, num_segments: Sequence[int], num_queries: int, device: torch.device
    ) -> LossNormalizers:
        """The normalisers of an effective batch; every process must call this, or none.

        Args:
            num_segments: M of each image that this process has of the effective batch.
            num_queries: Q; min(Q, M) masks of an image are matched.
            device: of the result.
        """
        num_matched = sum(min(num_queries, count) for count in num_segments)
        num_unmatched = len(num_segments) * num_queries - num_matched
        counted = num_matched if self.normalizer == "matched" else sum(num_segments)
        num_masks, class_weight_sum = mean_over_ranks(
            [counted, num_matched + self.no_object_weight * num_unmatched], device
        )
        # The second is zero only where the cross-entropy's numerator is zero too.
        return LossNormalizers(num_masks.clamp(min=1), class_weight_sum.clamp(min=1e-6))

    def forward(
        self,
        predictions: Sequence[MaskPrediction],
        targets: Sequence[MaskTarget],
        normalizers: LossNormalizers | None = None,
    ) -> dict[str, Tensor]:
        """The weighted losses of every supervised prediction.

        Random numbers: all of :meth:`HungarianMatcher.match`, then those of
        :func:`uncertain_points` for each prediction in order.

        Args:
            predictions: one or more predictions of the same B images, the final one last.
            targets: ground truth of the B images, all at one (padded) size. Without any segment
                the mask terms are zeros that are still connected to the mask logits.
            normalizers: of the effective batch that these images are a part of; None where they
                are, over all processes, the whole of it.

        Returns:
            float32 scalars to be summed up: ``loss_ce``, ``loss_mask``, ``loss_dice`` for the last
            prediction and ``loss_ce_0``, ... for the earlier ones.
        """
        if normalizers is None:
            mask_logits = predictions[-1].mask_logits
            num_segments = [len(target.labels) for target in targets]
            normalizers = self.normalizers(num_segments, mask_logits.shape[1], mask_logits.device)
        num_masks, class_weight_sum = normalizers

        labels = torch.cat([target.labels for target in targets])
        masks = torch.cat([target.masks for target in targets])
        matches = self.matcher.match(predictions, targets)

        losses = {}
        for i, (prediction, matched) in enumerate(zip(predictions, matches, strict=True)):
            suffix = "" if i == len(predictions) - 1 else f"_{i}"
            images, queries, segments = _flat_indices(matched, targets)
            class_loss = self._class_loss(
                prediction.class_logits.float(), images, queries, labels[segments]
            )
            matched_logits = matched_masks(prediction, [pair[0] for pair in matched])
            mask_loss, dice = self._mask_losses(matched_logits, masks, segments)
            losses[f"loss_ce{suffix}"] = self.class_weight * class_loss / class_weight_sum
            losses[f"loss_mask{suffix}"] = self.mask_weight * mask_loss / num_masks
            losses[f"loss_dice{suffix}"] = self.dice_weight * dice / num_masks
        return losses

    def _class_loss(
        self, class_logits: Tensor, images: Tensor, queries: Tensor, labels: Tensor
    ) -> Tensor:
        """Weighted cross-entropy, summed over all queries of (B, Q, K + 1) logits."""
        classes = torch.full_like(class_logits[..., 0], self.num_classes, dtype=torch.int64)
        classes[images, queries] = labels
        return F.cross_entropy(
            class_logits.flatten(0, 1), classes.flatten(), self.class_weights, reduction="sum"
        )

    def _mask_losses(
        self, mask_logits: Tensor, masks: Tensor, segments: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums over the matched masks (N, h, w) of their cross-entropy and dice loss."""
        points = uncertain_points(
            mask_logits, self.num_points, self.oversample_ratio, self.importance_sample_ratio
        )
        logits = sample_points(mask_logits[:, None], points)[:, 0]
        targets = sample_binary_masks(masks, points, segments)
        return mask_cross_entropy(logits, targets).sum(), dice_loss(logits, targets).sum()


def _flat_indices(
    matched: Sequence[tuple[Tensor, Tensor]], targets: Sequence[MaskTarget]
) -> tuple[Tensor, Tensor, Tensor]:
    """Image, query and segment of each of the N pairs; segments counted through the batch."""
    images, queries, segments, offset = [], [], [], 0
    pairs = zip(matched, targets, strict=True)
    for b, ((image_queries, image_segments), target) in enumerate(pairs):
        images.append(torch.full_like(image_queries, b))
        queries.append(image_queries)
        segments.append(image_segments + offset)
        offset += len(target.labels)
    return torch.cat(images), torch.cat(queries), torch.cat(segments)
