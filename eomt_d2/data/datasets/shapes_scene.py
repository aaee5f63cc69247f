"""One scene of the synthetic shapes data set: flat things that occlude each other on textures.

Things are bright and plain, stuff is dark and textured, so a network finds things early and is left
with the question of what they are. That only form can tell: colours, sizes, positions and
orientations of all things come from the same distributions, and so do those of all textures.

Bit-identical everywhere: only additions, products, divisions and square roots touch an array,
and these round alike on every IEEE machine; sines and cosines are rounded to nine digits.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = [
    "MAX_AREA",
    "MIN_AREA",
    "MIN_OCCLUSION",
    "MIN_VISIBLE",
    "STUFF_CLASSES",
    "THING_CLASSES",
    "Scene",
    "draw_scene",
]

THING_CLASSES = ("circle", "square", "triangle", "star", "ring")
STUFF_CLASSES = ("stripes", "checkers", "dots")

# Shares of the image's pixels: every thing shows at least the first and covers, seen or not, at
# most the second.
MIN_AREA, MAX_AREA = 0.02, 0.30
# Share of a thing's own pixels that must stay visible, so that a person could name its shape.
MIN_VISIBLE = 0.5
# In every scene at least one thing has lost this share of its own pixels to things before it.
MIN_OCCLUSION = 0.05
_MIN_THINGS, _MAX_THINGS = 2, 8
_MIN_STUFF_AREA = 0.05
_MAX_ROTATION = math.radians(10)
# Brightness of the three channels: of things, of a texture's darker colour, and of the other one
# above that.
_THING_COLOURS, _DARK_COLOURS, _CONTRAST = (110, 256), (0, 80), (40, 90)
_RING_HOLE = 0.5  # inner radius / outer radius
_STAR_NOTCH = 0.5  # radius of the inner corners / radius of the tips


class Scene(NamedTuple):
    """A picture and its exact ground truth.

    Attributes:
        image: (size, size, 3) uint8, RGB, anti-aliased.
        segments: (size, size) uint8, index of the pixel's segment in ``classes``.
        classes: class of each segment, an index into ``THING_CLASSES + STUFF_CLASSES``; stuff
            first, then things from back to front.
        full_areas: pixels of each segment if nothing were in front of it (its visible pixels for
            stuff).
    """

    image: np.ndarray
    segments: np.ndarray
    classes: list[int]
    full_areas: list[int]


class _Thing(NamedTuple):
    label: int
    distance: np.ndarray  # (size, size), signed distance to the outline in pixels, inside < 0
    # Parts that must stay visible. A ring whose hole is covered could not be told from a circle.
    parts: list[np.ndarray]
    centre: tuple[float, float]
    radius: float


def draw_scene(rng: np.random.Generator, size: int) -> Scene:
    """Draw one scene of 1 to 3 textures and 2 to 8 things.

    Args:
        rng: source of every choice; the same state gives the same scene, bit by bit.
        size: side of the image in pixels, at least 128.

    Raises:
        ValueError: ``size`` is below 128.
    """
    if size < 128:
        raise ValueError(f"shapes need an image size of at least 128 pixels, not {size}.")
    while True:
        scene = _try_scene(rng, size)
        if scene is not None:
            return scene


def _try_scene(rng: np.random.Generator, size: int) -> Scene | None:
    """One attempt; None where too little of a texture, or no occlusion, would be seen."""
    centres = np.arange(size) + 0.5
    x, y = np.meshgrid(centres, centres)

    image, segments, classes, colours = _draw_stuff(rng, x, y, size)
    num_stuff = len(classes)
    things = _place_things(rng, x, y, size)
    for thing in things:
        colour = _contrasting_colour(rng, colours)
        colours.append(colour)
        shaded = _shade(rng, colour, thing, x, y)
        alpha = np.clip(0.5 - thing.distance, 0.0, 1.0)[..., None]
        image = image + alpha * (shaded - image)
        segments[thing.distance <= 0] = len(classes)
        classes.append(thing.label)

    visible = np.bincount(segments.ravel(), minlength=len(classes))
    full = [int(area) for area in visible[:num_stuff]]
    full += [int((thing.distance <= 0).sum()) for thing in things]
    hidden = [1 - visible[i] / full[i] for i in range(num_stuff, len(classes))]
    if len(things) < _MIN_THINGS or max(hidden) < MIN_OCCLUSION:
        return None
    if visible[:num_stuff].min() < _MIN_STUFF_AREA * size * size:
        return None
    return Scene(np.floor(image + 0.5).astype(np.uint8), segments, classes, full)


# --- things ---------------------------------------------------------------------------------


def _circle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.sqrt(x * x + y * y) - radius


def _ring(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    half_width = radius * (1 - _RING_HOLE) / 2
    return np.abs(np.sqrt(x * x + y * y) - (radius - half_width)) - half_width


def _square(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - radius * math.sqrt(0.5)


def _triangle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    sides = [x * c + y * s for c, s in map(_direction, _degrees(90, 210, 330))]
    return np.maximum.reduce(sides) - radius / 2


def _star(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Union of five arms, each a triangle whose base lies on the star's centre."""
    half_c, half_s = _direction(math.radians(36))
    dx, dy = radius * (1 - _STAR_NOTCH * half_c), radius * _STAR_NOTCH * half_s
    arms = []
    for c, s in map(_direction, _degrees(18, 90, 162, 234, 306)):
        along, across = x * c - y * s, np.abs(x * s + y * c)
        edge = (across * dx + (along - radius) * dy) / math.sqrt(dx * dx + dy * dy)
        arms.append(np.maximum(edge, -along))
    return np.minimum.reduce(arms)


