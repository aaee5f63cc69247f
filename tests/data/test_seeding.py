import random

import numpy as np
import torch

from eomt_d2.data.seeding import Stream, seed_globals, seed_sequence


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def after(*place):
    seed_globals(*place)
    return draws()


def test_what_was_drawn_before_does_not_matter():
    first = after(Stream.SAMPLE, 3, 70)
    draws()
    assert after(Stream.SAMPLE, 3, 70) == first


def test_every_place_has_its_own_numbers():
    places = [
        (stream, seed, *numbers)
        for stream in Stream
        for seed in (0, 1, 2**31)
        for numbers in ((0, 0), (0, 1), (1, 0), (70, 0), (2**40, 0))
    ]
    seen = [after(*place) for place in places]
    # Each of the three generators for itself.
    for numbers in zip(*seen, strict=True):
        assert len(set(numbers)) == len(places)


def test_the_sequence_is_numpys():
    expected = np.random.SeedSequence([2, 3, 70]).generate_state(4)
    assert (seed_sequence(Stream.SAMPLE, 3, 70).generate_state(4) == expected).all()
