"""The outlines of the things of the shapes data sets, as signed distances.

Only additions, products, divisions and square roots touch an array, and these round alike on every
IEEE machine; sines and cosines are rounded to nine digits.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["OUTLINES", "Outline", "direction"]

Distance = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""``(x, y, radius)`` to the signed distance in pixels, inside < 0; y points down."""


class Outline(NamedTuple):
    """A shape around (0, 0) that touches the circle of ``radius`` around it from inside.

    Attributes:
        distance: signed distance to the outline.
        unit_area: area of the shape of radius 1.
        hole: signed distance to the outline of its hole, if it has one.
    """

    distance: Distance
    unit_area: float
    hole: Distance | None = None


def direction(angle: float) -> tuple[float, float]:
    """Cosine and sine of an angle in radians, the same on every machine."""
    return round(math.cos(angle), 9), round(math.sin(angle), 9)


_HOLE = 0.5  # size of a hole / size of the shape around it
_STAR_NOTCH = 0.5  # radius of the inner corners / radius of the tips
_DIAMOND_WIDTH = 0.6  # width / height
# A half disc whose centroid is (0, 0): its own radius, and how far below its flat side lies.
_DOME_RADIUS, _DOME_FLOOR = 0.92, 0.39


def _circle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.sqrt(x * x + y * y) - radius


def _ring(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    half_width = radius * (1 - _HOLE) / 2
    return np.abs(np.sqrt(x * x + y * y) - (radius - half_width)) - half_width


def _square(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - radius * math.sqrt(0.5)


def _frame(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    half_side = radius * math.sqrt(0.5)
    half_width = half_side * (1 - _HOLE) / 2
    return np.abs(np.maximum(np.abs(x), np.abs(y)) - (half_side - half_width)) - half_width


def _triangle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    sides = [x * c + y * s for c, s in map(direction, _degrees(90, 210, 330))]
    return np.maximum.reduce(sides) - radius / 2


def _star(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Union of five arms, each a triangle whose base lies on the star's centre."""
    half_c, half_s = direction(math.radians(36))
    dx, dy = radius * (1 - _STAR_NOTCH * half_c), radius * _STAR_NOTCH * half_s
    arms = []
    for c, s in map(direction, _degrees(18, 90, 162, 234, 306)):
        along, across = x * c - y * s, np.abs(x * s + y * c)
        edge = (across * dx + (along - radius) * dy) / math.sqrt(dx * dx + dy * dy)
        arms.append(np.maximum(edge, -along))
    return np.minimum.reduce(arms)


def _cross(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Two bars, three times as long as wide, whose corners lie on the circle."""
    x, y, half_width = np.abs(x), np.abs(y), radius / math.sqrt(10)
    bars = [np.maximum(a - 3 * half_width, b - half_width) for a, b in ((x, y), (y, x))]
    return np.minimum.reduce(bars)


def _diamond(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    edge = np.abs(x) + _DIAMOND_WIDTH * np.abs(y) - _DIAMOND_WIDTH * radius
    return edge / math.sqrt(1 + _DIAMOND_WIDTH * _DIAMOND_WIDTH)


def _dome(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    y = y - _DOME_FLOOR * radius
    return np.maximum(_circle(x, y, _DOME_RADIUS * radius), y)


def _scaled(distance: Distance, factor: float) -> Distance:
    return lambda x, y, radius: distance(x, y, factor * radius)


def _degrees(*angles: float) -> list[float]:
    return [math.radians(angle) for angle in angles]


OUTLINES: dict[str, Outline] = {
    "circle": Outline(_circle, math.pi),
    "square": Outline(_square, 2.0),
    "triangle": Outline(_triangle, 3 * math.sqrt(3) / 4),
    "star": Outline(_star, 5 * _STAR_NOTCH * math.sin(math.radians(36))),
    "ring": Outline(_ring, math.pi * (1 - _HOLE**2), _scaled(_circle, _HOLE)),
    "cross": Outline(_cross, 2.0),
    "diamond": Outline(_diamond, 2 * _DIAMOND_WIDTH),
    "dome": Outline(_dome, math.pi / 2 * _DOME_RADIUS**2),
    "frame": Outline(_frame, 2 * (1 - _HOLE**2), _scaled(_square, _HOLE)),
}
"""By the name of the class."""