# Signed distance in pixels, and the area of the shape of radius 1.
_SHAPES: dict[str, tuple[Callable[[np.ndarray, np.ndarray, float], np.ndarray], float]] = {
    "circle": (_circle, math.pi),
    "square": (_square, 2.0),
    "triangle": (_triangle, 3 * math.sqrt(3) / 4),
    "star": (_star, 5 * _STAR_NOTCH * math.sin(math.radians(36))),
    "ring": (_ring, math.pi * (1 - _RING_HOLE**2)),
}


def _place_things(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size: int
) -> list[_Thing]:
    """Things from back to front, each with its visible part as promised."""
    wanted = int(rng.integers(_MIN_THINGS, _MAX_THINGS + 1))
    things: list[_Thing] = []
    covered: list[np.ndarray] = []  # per thing: pixels that later things hide
    for _ in range(12 * wanted):
        if len(things) == wanted:
            break
        thing = _draw_thing(rng, x, y, size, things, wanted)
        inside = thing.distance <= 0
        if not MIN_AREA * size * size <= inside.sum() <= MAX_AREA * size * size:
            continue
        hidden = [mask | inside for mask in covered]
        if all(_recognisable(t, mask, size) for t, mask in zip(things, hidden, strict=True)):
            things.append(thing)
            covered = [*hidden, np.zeros_like(inside)]
    return things


def _recognisable(thing: _Thing, hidden: np.ndarray, size: int) -> bool:
    visible = [(part & ~hidden).sum() for part in thing.parts]
    shares = [v / part.sum() for v, part in zip(visible, thing.parts, strict=True)]
    return visible[0] >= MIN_AREA * size * size and min(shares) >= MIN_VISIBLE


def _draw_thing(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    size: int,
    others: list[_Thing],
    wanted: int,
) -> _Thing:
    label = int(rng.integers(len(THING_CLASSES)))
    shape, unit_area = _SHAPES[THING_CLASSES[label]]
    # Areas do not depend on the class; crowded scenes have smaller things.
    largest = min(MAX_AREA, 1.2 / wanted)
    smallest = max(1.1 * MIN_AREA, 0.2 * largest)
    side = _uniform(rng, math.sqrt(smallest), math.sqrt(0.98 * largest)) * size
    radius = math.sqrt(side * side / unit_area)

    low, high = radius + 1, size - radius - 1
    cx, cy = _uniform(rng, low, high), _uniform(rng, low, high)
    if others and rng.random() < 0.4:  # next to another thing, so that one hides the other
        other = others[int(rng.integers(len(others)))]
        c, s = _direction(_uniform(rng, 0, 2 * math.pi))
        reach = _uniform(rng, 0.6, 0.9) * (radius + other.radius)
        cx = min(max(other.centre[0] + c * reach, low), high)
        cy = min(max(other.centre[1] + s * reach, low), high)

    c, s = _direction(_uniform(rng, -_MAX_ROTATION, _MAX_ROTATION))
    dx, dy = x - cx, y - cy
    distance = shape(dx * c + dy * s, dy * c - dx * s, radius)
    parts = [distance <= 0]
    if THING_CLASSES[label] == "ring":
        parts.append(_circle(dx, dy, radius * _RING_HOLE) < 0)
    return _Thing(label, distance, parts, (cx, cy), radius)


