"""One scene of the synthetic shapes data sets: flat things that occlude each other on textures.

Things are bright and plain, stuff is dark and textured, so a network finds things early and is left
with the question of what they are. That only form can tell: colours, sizes, positions and
orientations of all things come from the same distributions, and so do those of all textures.

Bit-identical everywhere: only additions, products, divisions and square roots touch an array,
and these round alike on every IEEE machine.
"""

import math
from typing import NamedTuple

import numpy as np

from eomt_d2.data.datasets.shapes_outlines import OUTLINES, direction
from eomt_d2.data.datasets.shapes_textures import TEXTURES

__all__ = [
    "CLASS_SETS",
    "MAX_AREA",
    "MIN_AREA",
    "MIN_OCCLUSION",
    "MIN_VISIBLE",
    "ClassSet",
    "Scene",
    "draw_scene",
]


class ClassSet(NamedTuple):
    """What may occur in a scene.

    Attributes:
        things: names among :data:`~eomt_d2.data.datasets.shapes_outlines.OUTLINES`.
        stuff: names among :data:`~eomt_d2.data.datasets.shapes_textures.TEXTURES`.
    """

    things: tuple[str, ...]
    stuff: tuple[str, ...]


CLASS_SETS = {
    "shapes": ClassSet(
        things=("circle", "square", "triangle", "star", "ring"),
        stuff=("stripes", "checkers", "dots"),
    ),
    # Shares no class with the first: what a network that knows those is fine-tuned to.
    "other_shapes": ClassSet(
        things=("cross", "diamond", "dome", "frame"),
        stuff=("zigzag", "bricks"),
    ),
}

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


class Scene(NamedTuple):
    """A picture and its exact ground truth.

    Attributes:
        image: (size, size, 3) uint8, RGB, anti-aliased.
        segments: (size, size) uint8, index of the pixel's segment in ``classes``.
        classes: class of each segment, an index into ``things + stuff`` of the class set; stuff
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


def draw_scene(rng: np.random.Generator, size: int, class_set: ClassSet) -> Scene:
    """Draw one scene of 2 to 8 things on one or more of the textures (each at most once).

    Args:
        rng: source of every choice; the same state gives the same scene, bit by bit.
        size: side of the image in pixels, at least 128.
        class_set: what may occur.

    Raises:
        ValueError: ``size`` is below 128.
    """
    if size < 128:
        raise ValueError(f"shapes need an image size of at least 128 pixels, not {size}.")
    while True:
        scene = _try_scene(rng, size, class_set)
        if scene is not None:
            return scene


def _try_scene(rng: np.random.Generator, size: int, class_set: ClassSet) -> Scene | None:
    """One attempt; None where too little of a texture, or no occlusion, would be seen."""
    centres = np.arange(size) + 0.5
    x, y = np.meshgrid(centres, centres)

    image, segments, classes, colours = _draw_stuff(rng, x, y, size, class_set)
    num_stuff = len(classes)
    things = _place_things(rng, x, y, size, class_set.things)
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


def _place_things(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size: int, names: tuple[str, ...]
) -> list[_Thing]:
    """Things from back to front, each with its visible part as promised."""
    wanted = int(rng.integers(_MIN_THINGS, _MAX_THINGS + 1))
    things: list[_Thing] = []
    covered: list[np.ndarray] = []  # per thing: pixels that later things hide
    for _ in range(12 * wanted):
        if len(things) == wanted:
            break
        thing = _draw_thing(rng, x, y, size, names, things, wanted)
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
    names: tuple[str, ...],
    others: list[_Thing],
    wanted: int,
) -> _Thing:
    label = int(rng.integers(len(names)))
    outline = OUTLINES[names[label]]
    # Areas do not depend on the class; crowded scenes have smaller things.
    largest = min(MAX_AREA, 1.2 / wanted)
    smallest = max(1.1 * MIN_AREA, 0.2 * largest)
    side = _uniform(rng, math.sqrt(smallest), math.sqrt(0.98 * largest)) * size
    radius = math.sqrt(side * side / outline.unit_area)

    low, high = radius + 1, size - radius - 1
    cx, cy = _uniform(rng, low, high), _uniform(rng, low, high)
    if others and rng.random() < 0.4:  # next to another thing, so that one hides the other
        other = others[int(rng.integers(len(others)))]
        c, s = direction(_uniform(rng, 0, 2 * math.pi))
        reach = _uniform(rng, 0.6, 0.9) * (radius + other.radius)
        cx = min(max(other.centre[0] + c * reach, low), high)
        cy = min(max(other.centre[1] + s * reach, low), high)

    c, s = direction(_uniform(rng, -_MAX_ROTATION, _MAX_ROTATION))
    dx, dy = x - cx, y - cy
    dx, dy = dx * c + dy * s, dy * c - dx * s
    distance = outline.distance(dx, dy, radius)
    parts = [distance <= 0]
    if outline.hole is not None:
        parts.append(outline.hole(dx, dy, radius) < 0)
    return _Thing(label, distance, parts, (cx, cy), radius)


def _shade(
    rng: np.random.Generator, colour: np.ndarray, thing: _Thing, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """A gentle brightness gradient over the thing."""
    c, s = direction(_uniform(rng, 0, 2 * math.pi))
    strength = _uniform(rng, 0, 0.15) / thing.radius
    light = 1 + strength * ((x - thing.centre[0]) * c + (y - thing.centre[1]) * s)
    return np.clip(light[..., None] * colour, 0.0, 255.0)


# --- stuff ----------------------------------------------------------------------------------


def _draw_stuff(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size: int, class_set: ClassSet
) -> tuple[np.ndarray, np.ndarray, list[int], list[np.ndarray]]:
    """One or more textures, side by side, with a curved border between neighbours."""
    stuff_names = class_set.stuff
    order = rng.permutation(len(stuff_names))[: int(rng.integers(1, len(stuff_names) + 1))]
    num_borders = len(order) - 1

    c, s = direction(_uniform(rng, 0, 2 * math.pi))
    along = ((x - size / 2) * c + (y - size / 2) * s) / size
    across = ((y - size / 2) * c - (x - size / 2) * s) / size
    bend = _uniform(rng, -0.5, 0.5)
    level = along + bend * across * across
    slope = np.sqrt(1 + 4 * bend * bend * across * across)

    colours: list[np.ndarray] = []
    image = np.zeros((size, size, 3))
    segments = np.zeros((size, size), dtype=np.uint8)
    for i, stuff in enumerate(order):
        texture = _texture(rng, stuff_names[stuff], x, y, size, colours)
        if i == 0:
            image = texture
            continue
        border = (i - (num_borders + 1) / 2) / 3 + _uniform(rng, -0.1, 0.1)
        distance = (border - level) / slope * size
        image = image + np.clip(0.5 - distance, 0.0, 1.0)[..., None] * (texture - image)
        segments[distance <= 0] = i
    classes = [len(class_set.things) + int(stuff) for stuff in order]
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
    c, s = direction(_uniform(rng, -_MAX_ROTATION, _MAX_ROTATION))
    u = (x * c + y * s) / period + rng.random()
    v = (y * c - x * s) / period + rng.random()
    ink = TEXTURES[name](u, v, period)
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
