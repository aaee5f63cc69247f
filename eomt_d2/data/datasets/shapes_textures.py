"""The textures behind the things of the shapes data sets: where each has which of two colours.

As for the outlines, only operations that round alike everywhere touch an array.
"""

from collections.abc import Callable

import numpy as np

__all__ = ["TEXTURES"]

Texture = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""Lattice coordinates ``(u, v)`` in periods, and the period in pixels, to the share of the second
colour in each pixel, 0 to 1."""


def _from_middle(u: np.ndarray) -> np.ndarray:
    """Distance from the middle of the lattice cell, in periods."""
    return np.abs(u - np.floor(u) - 0.5)


def _coverage(depth: np.ndarray, period: float) -> np.ndarray:
    """Anti-aliased: how much of a pixel lies inside, from its depth inside in periods."""
    return np.clip(0.5 + depth * period, 0.0, 1.0)


def _stripes(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    return _coverage(0.25 - _from_middle(u), period)


def _checkers(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    bars_u, bars_v = _stripes(u, v, period), _stripes(v, u, period)
    return bars_u + bars_v - 2 * bars_u * bars_v


def _dots(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    u, v = _from_middle(u), _from_middle(v)
    return _coverage(0.3 - np.sqrt(u * u + v * v), period)


def _zigzag(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    """Stripes that turn by a right angle every half period."""
    return _stripes(v + _from_middle(u), u, period)


def _bricks(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    """The joints between bricks twice as wide as high, every other row shifted by half a brick."""
    row = np.floor(v)
    u = u / 2 + 0.5 * (row - 2 * np.floor(row / 2))
    to_joint = np.minimum(2 * (0.5 - _from_middle(u)), 0.5 - _from_middle(v))
    return _coverage(0.15 - to_joint, period)


TEXTURES: dict[str, Texture] = {
    "stripes": _stripes,
    "checkers": _checkers,
    "dots": _dots,
    "zigzag": _zigzag,
    "bricks": _bricks,
}
"""By the name of the class."""