def _shade(
    rng: np.random.Generator, colour: np.ndarray, thing: _Thing, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """A gentle brightness gradient over the thing."""
    c, s = _direction(_uniform(rng, 0, 2 * math.pi))
    strength = _uniform(rng, 0, 0.15) / thing.radius
    light = 1 + strength * ((x - thing.centre[0]) * c + (y - thing.centre[1]) * s)
    return np.clip(light[..., None] * colour, 0.0, 255.0)


# --- stuff ----------------------------------------------------------------------------------


def _draw_stuff(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, list[int], list[np.ndarray]]:
    """1 to 3 textures, side by side, with a curved border between neighbours."""
    order = rng.permutation(len(STUFF_CLASSES))[: int(rng.integers(1, len(STUFF_CLASSES) + 1))]
    num_borders = len(order) - 1

    c, s = _direction(_uniform(rng, 0, 2 * math.pi))
    along = ((x - size / 2) * c + (y - size / 2) * s) / size
    across = ((y - size / 2) * c - (x - size / 2) * s) / size
    bend = _uniform(rng, -0.5, 0.5)
    level = along + bend * across * across
    slope = np.sqrt(1 + 4 * bend * bend * across * across)

    colours: list[np.ndarray] = []
    image = np.zeros((size, size, 3))
    segments = np.zeros((size, size), dtype=np.uint8)
    for i, stuff in enumerate(order):
        texture = _texture(rng, STUFF_CLASSES[stuff], x, y, size, colours)
        if i == 0:
            image = texture
            continue
        border = (i - (num_borders + 1) / 2) / 3 + _uniform(rng, -0.1, 0.1)
        distance = (border - level) / slope * size
        image = image + np.clip(0.5 - distance, 0.0, 1.0)[..., None] * (texture - image)
        segments[distance <= 0] = i
    classes = [len(THING_CLASSES) + int(stuff) for stuff in order]
    return image, segments, classes, colours


def _texture(
    rng: np.random.Generator,
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    size: int,
    colours: list[np.ndarray],
) -> np.ndarray:
    """(size, size, 3) two-coloured texture; its colours are appended to ``colours``."""
    first = rng.integers(*_DARK_COLOURS, 3).astype(np.float64)
    second = first + rng.integers(*_CONTRAST, 3)
    if rng.random() < 0.5:
        first, second = second, first
    colours += [first, second]

    period = _uniform(rng, 7, 11) * size / 128
    c, s = _direction(_uniform(rng, -_MAX_ROTATION, _MAX_ROTATION))
    u = (x * c + y * s) / period + rng.random()
    v = (y * c - x * s) / period + rng.random()
    # Distance from the middle of the lattice cell, in periods.
    u, v = np.abs(u - np.floor(u) - 0.5), np.abs(v - np.floor(v) - 0.5)
    bars_u = np.clip(0.5 + (0.25 - u) * period, 0.0, 1.0)
    if name == "stripes":
        ink = bars_u
    elif name == "checkers":
        bars_v = np.clip(0.5 + (0.25 - v) * period, 0.0, 1.0)
        ink = bars_u + bars_v - 2 * bars_u * bars_v
    else:
        ink = np.clip(0.5 + (0.3 - np.sqrt(u * u + v * v)) * period, 0.0, 1.0)
    return first + ink[..., None] * (second - first)


# --- draws ----------------------------------------------------------------------------------


def _contrasting_colour(rng: np.random.Generator, others: list[np.ndarray]) -> np.ndarray:
    """(3,) the one of several random bright colours that is farthest from all others."""
    drawn = rng.integers(*_THING_COLOURS, (16, 3)).astype(np.float64)
    gaps = drawn[:, None] - np.stack(others)[None]
    return drawn[int((gaps * gaps).sum(axis=2).min(axis=1).argmax())]


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    # Not rng.uniform, whose compiled product and sum may be fused on some machines.
    return low + (high - low) * rng.random()


def _direction(angle: float) -> tuple[float, float]:
    return round(math.cos(angle), 9), round(math.sin(angle), 9)


def _degrees(*angles: float) -> list[float]:
    return [math.radians(angle) for angle in angles]
