"""COCO's three forms of an instance mask, checked before pycocotools gets them.

Its C code trusts what it is given: run lengths that do not add up make it read beyond its memory,
and it walks along a polygon's edges however far away they lead. So run lengths are added up and
coordinates bounded here first.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from eomt_d2.errors import UserError

__all__ = ["compressed_run_lengths", "encoded_mask"]

# How far beyond the image a polygon may reach, as a multiple of the image's longer side.
MAX_REACH = 4
# Longest outline of one polygon, in pixels; rasterising takes about 100 bytes for each.
MAX_OUTLINE = 10_000_000


def encoded_mask(segmentation: Any, height: int, width: int, name: str) -> dict:
    """One compressed RLE from any of COCO's three forms of a segmentation.

    Args:
        segmentation: polygons [[x, y, x, y, ...], ...], an RLE with a list of counts, or an RLE
            with a string of them; as it stands in the annotation.
        height, width: size of the image in pixels.
        name: the image's, for messages.

    Returns:
        ``{"size": [height, width], "counts": bytes or str}``.

    Raises:
        UserError: it is none of the three, an RLE does not fit the image, or a polygon has a
            coordinate that is no number or lies far outside the image.
    """
    if isinstance(segmentation, dict):
        return _checked_rle(segmentation, height, width, name)
    # pycocotools would take a list of 4 numbers for a box, and drop the last of an odd list.
    if not isinstance(segmentation, list | tuple) or not segmentation:
        raise _unusable(name)
    polygons = [_checked_polygon(polygon, height, width, name) for polygon in segmentation]
    return mask_util.merge(mask_util.frPyObjects(polygons, height, width))


def compressed_run_lengths(counts: str | bytes) -> np.ndarray:
    """The run lengths in the string of a compressed RLE.

    A character, minus 48, has 5 bits of a number, lowest first, and a sixth that says whether more
    follow; the last has the number's sign in its fifth bit. From the fourth number on, each is the
    difference to the run length two before (the format of the COCO API).

    Returns:
        (n,) int64; not checked against anything, so they may be negative.

    Raises:
        ValueError: the string has other characters, ends inside a number, or a number has more
            than 35 bits.
    """
    data = counts.encode("ascii") if isinstance(counts, str) else counts
    digits = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if not len(digits):
        return digits
    if digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("no compressed run lengths")
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("a number of too many bits")
    position = np.arange(len(digits)) - np.repeat(starts, lengths)
    values = np.add.reduceat((digits & 31) << (5 * position), starts)
    values -= np.where(digits[ends] & 16, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values


def _checked_rle(segmentation: dict, height: int, width: int, name: str) -> dict:
    size: Any = segmentation.get("size")
    counts: Any = segmentation.get("counts")
    if not _is_size(size):
        raise UserError(
            f"An RLE annotation of {name} has no usable size ({size!r:.60}); it has to be the "
            "image's [height, width]."
        )
    if tuple(size) != (height, width):
        raise UserError(
            f"An RLE annotation of {name} is for an image of {size[1]}x{size[0]} pixels, "
            f"but the image has {width}x{height}; correct one of them."
        )
    try:
        compressed = isinstance(counts, str | bytes)
        runs = compressed_run_lengths(counts) if compressed else np.asarray(counts)
        fits = runs.ndim == 1 and runs.dtype.kind in "iu" and len(runs) > 0
        fits = fits and runs.min() >= 0 and runs.max() <= height * width
        fits = fits and runs.sum(dtype=np.int64) == height * width
    except (ValueError, TypeError, OverflowError):
        fits = False
    if not fits:
        raise UserError(
            f"An RLE annotation of {name} has counts that do not add up to its {width}x{height} "
            "pixels; remove that annotation or encode its mask again."
        )
    if compressed:
        return segmentation
    whole = {"size": [height, width], "counts": runs.tolist()}
    return mask_util.frPyObjects(whole, height, width)


def _is_size(size: Any) -> bool:
    return (
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(isinstance(side, int | np.integer) for side in size)
    )


def _checked_polygon(polygon: Any, height: int, width: int, name: str) -> list[float]:
    if not isinstance(polygon, Sequence | np.ndarray) or isinstance(polygon, str | bytes):
        raise _unusable(name)
    if len(polygon) < 6 or len(polygon) % 2:
        raise _unusable(name)
    try:
        finite = math.isfinite(sum(polygon))
    except (TypeError, OverflowError, ValueError):
        finite = False
    if not finite:
        raise UserError(
            f"A polygon of {name} has a coordinate that is no finite number; remove that "
            "annotation or correct it."
        )
    low, high, side = min(polygon), max(polygon), max(height, width)
    if low < -MAX_REACH * side or high > (MAX_REACH + 1) * side:
        raise UserError(
            f"A polygon of {name} reaches from {low:g} to {high:g}, far outside the image of "
            f"{width}x{height} pixels; remove that annotation or correct it."
        )
    points = np.asarray(polygon, np.float64)
    # A bound that needs no arithmetic with every point.
    if len(points) // 2 * (high - low) > MAX_OUTLINE and _outline(points) > MAX_OUTLINE:
        raise UserError(
            f"A polygon of {name} has an outline of {_outline(points):.0f} pixels, more than the "
            f"{MAX_OUTLINE} that are drawn; store that mask as an RLE."
        )
    return points.tolist()


def _outline(points: np.ndarray) -> float:
    corners = points.reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def _unusable(name: str) -> UserError:
    return UserError(
        f"An instance annotation of {name} has no usable segmentation; it has to be polygons "
        "of at least 3 points (x, y) or an RLE, so remove that annotation or complete it."
    )
