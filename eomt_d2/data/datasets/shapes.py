"""The shapes data sets: their files in COCO's formats.

Layout below the data set's folder, for each ``split`` of ``train`` and ``val``::

    {split}/000000000001.png             images, RGB
    panoptic_{split}/000000000001.png    segment ids, R + 256 G + 256^2 B
    semantic_{split}/000000000001.png    contiguous classes, one byte per pixel
    annotations/panoptic_{split}.json
    annotations/instances_{split}.json   things only, RLE of what is visible
    shapes.json                          the parameters that made all this; written last
"""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

from eomt_d2.data.datasets.coco_format import ids_to_rgb, mask_box
from eomt_d2.data.datasets.shapes_scene import CLASS_SETS, Scene, draw_scene
from eomt_d2.errors import UserError

__all__ = ["SHAPES_CATEGORIES", "make_shapes", "scene_of"]

# Of each class set, things first. Ids have gaps, as COCO's have, so that forgetting to convert them
# shows.
_CATEGORY_IDS = {
    "shapes": (1, 3, 4, 7, 8, 92, 95, 100),
    "other_shapes": (2, 5, 6, 9, 91, 97),
}
_CATEGORIES: dict[str, list[dict[str, Any]]] = {
    name: [
        {"id": category_id, "name": label, "supercategory": kind, "isthing": int(kind == "shape")}
        for (kind, label), category_id in zip(
            [("shape", thing) for thing in class_set.things]
            + [("texture", stuff) for stuff in class_set.stuff],
            _CATEGORY_IDS[name],
            strict=True,
        )
    ]
    for name, class_set in CLASS_SETS.items()
}
SHAPES_CATEGORIES = _CATEGORIES["shapes"]

_SPLITS = ("train", "val")
_STAMP = "shapes.json"
# Raised whenever the same seed would give other files than before.
_VERSION = 2


def make_shapes(
    output: str | os.PathLike[str],
    *,
    class_set: str = "shapes",
    num_train: int = 2000,
    num_val: int = 128,
    size: int = 128,
    seed: int = 0,
    num_workers: int | None = None,
) -> Path:
    """Write the data set, unless a complete one with the same parameters is there already.

    Everything is written to a folder beside ``output``, which takes its place when complete; an
    interrupted run leaves nothing that could be mistaken for a data set.

    Args:
        output: folder of the data set. One that this function made before is replaced.
        class_set: a key of :data:`~eomt_d2.data.datasets.shapes_scene.CLASS_SETS`.
        num_train, num_val: images per split, each at least 1.
        size: side of the images in pixels, at least 128.
        seed: non-negative; images are drawn from (class set, seed, split, index), so splits never
            share a scene, and a longer data set begins with the images of a shorter one.
        num_workers: processes; by default one per core, at most 8. Does not change the result.

    Returns:
        ``output`` as a path.

    Raises:
        UserError: a parameter is out of range, or ``output`` holds something else.
    """
    if class_set not in CLASS_SETS:
        raise UserError(
            f"The class set of the shapes is {class_set!r}; use {' or '.join(CLASS_SETS)}."
        )
    for name, value, least in (
        ("number of training images", num_train, 1),
        ("number of validation images", num_val, 1),
        ("image size", size, 128),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UserError(f"The {name} of the shapes data set is {value}; use {least} or more.")

    output = Path(output)
    stamp: dict[str, Any] = {
        "version": _VERSION,
        "classes": class_set,
        "size": size,
        "seed": seed,
        "train": num_train,
        "val": num_val,
    }
    if _is_complete(output, stamp):
        return output
    _check_replaceable(output)

    output.parent.mkdir(parents=True, exist_ok=True)
    partial_root = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        partial_root.chmod(0o755)
        for split in _SPLITS:
            _write_split(partial_root, split, stamp, num_workers)
        (partial_root / _STAMP).write_text(json.dumps(stamp) + "\n")
        _put_in_place(partial_root, output, stamp)
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)
    return output


def scene_of(seed: int, split: str, index: int, size: int, class_set: str = "shapes") -> Scene:
    """The scene of image ``index`` (from 0) of a split ("train" or "val")."""
    rng = _generator(class_set, seed, split, index, "scene")
    return draw_scene(rng, size, CLASS_SETS[class_set])


def _generator(
    class_set: str, seed: int, split: str, index: int, purpose: str
) -> np.random.Generator:
    """Random numbers of one image that no other image, class set or purpose shares."""
    stream = 2 * list(CLASS_SETS).index(class_set) + ("scene", "ids").index(purpose)
    return np.random.default_rng([seed, _SPLITS.index(split), index, stream])


