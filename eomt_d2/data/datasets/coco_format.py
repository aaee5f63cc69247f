"""COCO's panoptic and instance files: categories to metadata, annotations to dataset dicts."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eomt_d2.data.datasets.annotation_file import (
    check_crowd,
    check_entry,
    check_folder,
    entries_of,
    images_by_id,
    path_below,
    read_json,
    shortened,
)
from eomt_d2.data.datasets.coco_instances import add_instances
from eomt_d2.data.datasets.faults import Fault, Faults
from eomt_d2.errors import UserError

__all__ = [
    "ids_to_rgb",
    "instance_metadata",
    "load_coco_instances",
    "load_coco_panoptic",
    "mask_box",
    "panoptic_metadata",
    "read_categories",
]


def read_categories(json_file: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The ``categories`` of a COCO JSON file, sorted by id.

    Raises:
        UserError: the file is missing or is not JSON, or its categories are absent, lack an id
            or a name, or share an id.
    """
    content = read_json(json_file)
    categories = content.get("categories") if isinstance(content, dict) else None
    if not categories or not isinstance(categories, list):
        raise UserError(f"'{json_file}' has no 'categories'; it must be a COCO annotation file.")
    for category in categories:
        if not isinstance(category, dict) or not {"id", "name"} <= category.keys():
            raise UserError(
                f"A category of '{json_file}' lacks 'id' or 'name': {shortened(category)}."
            )
        where = f"The category {shortened(category)} of '{json_file}'"
        check_entry(category, {"id": "whole", "name": "text"}, where)
        if category.get("isthing", 0) not in (0, 1):
            raise UserError(f"{where} has an 'isthing' that is neither 0 nor 1; correct it.")
        if "color" in category and not _is_color(category["color"]):
            raise UserError(f"{where} has a 'color' that is not [r, g, b] of 0-255; correct it.")
    if len({category["id"] for category in categories}) < len(categories):
        raise UserError(f"Two categories of '{json_file}' have the same id.")
    return sorted(categories, key=lambda category: category["id"])


def panoptic_metadata(categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Detectron2's "standard" panoptic metadata: one list of classes for things and stuff.

    A category's contiguous id is its position in ``categories``, thing or not, so thing ids need
    not be contiguous. ``stuff_dataset_id_to_contiguous_id`` holds every category, because the
    semantic evaluator looks there for the id of things too.

    Args:
        categories: with ``id``, ``name``, ``isthing`` and optionally ``color`` ([r, g, b]).

    Raises:
        UserError: a category lacks ``isthing``.
    """
    for category in categories:
        if "isthing" not in category:
            raise UserError(
                f"Category '{category['name']}' lacks 'isthing' (1 or 0), which panoptic "
                "categories need."
            )
    names = [category["name"] for category in categories]
    contiguous = {category["id"]: i for i, category in enumerate(categories)}
    metadata = {
        "thing_classes": names,
        "stuff_classes": names[:],
        "thing_dataset_id_to_contiguous_id": {
            c["id"]: contiguous[c["id"]] for c in categories if c["isthing"]
        },
        "stuff_dataset_id_to_contiguous_id": contiguous,
    }
    if all("color" in category for category in categories):
        colours = [list(category["color"]) for category in categories]
        metadata |= {"thing_colors": colours, "stuff_colors": colours[:]}
    return metadata


def instance_metadata(categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Detectron2's instance metadata; contiguous ids are positions in ``categories``."""
    metadata = {
        "thing_classes": [category["name"] for category in categories],
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(categories)},
    }
    if all("color" in category for category in categories):
        metadata["thing_colors"] = [list(category["color"]) for category in categories]
    return metadata


