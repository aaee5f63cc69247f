"""ADE20K: which of its 150 classes are things, and how its label files combine.

Classes are counted as in the semantic task: PNG value minus 1, 0-149, where value 0 is "other".
``annotations_instance`` has class (red, 1-100) and instance (green), 0 where there is none; its
class c is the c-th class that is not stuff.
"""

from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

__all__ = [
    "ADE20K_CATEGORIES",
    "ADE20K_THING_CATEGORIES",
    "instance_ids",
    "panoptic_ids",
    "segment_category",
    "semantic_ids",
]

# fmt: off
_STUFF_IDS = (
    *range(7), 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63,
    68, 77, 79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140,
    141, 145,
)
# fmt: on

ADE20K_CATEGORIES: list[dict[str, Any]] = [
    {"id": i, "name": name.strip(), "isthing": int(i not in _STUFF_IDS)}
    for i, name in enumerate(ADE20K_SEM_SEG_CATEGORIES)
]
ADE20K_THING_CATEGORIES = [c for c in ADE20K_CATEGORIES if c["isthing"]]

_THING_IDS = np.array([category["id"] for category in ADE20K_THING_CATEGORIES])
# A segment's id is (class + 1) * 1000 + instance; stuff has instance 0.
_DIVISOR = 1000


def semantic_ids(label: np.ndarray) -> np.ndarray:
    """Classes of a file of ``annotations``.

    Args:
        label: (H, W) unsigned integers, 0-150.

    Returns:
        (H, W) uint8, 0-149, and 255 where the file says "other".

    Raises:
        ValueError: a value is above 150.
    """
    if label.max(initial=0) > len(ADE20K_CATEGORIES):
        raise ValueError(f"label {label.max()} is above {len(ADE20K_CATEGORIES)}")
    return label.astype(np.uint8) - np.uint8(1)


def instance_ids(instances: np.ndarray) -> np.ndarray:
    """Segment ids of things.

    Args:
        instances: (H, W) integers, red + 256 green + 256^2 blue of ``annotations_instance``.

    Returns:
        (H, W) int32, 0 where there is no thing.

    Raises:
        ValueError: a class is above 100.
    """
    label, number = instances % 256, instances // 256 % 256
    if label.max(initial=0) > len(_THING_IDS):
        raise ValueError(f"instance class {label.max()} is above {len(_THING_IDS)}")
    ids = (_THING_IDS[label - 1] + 1) * _DIVISOR + number
    return np.where((label > 0) & (number > 0), ids, 0).astype(np.int32)


def panoptic_ids(label: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Segment ids of the panoptic task: stuff of the semantic labels, overwritten by things.

    Args:
        label: (H, W) as for :func:`semantic_ids`; its thing pixels are ignored.
        instances: (H, W) as for :func:`instance_ids`.

    Returns:
        (H, W) int32, 0 is void.

    Raises:
        ValueError: the two differ in size, or a value is out of range.
    """
    if label.shape != instances.shape:
        raise ValueError(f"sizes differ: {label.shape} and {instances.shape}")
    classes = semantic_ids(label).astype(np.int32)
    stuff = np.where(np.isin(classes, _STUFF_IDS), (classes + 1) * _DIVISOR, 0)
    things = instance_ids(instances)
    return np.where(things > 0, things, stuff).astype(np.int32)


def segment_category(segment_id: int) -> int:
    """Class (0-149) of a segment id made here."""
    return segment_id // _DIVISOR - 1