def _folders(split: str) -> dict[str, str]:
    return {"image": split, "panoptic": f"panoptic_{split}", "semantic": f"semantic_{split}"}


def _is_complete(root: Path, stamp: dict[str, Any]) -> bool:
    try:
        if json.loads((root / _STAMP).read_text()) != stamp:
            return False
    except (OSError, json.JSONDecodeError):
        return False
    for split in _SPLITS:
        for task in ("panoptic", "instances"):
            if not (root / "annotations" / f"{task}_{split}.json").is_file():
                return False
        names = {_file_name(index) for index in range(stamp[split])}
        for folder in _folders(split).values():
            if not (root / folder).is_dir() or not names.issubset(os.listdir(root / folder)):
                return False
    return True


def _check_replaceable(output: Path) -> None:
    if not output.exists():
        return
    ours = {"annotations", _STAMP, *(f for split in _SPLITS for f in _folders(split).values())}
    if not output.is_dir() or not ours.issuperset(os.listdir(output)):
        raise UserError(
            f"'{output}' holds files that are not a shapes data set; give another folder."
        )


def _put_in_place(made: Path, output: Path, stamp: dict[str, Any]) -> None:
    # Another process may have been faster; somebody may be reading its files already.
    if _is_complete(output, stamp):
        return
    if output.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{output.name}-old-", dir=output.parent))
        os.replace(output, old / "data")
        shutil.rmtree(old)
    os.replace(made, output)


def _write_split(root: Path, split: str, stamp: dict[str, Any], num_workers: int | None) -> None:
    for folder in ("annotations", *_folders(split).values()):
        (root / folder).mkdir(exist_ok=True)

    count, size = stamp[split], stamp["size"]
    write = partial(_write_image, root, split, stamp["classes"], size, stamp["seed"])
    num_workers = min(8, os.cpu_count() or 1) if num_workers is None else num_workers
    if num_workers > 1:
        with ProcessPoolExecutor(num_workers) as pool:
            records = list(pool.map(write, range(count), chunksize=16))
    else:
        records = [write(index) for index in range(count)]

    images = [
        {"id": i + 1, "file_name": _file_name(i), "height": size, "width": size}
        for i in range(count)
    ]
    panoptic = [
        {"image_id": i + 1, "file_name": _file_name(i), "segments_info": segments}
        for i, (segments, _) in enumerate(records)
    ]
    instances = [
        {"id": number, "image_id": i + 1, **instance}
        for number, (i, instance) in enumerate(
            ((i, instance) for i, (_, found) in enumerate(records) for instance in found), start=1
        )
    ]
    categories = _CATEGORIES[stamp["classes"]]
    things = [category for category in categories if category["isthing"]]
    for task, listed, annotations in (
        ("panoptic", categories, panoptic),
        ("instances", things, instances),
    ):
        content = {"images": images, "categories": listed, "annotations": annotations}
        (root / "annotations" / f"{task}_{split}.json").write_text(json.dumps(content))


def _write_image(
    root: Path, split: str, class_set: str, size: int, seed: int, index: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write the three PNG files of one image; give its segments and its instances."""
    scene = scene_of(seed, split, index, size, class_set)
    # Ids over all three bytes, as COCO's, which are the colours of its pictures.
    rng = _generator(class_set, seed, split, index, "ids")
    ids = np.sort(rng.choice(2**24 - 1, len(scene.classes), replace=False)) + 1

    id_map = ids[scene.segments]
    labels = np.asarray(scene.classes, dtype=np.uint8)[scene.segments]
    for kind, pixels in (
        ("image", scene.image),
        ("panoptic", ids_to_rgb(id_map)),
        ("semantic", labels),
    ):
        Image.fromarray(pixels).save(root / _folders(split)[kind] / _file_name(index))
    return _annotations(scene, ids.tolist(), _CATEGORIES[class_set])


def _annotations(
    scene: Scene, ids: Sequence[int], categories: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    segments, instances = [], []
    for i, (segment_id, label) in enumerate(zip(ids, scene.classes, strict=True)):
        mask = scene.segments == i
        common = {
            "category_id": categories[label]["id"],
            "area": int(mask.sum()),
            "bbox": mask_box(mask),
            "iscrowd": 0,
        }
        segments.append({"id": segment_id, **common})
        if categories[label]["isthing"]:
            rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
            rle["counts"] = rle["counts"].decode("ascii")
            instances.append({**common, "segmentation": rle})
    return segments, instances


def _file_name(index: int) -> str:
    return f"{index + 1:012d}.png"
