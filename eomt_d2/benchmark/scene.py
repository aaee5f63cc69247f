"""A made-up scene for networks without trained weights.

What comes after the network takes as long as there is to do: with random weights no query passes
the threshold of panoptic inference, and post-processing would be measured doing nothing. So the
network's predictions are replaced by those of a scene in which some queries are sure of a class and
of a region, and the others of "no object", as it is after training.

Shapes: Q queries, K classes, A active queries, (h, w) the grid of the mask logits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eomt_d2.modeling.structures import MaskPrediction

__all__ = ["Scene", "regions"]

# Class logits against zeros elsewhere: a probability of 0.99 among 150 classes.
_SURE = 10.0
# Mask logits per side length that a point is nearer to its own region, and where they end.
_SLOPE, _LIMIT = 200.0, 12.0
_NOISE = 1.0


def regions(
    num_regions: int, size: tuple[int, int], extent: tuple[float, float] = (1.0, 1.0), seed: int = 0
) -> Tensor:
    """How much nearer each pixel is to a region's centre than to the nearest other one.

    The regions are the Voronoi cells of random centres: positive inside, zero on the border.

    Args:
        num_regions: A.
        size: (h, w).
        extent: the part of height and width, in (0, 1], that the centres are spread over.
        seed: of the centres.

    Returns:
        (A, h, w) float32, in sides of the map.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(num_regions, 2, generator=generator) * torch.tensor(extent)
    rows, columns = ((torch.arange(side) + 0.5) / side for side in size)
    distances = torch.hypot(
        rows[:, None] - centres[:, 0, None, None], columns - centres[:, 1, None, None]
    )
    if num_regions < 2:
        return torch.ones_like(distances)
    nearest = distances.topk(2, dim=0, largest=False).values
    is_nearest = distances == nearest[0]
    return nearest[1].where(is_nearest, nearest[0]) - distances


class Scene:
    """Predictions of a network that has found A things in every image.

    Args:
        num_active: A, queries that are sure of a class and own a region with noisy borders. The
            others are sure of "no object"; their masks are noise.
        num_classes: K; active queries take random ones.
        extent: the part of the input's height and width that is image and not padding.
        seed: of everything random; networks of the same sizes get the same scene.
    """

    def __init__(
        self,
        num_active: int,
        num_classes: int,
        extent: tuple[float, float] = (1.0, 1.0),
        seed: int = 0,
    ) -> None:
        self._num_active, self._num_classes = num_active, num_classes
        self._extent, self._seed = extent, seed
        self._made: dict[tuple, MaskPrediction] = {}

    def replace(self, prediction: MaskPrediction) -> MaskPrediction:
        """The scene in place of a prediction, with its shapes, dtypes and device.

        It is made once and kept, so later calls cost nothing.
        """
        masks, classes = prediction
        key = (masks.shape, classes.shape, masks.dtype, classes.dtype, masks.device)
        if key not in self._made:
            mask_logits, class_logits = self.logits(masks.shape[1], tuple(masks.shape[2:]))
            self._made[key] = MaskPrediction(
                mask_logits.to(masks).repeat(len(masks), 1, 1, 1),
                class_logits.to(classes).repeat(len(classes), 1, 1),
            )
        return self._made[key]

    def logits(self, num_queries: int, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mask logits (Q, h, w) and class logits (Q, K + 1) of one image, float32 on the CPU."""
        generator = torch.Generator().manual_seed(self._seed)
        active = torch.randperm(num_queries, generator=generator)[: self._num_active]
        labels = torch.randint(self._num_classes, (len(active),), generator=generator)
        class_logits = torch.zeros(num_queries, self._num_classes + 1)
        class_logits[:, -1] = _SURE
        class_logits[active, -1] = 0
        class_logits[active, labels] = _SURE
        height, width = grid
        noise = _NOISE * torch.randn(num_queries, height, width, generator=generator)
        mask_logits = noise - _LIMIT / 2
        inside = regions(len(active), (height, width), self._extent, self._seed)
        mask_logits[active] = (_SLOPE * inside).clamp(-_LIMIT, _LIMIT) + noise[active]
        return mask_logits, class_logits
