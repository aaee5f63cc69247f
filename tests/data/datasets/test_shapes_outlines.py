"""The outlines of things, drawn large."""

import cv2
import numpy as np
import pytest

from eomt_d2.data.datasets.shapes_outlines import OUTLINES
from eomt_d2.data.datasets.shapes_scene import CLASS_SETS

RADIUS = 150.0
X, Y = np.meshgrid(np.arange(401) - 200.0, np.arange(401) - 200.0)

# Area / area of the circle around it, and area / area of the convex hull, by hand:
# cross: bars of 1 x 3, five unit squares, in a circle of radius sqrt(10) / 2; the hull adds four
#   triangles of 1/2 each. diamond: diagonals 1.2 and 2. dome: half a circle of radius 0.92 in one
#   of radius 1. frame: a square of side sqrt(2) less a quarter.
BY_HAND = {
    "circle": (1.0, 1.0),
    "square": (2 / np.pi, 1.0),
    "triangle": (1.2990381 / np.pi, 1.0),
    "star": (1.4694631 / np.pi, 0.618034),
    "ring": (0.75, 0.75),
    "cross": (5 / (2.5 * np.pi), 5 / 7),
    "diamond": (1.2 / np.pi, 1.0),
    "dome": (0.4232, 1.0),
    "frame": (1.5 / np.pi, 0.75),
}


def test_every_class_has_an_outline():
    names = {name for classes in CLASS_SETS.values() for name in classes.things}
    assert names == set(OUTLINES) == set(BY_HAND)


@pytest.mark.parametrize("name", OUTLINES)
def test_areas(name):
    outline = OUTLINES[name]
    inside = outline.distance(X, Y, RADIUS) <= 0
    share, of_hull = BY_HAND[name]
    assert inside.sum() == pytest.approx(share * np.pi * RADIUS**2, rel=0.01)
    assert outline.unit_area == pytest.approx(share * np.pi, rel=1e-6)
    hull = cv2.convexHull(np.argwhere(inside).astype(np.float32))
    assert inside.sum() / cv2.contourArea(hull) == pytest.approx(of_hull, abs=0.02)


@pytest.mark.parametrize("name", OUTLINES)
def test_distances(name):
    """They grow by at most 1 a pixel, and the outline touches the circle around it from inside."""
    distance = OUTLINES[name].distance(X, Y, RADIUS)
    assert max(np.abs(np.diff(distance, axis=axis)).max() for axis in (0, 1)) <= 1 + 1e-9
    farthest = np.sqrt(X * X + Y * Y)[distance <= 0].max()
    assert RADIUS - 2 < farthest <= RADIUS


@pytest.mark.parametrize("name", OUTLINES)
def test_shapes_lie_centred_and_upright(name):
    """Mirrored left and right (so that a horizontal flip keeps the class), the centroid at 0."""
    inside = OUTLINES[name].distance(X, Y, RADIUS) <= 0
    assert (inside != inside[:, ::-1]).mean() < 0.001
    assert abs(Y[inside].mean()) < 0.01 * RADIUS


@pytest.mark.parametrize("name", ["ring", "frame"])
def test_holes_are_what_the_shape_leaves_free_inside(name):
    outline = OUTLINES[name]
    inside = outline.distance(X, Y, RADIUS) <= 0
    hole = outline.hole(X, Y, RADIUS) < 0
    assert hole[200, 200] and not (hole & inside).any()
    assert hole.sum() == pytest.approx(inside.sum() / 3, rel=0.02)


def test_other_shapes_have_no_hole():
    assert [name for name, outline in OUTLINES.items() if outline.hole] == ["ring", "frame"]
