"""COCO's panoptic and instance files: categories to metadata, annotations to dataset dicts."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.coco import load_coco_json

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
    content = _read_json(json_file)
    categories = content.get("categories") if isinstance(content, dict) else None
    if not categories:
        raise UserError(f"'{json_file}' has no 'categories'; it must be a COCO annotation file.")
    for category in categories:
        if not {"id", "name"} <= category.keys():
            raise UserError(f"A category of '{json_file}' lacks 'id' or 'name': {category}.")
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
) -> list[dict[str, Any]]:
    """Read a COCO panoptic JSON file.

    Unlike Detectron2's loader, which assumes ".jpg", an image's name is the one in ``images``.

    Returns:
        One dict per annotated image, sorted by image id: ``file_name``, ``image_id``, ``height``,
        ``width``, ``pan_seg_file_name``, ``sem_seg_file_name`` (with ``sem_seg_root``), and
        ``segments_info`` with contiguous ``category_id`` and ``isthing`` (bool).

    Raises:
        UserError: a file or folder is missing, or an annotation names an image or a category
            that the file does not have.
    """
    content = _read_json(json_file)
    for folder in (image_root, panoptic_root, sem_seg_root):
        if folder is not None:
            _check_folder(folder, json_file)
    things = metadata["thing_dataset_id_to_contiguous_id"]
    contiguous = {**metadata["stuff_dataset_id_to_contiguous_id"], **things}
    images = {image["id"]: image for image in content["images"]}

    dataset = []
    for annotation in sorted(content["annotations"], key=lambda a: a["image_id"]):
        image = images.get(annotation["image_id"])
        if image is None:
            raise UserError(f"'{json_file}' annotates image {annotation['image_id']}, not in it.")
        segments = []
        for segment in annotation["segments_info"]:
            category_id = segment["category_id"]
            if category_id not in contiguous:
                raise UserError(
                    f"Image {image['id']} of '{json_file}' has a segment of category "
                    f"{category_id}, which is not among the categories."
                )
            segments.append(
                {
                    **segment,
                    "category_id": contiguous[category_id],
                    "isthing": category_id in things,
                }
            )
        record = {
            "file_name": os.path.join(image_root, image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "pan_seg_file_name": os.path.join(panoptic_root, annotation["file_name"]),
            "segments_info": segments,
        }
        if sem_seg_root is not None:
            record["sem_seg_file_name"] = os.path.join(sem_seg_root, annotation["file_name"])
        dataset.append(record)
    return _checked_files(dataset, json_file)


def load_coco_instances(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    metadata: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Read a COCO instance JSON file into Detectron2's instance dataset dicts.

    The ids are those of ``metadata``, not of the file, so that a file with other names for the
    same categories, or with some of them unused, gives the same classes.

    Raises:
        UserError: a file or folder is missing, or an annotation has an unknown category.
    """
    if not Path(json_file).is_file():
        raise UserError(
            f"The annotation file '{json_file}' does not exist; see datasets/README.md."
        )
    _check_folder(image_root, json_file)
    contiguous = metadata["thing_dataset_id_to_contiguous_id"]
    dataset = load_coco_json(str(json_file), str(image_root))
    for record in dataset:
        for annotation in record["annotations"]:
            category_id = annotation["category_id"]
            if category_id not in contiguous:
                raise UserError(
                    f"Image {record['image_id']} of '{json_file}' has an instance of category "
                    f"{category_id}, which is not among the data set's categories."
                )
            annotation["category_id"] = contiguous[category_id]
    return _checked_files(dataset, json_file)


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Colours of a panoptic PNG: (H, W) ids below 256^3 -> (H, W, 3) uint8, R + 256 G + 256^2 B."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1).astype(np.uint8)


def mask_box(mask: np.ndarray) -> list[int]:
    """[x, y, width, height] in pixels of a boolean (H, W) mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]


def _read_json(json_file: str | os.PathLike[str]) -> Any:
    try:
        with open(json_file, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise UserError(
            f"The annotation file '{json_file}' cannot be read ({error.strerror}); see "
            "datasets/README.md."
        ) from error
    except ValueError as error:
        raise UserError(f"The annotation file '{json_file}' is not JSON: {error}.") from error


def _check_folder(folder: str | os.PathLike[str], json_file: str | os.PathLike[str]) -> None:
    if not Path(folder).is_dir():
        raise UserError(
            f"The folder '{folder}', which belongs to '{json_file}', does not exist; see "
            "datasets/README.md."
        )


def _checked_files(
    dataset: list[dict[str, Any]], json_file: str | os.PathLike[str]
) -> list[dict[str, Any]]:
    """The data set itself, after a look at the files of its first image."""
    if not dataset:
        raise UserError(f"'{json_file}' has no annotated image.")
    for key in ("file_name", "pan_seg_file_name", "sem_seg_file_name"):
        if key in dataset[0] and not Path(dataset[0][key]).is_file():
            raise UserError(f"'{dataset[0][key]}', needed by '{json_file}', does not exist.")
    return dataset
