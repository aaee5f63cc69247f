"""The faults of one image and its ground truth."""

from collections.abc import Iterator

import numpy as np

from eomt_d2.data.datasets.faults import Fault
from eomt_d2.data.ground_truth import GROUND_TRUTH_KEYS, GroundTruth, has_segments
from eomt_d2.data.mapper import MaskClassificationMapper
from eomt_d2.errors import UserError

__all__ = ["image_faults"]


def image_faults(
    entry: dict,
    mapper: MaskClassificationMapper,
    kinds: tuple[str, ...],
    skip_empty: bool = False,
) -> list[Fault]:
    """Read an image and its ground truth as training does, and say what is wrong with them.

    Args:
        entry: an image in Detectron2's dataset format.
        mapper: of the training.
        kinds: "panoptic", "instance" and "semantic", those that are used of it.
        skip_empty: whether images that list no segment besides crowds are left out, unread.

    Returns:
        Errors, which training or evaluation would stop with, and warnings.
    """
    faults = _faults(entry, mapper, kinds)
    if skip_empty and not all(has_segments(entry, kind) for kind in kinds):
        faults = _left_out(entry)
    return [Fault(severity, str(entry["file_name"]), message) for severity, message in faults]


def _left_out(entry: dict) -> Iterator[tuple[str, str]]:
    listed = entry.get("segments_info") or entry.get("annotations")
    what = "lists only crowds" if listed else "has no annotation"
    yield (
        "warning",
        f"{entry['file_name']} {what} and is left out of the training; annotate it, or set "
        'INPUT.EMPTY_SAMPLES to "keep".',
    )


def _faults(
    entry: dict, mapper: MaskClassificationMapper, kinds: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    size = image_size = None
    try:
        height, width = mapper.read_image(entry).shape[:2]
        size = image_size = height, width
    except UserError as error:
        yield "error", str(error)
        # Instances can still be read, by the size that the image should have.
        if "height" in entry and "width" in entry:
            size = entry["height"], entry["width"]
    if image_size is not None and 1 in image_size:
        yield (
            "warning",
            (
                f"Image file {entry['file_name']} has only {width}x{height} pixels; remove it "
                "unless that is meant."
            ),
        )
    for kind in kinds:
        if kind == "instance" and size is None:
            continue
        try:
            truth = mapper.read_ground_truth(
                entry, kind, size if kind == "instance" else image_size
            )
        except UserError as error:
            yield from _errors(entry, mapper, kind, size, error)
        else:
            yield from _without_pixels(entry, kind, truth)


def _errors(
    entry: dict,
    mapper: MaskClassificationMapper,
    kind: str,
    size: tuple[int, int] | None,
    first: UserError,
) -> Iterator[tuple[str, str]]:
    """All errors of a ground truth: of instances, which are read one by one, each has its own."""
    if kind != "instance":
        yield "error", str(first)
        return
    messages: dict[str, int] = {}
    for annotation in entry["annotations"]:
        try:
            mapper.read_ground_truth({**entry, "annotations": [annotation]}, kind, size)
        except UserError as error:
            messages[str(error)] = messages.get(str(error), 0) + 1
    for message, count in (messages or {str(first): 1}).items():
        yield "error", message if count == 1 else f"{count} times: {message}"


def _without_pixels(entry: dict, kind: str, truth: GroundTruth) -> Iterator[tuple[str, str]]:
    name = entry[GROUND_TRUTH_KEYS[kind]] if kind != "instance" else entry["file_name"]
    if kind == "semantic":
        if not len(truth.classes):
            yield (
                "warning",
                (
                    f"{name} has no pixel of any class and is skipped in training; label it or "
                    "remove it."
                ),
            )
        return
    lacking = np.setdiff1d(np.arange(len(truth.classes)), truth.nonempty())
    if not len(lacking):
        return
    listed = [
        segment
        for segment in entry["segments_info" if kind == "panoptic" else "annotations"]
        if not segment.get("iscrowd", 0)
    ]
    if kind == "panoptic":
        ids = ", ".join(str(listed[index]["id"]) for index in lacking[:5])
        more = " and more" if len(lacking) > 5 else ""
        yield (
            "warning",
            (
                f"{name} has no pixel of the listed segments {ids}{more}; remove them from "
                "segments_info."
            ),
        )
    else:
        boxes = ", ".join(str(listed[index].get("bbox", "without bbox")) for index in lacking[:3])
        yield (
            "warning",
            (
                f"{len(lacking)} instances of {name} have no pixel inside the image (boxes: {boxes}"
                f"{', ...' if len(lacking) > 3 else ''}); correct or remove them."
            ),
        )
