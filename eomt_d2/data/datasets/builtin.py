"""The data sets that Detectron2 does not register itself, at their usual places below one root."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from eomt_d2.data.datasets.ade20k import ADE20K_CATEGORIES, ADE20K_THING_CATEGORIES
from eomt_d2.data.datasets.coco_format import (
    instance_metadata,
    load_coco_instances,
    load_coco_panoptic,
    panoptic_metadata,
)
from eomt_d2.data.datasets.semantic_folders import load_semantic_folders
from eomt_d2.data.datasets.shapes import SHAPES_CATEGORIES

__all__ = ["register_builtin", "register_instances", "register_panoptic", "register_semantic"]


def register_builtin(root: Path) -> None:
    """Register shapes, ADE20K panoptic and instance, and COCO panoptic with semantic truth.

    A name that is taken is left alone: the official ``mask2former`` package registers the same
    ADE20K and COCO names when it is imported.

    Args:
        root: folder of all data sets; nothing below it is read before a data set is loaded.
    """
    taken = set(DatasetCatalog.list())
    for name, register in {**_shapes(root), **_ade20k(root), **_coco(root)}.items():
        if name not in taken:
            register(name)


def register_panoptic(
    name: str,
    categories: list[dict[str, Any]],
    *,
    image_root: Path,
    panoptic_root: Path,
    panoptic_json: Path,
    instances_json: Path | None = None,
    sem_seg_root: Path | None = None,
    evaluator_type: str = "coco_panoptic_seg",
) -> None:
    """Register a panoptic data set in COCO's format under ``name``.

    The metadata has ``json_file`` and ``sem_seg_root`` only where given, which tells the
    evaluation whether it can report AP and mIoU.
    """
    metadata = panoptic_metadata(categories)
    load = partial(
        load_coco_panoptic, panoptic_json, image_root, panoptic_root, metadata, sem_seg_root
    )
    optional = {"json_file": instances_json, "sem_seg_root": sem_seg_root}
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        image_root=str(image_root),
        panoptic_root=str(panoptic_root),
        panoptic_json=str(panoptic_json),
        evaluator_type=evaluator_type,
        ignore_label=255,
        label_divisor=1000,
        **{key: str(path) for key, path in optional.items() if path is not None},
        **metadata,
    )


def register_instances(
    name: str, categories: list[dict[str, Any]], *, image_root: Path, json_file: Path
) -> None:
    """Register an instance data set in COCO's format under ``name``."""
    metadata = instance_metadata(categories)
    DatasetCatalog.register(name, partial(load_coco_instances, json_file, image_root, metadata))
    MetadataCatalog.get(name).set(
        image_root=str(image_root), json_file=str(json_file), evaluator_type="coco", **metadata
    )


def register_semantic(
    name: str,
    classes: list[str],
    *,
    image_root: Path,
    label_root: Path,
    image_suffix: str = ".jpg",
    label_suffix: str = ".png",
    ignore_label: int = 255,
) -> None:
    """Register a semantic data set of images and label PNG files under ``name``."""
    load = partial(load_semantic_folders, image_root, label_root, image_suffix, label_suffix)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        image_root=str(image_root),
        sem_seg_root=str(label_root),
        stuff_classes=list(classes),
        evaluator_type="sem_seg",
        ignore_label=ignore_label,
    )


_Registrations = dict[str, Callable[[str], None]]


def _shapes(root: Path) -> _Registrations:
    root = root / "shapes"
    things = [category for category in SHAPES_CATEGORIES if category["isthing"]]
    registrations: _Registrations = {}
    for split in ("train", "val"):
        instances_json = root / "annotations" / f"instances_{split}.json"
        registrations[f"shapes_{split}_panoptic"] = partial(
            register_panoptic,
            categories=SHAPES_CATEGORIES,
            image_root=root / split,
            panoptic_root=root / f"panoptic_{split}",
            panoptic_json=root / "annotations" / f"panoptic_{split}.json",
            instances_json=instances_json,
            sem_seg_root=root / f"semantic_{split}",
        )
        registrations[f"shapes_{split}_instance"] = partial(
            register_instances,
            categories=things,
            image_root=root / split,
            json_file=instances_json,
        )
        registrations[f"shapes_{split}_semantic"] = partial(
            register_semantic,
            classes=[category["name"] for category in SHAPES_CATEGORIES],
            image_root=root / split,
            label_root=root / f"semantic_{split}",
            image_suffix=".png",
        )
    return registrations


def _ade20k(root: Path) -> _Registrations:
    root = root / "ADEChallengeData2016"
    registrations: _Registrations = {}
    for split, folder in (("train", "training"), ("val", "validation")):
        registrations[f"ade20k_panoptic_{split}"] = partial(
            register_panoptic,
            categories=ADE20K_CATEGORIES,
            image_root=root / "images" / folder,
            panoptic_root=root / f"ade20k_panoptic_{split}",
            panoptic_json=root / f"ade20k_panoptic_{split}.json",
            instances_json=root / f"ade20k_instance_{split}.json",
            sem_seg_root=root / "annotations_detectron2" / folder,
            evaluator_type="ade20k_panoptic_seg",
        )
        registrations[f"ade20k_instance_{split}"] = partial(
            register_instances,
            categories=ADE20K_THING_CATEGORIES,
            image_root=root / "images" / folder,
            json_file=root / f"ade20k_instance_{split}.json",
        )
    return registrations


def _coco(root: Path) -> _Registrations:
    root = root / "coco"
    return {
        f"coco_2017_{split}_panoptic_with_sem_seg": partial(
            register_panoptic,
            categories=COCO_CATEGORIES,
            image_root=root / f"{split}2017",
            panoptic_root=root / f"panoptic_{split}2017",
            panoptic_json=root / "annotations" / f"panoptic_{split}2017.json",
            instances_json=root / "annotations" / f"instances_{split}2017.json",
            sem_seg_root=root / f"panoptic_semseg_{split}2017",
        )
        for split in ("train", "val")
    }
