"""The ``annotations`` of a COCO instance file, for the images that they belong to."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.structures import BoxMode

from eomt_d2.data.datasets.annotation_file import check_crowd, check_entry, shortened
from eomt_d2.data.datasets.faults import Faults
from eomt_d2.errors import UserError

__all__ = ["add_instances"]


def add_instances(
    records: Mapping[int | str, dict[str, Any]],
    annotations: Sequence[Any],
    contiguous: Mapping[int, int],
    json_file: str | os.PathLike[str],
    faults: Faults,
) -> None:
    """Append each annotation to the ``annotations`` of its image.

    Args:
        records: image id -> dataset dict with a list ``annotations``.
        annotations: as they stand in the file.
        contiguous: category id in the file -> class.
        json_file: for messages.
        faults: gets what is wrong with single annotations.
    """
    keys = {"id": "id", "image_id": "id", "category_id": "whole"}
    ids = set()
    strangers = without_area = without_polygon = 0
    for position, annotation in enumerate(annotations):
        with faults.collected():
            check_entry(annotation, keys, f"Entry {position} of 'annotations' in '{json_file}'")
            if annotation["id"] in ids:
                raise UserError(
                    f"Two annotations of '{json_file}' have the same id "
                    f"{shortened(annotation['id'])}; give each its own."
                )
            ids.add(annotation["id"])
            record = records.get(annotation["image_id"])
            if record is None:
                strangers += 1
                continue
            where = f"Image {shortened(annotation['image_id'])} of '{json_file}'"
            instance = _instance(annotation, contiguous, where)
            without_area += not _is_number(annotation.get("area"))
            if instance.get("segmentation") == []:
                without_polygon += 1
                continue
            record["annotations"].append(instance)
    for count, what in (
        (strangers, "belong to images that the file does not list, and are left out"),
        (without_polygon, "have only polygons of fewer than 3 points, and are left out"),
        (without_area, "have no 'area', without which their AP cannot be evaluated"),
    ):
        if count:
            faults.warning(
                f"{count} of the {len(annotations)} annotations of '{json_file}' {what}; correct "
                "or remove them."
            )


def _instance(annotation: dict, contiguous: Mapping[int, int], where: str) -> dict[str, Any]:
    """An annotation in Detectron2's format; no polygon is left in an empty ``segmentation``."""
    category_id = annotation["category_id"]
    if category_id not in contiguous:
        raise UserError(
            f"{where} has an instance of category {category_id}, which is not among the data "
            "set's categories."
        )
    check_crowd(annotation, f"An instance of {where}")
    if annotation.get("ignore"):
        raise UserError(
            f"{where} has an instance with 'ignore', which is not supported; use iscrowd 1 or "
            "remove the instance."
        )
    instance: dict[str, Any] = {
        "iscrowd": int(annotation.get("iscrowd", 0)),
        "category_id": contiguous[category_id],
    }
    if "bbox" in annotation:
        box = annotation["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise UserError(
                f"An instance of {where} has the bbox {shortened(box)}; it has to be four numbers, "
                "x, y, width and height."
            )
        instance |= {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS}
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list) and segmentation:
        instance["segmentation"] = [
            polygon
            for polygon in segmentation
            if not isinstance(polygon, list) or (len(polygon) % 2 == 0 and len(polygon) >= 6)
        ]
    elif segmentation:
        instance["segmentation"] = segmentation
    return instance


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # A whole number may be too large for a float.
    return number and (isinstance(value, int) or math.isfinite(value))