def load_coco_panoptic(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    panoptic_root: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    sem_seg_root: str | os.PathLike[str] | None = None,
    report: Callable[[Fault], None] | None = None,
) -> list[dict[str, Any]]:
    """Read a COCO panoptic JSON file.

    Unlike Detectron2's loader, which assumes ".jpg", an image's name is the one in ``images``.

    Args:
        report: gets every fault of the file; images that have one are then left out. None: the
            first one is raised.

    Returns:
        One dict per annotated image, sorted by image id: ``file_name``, ``image_id``, ``height``,
        ``width``, ``pan_seg_file_name``, ``sem_seg_file_name`` (with ``sem_seg_root``), and
        ``segments_info`` with contiguous ``category_id`` and ``isthing`` (bool).

    Raises:
        UserError: a file or folder is missing, or an annotation names an image or a category
            that the file does not have, or a file outside of the folders; or an entry is not what
            it has to be.
    """
    content = read_json(json_file)
    for folder in (image_root, panoptic_root, sem_seg_root):
        if folder is not None:
            check_folder(folder, json_file)
    things = metadata["thing_dataset_id_to_contiguous_id"]
    contiguous = {**metadata["stuff_dataset_id_to_contiguous_id"], **things}
    faults = Faults(json_file, report)
    images = images_by_id(content, json_file, faults)
    annotated = set()

    def record_of(annotation: Any, position: int) -> dict[str, Any]:
        where = f"Entry {position} of 'annotations' in '{json_file}'"
        check_entry(
            annotation, {"image_id": "id", "file_name": "text", "segments_info": "list"}, where
        )
        image = images.get(annotation["image_id"])
        if image is None:
            raise UserError(
                f"'{json_file}' annotates image {shortened(annotation['image_id'])}, not in it."
            )
        if image["id"] in annotated:
            raise UserError(
                f"'{json_file}' annotates image {shortened(image['id'])} twice; keep one of both."
            )
        annotated.add(image["id"])
        where = f"Image {shortened(image['id'])} of '{json_file}'"
        record = {
            "file_name": path_below(image_root, image["file_name"], json_file),
            "image_id": image["id"],
            "height": int(image["height"]),
            "width": int(image["width"]),
            "pan_seg_file_name": path_below(panoptic_root, annotation["file_name"], json_file),
            "segments_info": [
                _segment(segment, contiguous, things, where)
                for segment in annotation["segments_info"]
            ],
        }
        if sem_seg_root is not None:
            record["sem_seg_file_name"] = path_below(
                sem_seg_root, annotation["file_name"], json_file
            )
        return record

    dataset = []
    for position, annotation in enumerate(entries_of(content, "annotations", json_file)):
        with faults.collected():
            dataset.append(record_of(annotation, position))
    unannotated = len(images.keys() - annotated)
    if unannotated:
        faults.warning(
            f"{unannotated} of the {len(images)} images of '{json_file}' have no annotation and "
            "are left out; annotate or remove them."
        )
    return _checked_files(dataset, json_file, faults)


def load_coco_instances(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    report: Callable[[Fault], None] | None = None,
) -> list[dict[str, Any]]:
    """Read a COCO instance JSON file into Detectron2's instance dataset dicts.

    The ids are those of ``metadata``, not of the file, so that a file with other names for the
    same categories, or with some of them unused, gives the same classes. As in Detectron2's own
    loader, images without annotations are kept, annotations of images that are not listed and
    polygons of fewer than three points are left out, with a warning.

    Args:
        report: as for :func:`load_coco_panoptic`.

    Returns:
        One dict per image, sorted by image id: ``file_name``, ``image_id``, ``height``, ``width``
        and ``annotations``, of which each has ``category_id`` (contiguous), ``iscrowd`` and, where
        the file has them, ``segmentation`` and ``bbox`` with its ``bbox_mode``.

    Raises:
        UserError: a file or folder is missing, or an annotation has an unknown category, or an
            entry is not what it has to be.
    """
    if not Path(json_file).is_file():
        raise UserError(
            f"The annotation file '{json_file}' does not exist; see datasets/README.md."
        )
    check_folder(image_root, json_file)
    content = read_json(json_file)
    faults = Faults(json_file, report)
    records = {}
    for image_id, image in images_by_id(content, json_file, faults).items():
        with faults.collected():
            records[image_id] = {
                "file_name": path_below(image_root, image["file_name"], json_file),
                "height": int(image["height"]),
                "width": int(image["width"]),
                "image_id": image_id,
                "annotations": [],
            }
    add_instances(
        records,
        entries_of(content, "annotations", json_file),
        metadata["thing_dataset_id_to_contiguous_id"],
        json_file,
        faults,
    )
    return _checked_files(list(records.values()), json_file, faults)


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Colours of a panoptic PNG: (H, W) ids below 256^3 -> (H, W, 3) uint8, R + 256 G + 256^2 B."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1).astype(np.uint8)


def mask_box(mask: np.ndarray) -> list[int]:
    """[x, y, width, height] in pixels of a boolean (H, W) mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]


def _is_color(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return False
    return all(isinstance(channel, int) and 0 <= channel <= 255 for channel in value)


def _segment(
    segment: Any, contiguous: Mapping[int, int], things: Mapping[int, int], where: str
) -> dict[str, Any]:
    check_entry(segment, {"id": "whole", "category_id": "whole"}, f"A segment of {where}")
    category_id = segment["category_id"]
    if category_id not in contiguous:
        raise UserError(
            f"{where} has a segment of category {category_id}, which is not among the categories."
        )
    check_crowd(segment, f"A segment of {where}")
    return {
        **segment,
        "category_id": contiguous[category_id],
        "isthing": category_id in things,
    }


def _checked_files(
    dataset: list[dict[str, Any]], json_file: str | os.PathLike[str], faults: Faults
) -> list[dict[str, Any]]:
    """The data set itself, sorted, after a look at the files of its first image."""
    faults.raise_errors()
    if not dataset:
        faults.error(f"'{json_file}' has no annotated image.")
        faults.raise_errors()
        return dataset
    # Numbers before texts, which cannot be compared with each other.
    dataset.sort(key=lambda record: (isinstance(record["image_id"], str), record["image_id"]))
    if faults.raises:
        for key in ("file_name", "pan_seg_file_name", "sem_seg_file_name"):
            if key in dataset[0] and not Path(dataset[0][key]).is_file():
                raise UserError(f"'{dataset[0][key]}', needed by '{json_file}', does not exist.")
    return dataset
