"""In which order a training sees the images: a function of the seed that can be entered anywhere.

Detectron2's samplers of the same names can only be entered at their beginning.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.samplers import RepeatFactorTrainingSampler

from eomt_d2.data.seeding import Stream, seed_sequence
from eomt_d2.errors import UserError

__all__ = ["ImageOrder", "RepeatedOrder", "SubsetOrder", "build_image_order"]


class ImageOrder:
    """Endless passes over a data set, each in an order of its own ("TrainingSampler").

    Position p of the stream is the p-th image that the training takes, over all processes.

    Args:
        size: number of images, at least 1.
    """

    def __init__(self, size: int):
        self.size = size

    def indices(self, seed: int, position: int = 0) -> Iterator[int]:
        """The images from a position on, without end.

        Args:
            seed: of the training.
            position: of the first index that is given.
        """
        number, start = self._locate(seed, position)
        while True:
            yield from self.pass_indices(seed, number)[start:].tolist()
            number, start = number + 1, 0

    def pass_indices(self, seed: int, number: int) -> np.ndarray:
        """(N,) int64, the images of one pass, in order; passes count from 0."""
        return _generator(Stream.ORDER, seed, number).permutation(self.size)

    def _locate(self, seed: int, position: int) -> tuple[int, int]:
        """The pass that holds a position, and the position inside of it."""
        return divmod(position, self.size)


class SubsetOrder(ImageOrder):
    """Passes over the same random part of a data set ("RandomSubsetTrainingSampler").

    Args:
        size: number of images of the whole data set.
        ratio: share of them that is used, in (0, 1].
    """

    def __init__(self, size: int, ratio: float):
        super().__init__(int(size * ratio))
        self._whole = size

    def pass_indices(self, seed: int, number: int) -> np.ndarray:
        subset = _generator(Stream.SUBSET, seed).permutation(self._whole)[: self.size]
        return subset[super().pass_indices(seed, number)]


class RepeatedOrder(ImageOrder):
    """Passes that hold some images several times ("RepeatFactorTrainingSampler").

    An image with the factor 2.3 is in each pass twice, and with a probability of 0.3 once more
    (LVIS, arXiv 1908.03195, appendix B.2).

    Args:
        factors: (N,) float, at least 1 each.
    """

    def __init__(self, factors: Sequence[float]):
        super().__init__(len(factors))
        self._factors = np.asarray(factors, dtype=np.float64)

    def pass_indices(self, seed: int, number: int) -> np.ndarray:
        generator = _generator(Stream.ORDER, seed, number)
        repeats = np.floor(self._factors + generator.random(self.size)).astype(np.int64)
        return generator.permutation(np.repeat(np.arange(self.size), repeats))

    def _locate(self, seed: int, position: int) -> tuple[int, int]:
        # Passes differ in length.
        number = 0
        while position >= (length := len(self.pass_indices(seed, number))):
            number, position = number + 1, position - length
        return number, position


def build_image_order(cfg: CfgNode, dataset: Any) -> ImageOrder:
    """The order that ``DATALOADER.SAMPLER_TRAIN`` names.

    Args:
        dataset: list or map-style PyTorch ``Dataset`` of images in Detectron2's dataset format;
            only their number counts, and for "RepeatFactorTrainingSampler" the categories of their
            segments.

    Raises:
        UserError: the name is unknown, or the order needs what is not there.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return ImageOrder(len(dataset))
    if name == "RandomSubsetTrainingSampler":
        ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
        if not 0 < ratio <= 1 or int(len(dataset) * ratio) == 0:
            raise UserError(
                f"DATALOADER.RANDOM_SUBSET_RATIO is {ratio}, which leaves none of "
                f"{len(dataset)} images or more than all; give a share in (0, 1]."
            )
        return SubsetOrder(len(dataset), ratio)
    if name == "RepeatFactorTrainingSampler":
        return RepeatedOrder(_repeat_factors(cfg, dataset))
    raise UserError(
        f"DATALOADER.SAMPLER_TRAIN is {name!r}; it must be 'TrainingSampler', "
        "'RandomSubsetTrainingSampler' or 'RepeatFactorTrainingSampler'."
    )


def _repeat_factors(cfg: CfgNode, dataset: Iterable[dict]) -> Sequence[float]:
    segments = []
    for entry in dataset:
        listed = entry.get("annotations", entry.get("segments_info"))
        if listed is None:
            raise UserError(
                "DATALOADER.SAMPLER_TRAIN is 'RepeatFactorTrainingSampler', but the annotations "
                f"of {entry.get('file_name', 'an image')} do not list its segments, as those of "
                "label maps do not; use 'TrainingSampler'."
            )
        segments.append({"annotations": listed})
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        segments, cfg.DATALOADER.REPEAT_THRESHOLD
    ).tolist()


def _generator(stream: Stream, seed: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng(seed_sequence(stream, seed, *numbers))
