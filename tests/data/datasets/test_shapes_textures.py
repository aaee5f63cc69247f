"""The textures, each on a lattice of 4 x 4 periods."""

import math

import numpy as np
import pytest

from eomt_d2.data.datasets.shapes_scene import CLASS_SETS
from eomt_d2.data.datasets.shapes_textures import TEXTURES

PERIOD = 60.0  # pixels
SIDE = np.arange(4 * int(PERIOD)) / PERIOD
U, V = np.meshgrid(SIDE, SIDE)

# bricks: 2 x 1 periods with joints 0.15 wide on each side, 1 - 1.7 * 0.7 / 2.
SHARES = {
    "stripes": 0.5,
    "checkers": 0.5,
    "dots": math.pi * 0.3**2,
    "zigzag": 0.5,
    "bricks": 0.405,
}


def test_every_class_has_a_texture():
    names = {name for classes in CLASS_SETS.values() for name in classes.stuff}
    assert names == set(TEXTURES) == set(SHARES)


@pytest.mark.parametrize("name", TEXTURES)
def test_share_of_the_second_colour(name):
    ink = TEXTURES[name](U, V, PERIOD)
    assert ink.min() == 0 and ink.max() == 1
    assert ink.mean() == pytest.approx(SHARES[name], abs=0.01)
    assert np.isin(ink, (0, 1)).mean() > 0.8, "mixed only along borders"


def ink_at(name, u, v):
    return TEXTURES[name](np.array(u), np.array(v), PERIOD).tolist()


def test_stripes_depend_on_one_coordinate():
    assert ink_at("stripes", [0.5, 0.5, 1.0], [0.1, 0.6, 0.1]) == [1, 1, 0]


def test_checkers_alternate():
    assert ink_at("checkers", [0.5, 1.0, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]) == [0, 1, 1, 0]


def test_dots_lie_in_the_middle_of_the_cells():
    assert ink_at("dots", [0.5, 0.75, 0.9, 1.0], [0.5, 0.5, 0.5, 1.0]) == [1, 1, 0, 0]


def test_zigzag_goes_up_and_down():
    # A stripe's middle, v = 0.5 where u = 0.5, is half a period higher where u = 0 and u = 1.
    assert ink_at("zigzag", [0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 0.25, 0.5, 0.25, 0.0]) == [1] * 5
    assert ink_at("zigzag", [0.0, 0.5, 1.0], [0.5, 0.0, 0.5]) == [0] * 3


def test_bricks_of_the_next_row_are_shifted_by_half():
    # Joints stand at u = 0, 2, ... in even rows and at u = 1, 3, ... in odd ones.
    assert ink_at("bricks", [0.0, 1.0, 2.0], [0.5] * 3) == [1, 0, 1]
    assert ink_at("bricks", [0.0, 1.0, 2.0], [1.5] * 3) == [0, 1, 0]
    assert ink_at("bricks", [0.5, 0.5], [0.0, 1.0]) == [1, 1]
