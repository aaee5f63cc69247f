"""Random numbers that depend on where a training is, and not on how it got there."""

import random
from enum import IntEnum

import numpy as np
import torch

__all__ = ["Stream", "seed_globals", "seed_sequence"]


class Stream(IntEnum):
    """What random numbers are for; the streams of one seed are independent of each other."""

    ORDER = 0  # numbers: the pass over the data set
    SUBSET = 1  # numbers: none
    SAMPLE = 2  # numbers: the sample's position
    ITERATION = 3  # numbers: iteration, rank


def seed_sequence(stream: Stream, seed: int, *numbers: int) -> np.random.SeedSequence:
    """The source of the random numbers of one place in a training.

    Args:
        stream: what they are for.
        seed: of the training, at least 0.
        numbers: which place, see :class:`Stream`; each at least 0.
    """
    return np.random.SeedSequence([int(stream), seed, *numbers])


def seed_globals(stream: Stream, seed: int, *numbers: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (on all devices).

    Whoever draws from them afterwards, be it a network, an augmentation of Detectron2 or of the
    user, draws the same in a training that was interrupted, without any state having been saved.

    Args: see :func:`seed_sequence`.
    """
    words = seed_sequence(stream, seed, *numbers).generate_state(8)
    random.seed(words[:2].tobytes())
    np.random.seed(words[2:6])
    torch.manual_seed(int(words[6]) << 31 ^ int(words[7]))
