"""Ground truth and predictions drawn from a seed, as many as COCO has, to measure evaluators with.

Shapes are stars of 24 corners, so that run lengths and PNGs are about as long as those of real
objects; their sizes cover COCO's small, medium and large. A prediction is its ground truth,
displaced and scaled a little, sometimes of the wrong class.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as mask_util

__all__ = [
    "STUFF",
    "THINGS",
    "PanopticImage",
    "draw_instances",
    "draw_panoptic",
    "register_panoptic",
]

# COCO's numbers of classes.
THINGS, STUFF = 80, 53
CORNERS = 24


class PanopticImage(NamedTuple):
    """One image of :func:`draw_panoptic`.

    Attributes:
        truth: (height, width) int32 segment ids.
        truth_classes: class index by segment id.
        predicted: (height, width) int32 segment ids, 0 for void.
        predicted_classes: class index by predicted segment id.
    """

    truth: np.ndarray
    truth_classes: dict[int, int]
    predicted: np.ndarray
    predicted_classes: dict[int, int]


def draw_instances(
    seed: int,
    images: int,
    detections: int = 100,
    objects: int = 8,
    classes: int = THINGS,
    size: tuple[int, int] = (480, 640),
) -> tuple[dict, list[dict]]:
    """Draw a data set of instances and the detections of a model.

    There are crowds (every 25th object on average), images without objects, images without
    detections (every 20th), detections of nothing, and equal scores, which have two decimals.

    Args:
        seed: of the random numbers.
        images: their number.
        detections: per image.
        objects: mean number of objects per image, Poisson distributed.
        classes: number of categories, whose ids are 1, 2, ...
        size: height and width of the images in pixels.

    Returns:
        The content of a COCO instances JSON, with run lengths instead of polygons; and a list of
        entries in the COCO results format with ``bbox`` and ``segmentation``.
    """
    random = np.random.default_rng(seed)
    truth, found = [], []
    for image in range(1, images + 1):
        stars = [_star(random, size) for _ in range(random.poisson(objects))]
        labels = random.integers(1, classes + 1, len(stars)).tolist()
        for star, label in zip(stars, labels, strict=True):
            rle = _run_lengths(star, size)
            shape = {
                "segmentation": rle,
                "area": int(mask_util.area(rle)),
                "bbox": mask_util.toBbox(rle).tolist(),
                "iscrowd": int(random.random() < 0.04),
            }
            truth.append({"id": len(truth) + 1, "image_id": image, "category_id": label, **shape})
        if image % 20 == 0:
            continue
        for _ in range(detections):
            if stars and random.random() < 0.7:
                index = random.integers(len(stars))
                star, label = _displaced(random, stars[index]), labels[index]
            else:
                star, label = _star(random, size), int(random.integers(1, classes + 1))
            rle = _run_lengths(star, size)
            found.append(
                {
                    "image_id": image,
                    "category_id": label,
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "segmentation": rle,
                    "score": round(float(random.beta(0.5, 1.5)), 2),
                }
            )
    height, width = size
    content = {
        "images": [{"id": i, "height": height, "width": width} for i in range(1, images + 1)],
        "annotations": truth,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, classes + 1)],
    }
    return content, found


def draw_panoptic(
    seed: int,
    images: int,
    objects: int = 8,
    things: int = THINGS,
    stuff: int = STUFF,
    size: tuple[int, int] = (480, 640),
) -> Iterator[PanopticImage]:
    """Draw pairs of panoptic ground truth and prediction: stars on four bands of stuff.

    Args:
        seed: of the random numbers.
        images: their number.
        objects: mean number of things per image, Poisson distributed.
        things: number of thing classes, whose indices come first.
        stuff: number of stuff classes, at least 4.
        size: height and width of the images in pixels.
    """
    random = np.random.default_rng(seed)
    for _ in range(images):
        truth = np.zeros(size, dtype=np.int32)
        predicted = np.zeros(size, dtype=np.int32)
        classes = {}
        for band, label in enumerate(random.choice(stuff, 4, replace=False).tolist()):
            segment = 4096 + band
            classes[segment] = things + label
            # Bands end in waves, somewhat lower in the prediction.
            edge = band / 4 + 0.02 * np.sin(np.arange(size[1]) / 20)
            heights = np.arange(size[0])[:, None] / size[0]
            truth[heights >= edge] = segment
            predicted[heights >= edge + 0.02] = segment
        for number in range(random.poisson(objects)):
            star = _star(random, size)
            classes[number + 1] = int(random.integers(things))
            cv2.fillPoly(truth, [star.astype(np.int32)], number + 1)
            cv2.fillPoly(predicted, [_displaced(random, star).astype(np.int32)], number + 1)
        wrong = {
            segment: int(random.integers(things)) if segment < 4096 else label
            for segment, label in classes.items()
            if random.random() < 0.2
        }
        yield PanopticImage(
            truth,
            {segment: classes[segment] for segment in np.unique(truth).tolist() if segment},
            predicted,
            {
                segment: wrong.get(segment, classes[segment])
                for segment in np.unique(predicted).tolist()
                if segment
            },
        )


def register_panoptic(
    name: str, images: Sequence[PanopticImage], number: int, folder: Path
) -> None:
    """Write panoptic and semantic ground truth and register it as a data set.

    Args:
        name: of the data set.
        images: of :func:`draw_panoptic`, with its default numbers of classes.
        number: of images that the data set lists, with ids 0, 1, ... and file names ``<id>.jpg``;
            if there are more than ``images``, these repeat.
        folder: is made, for the files.
    """
    folder.mkdir()
    infos = []
    for index, image in enumerate(images):
        Image.fromarray(id2rgb(image.truth)).save(folder / f"{index}.png")
        lookup = np.full(image.truth.max() + 1, 255, dtype=np.uint8)
        lookup[list(image.truth_classes)] = list(image.truth_classes.values())
        Image.fromarray(lookup[image.truth]).save(folder / f"{index}_semantic.png")
        areas = dict(zip(*np.unique(image.truth, return_counts=True), strict=True))
        infos.append(
            [
                {"id": i, "category_id": c, "area": int(areas[i]), "iscrowd": 0}
                for i, c in image.truth_classes.items()
            ]
        )
    names = [f"class {i}" for i in range(THINGS + STUFF)]
    content = {
        "images": [{"id": i} for i in range(number)],
        "annotations": [
            {
                "image_id": i,
                "file_name": f"{i % len(images)}.png",
                "segments_info": infos[i % len(images)],
            }
            for i in range(number)
        ],
        "categories": [
            {"id": i, "name": name, "isthing": int(i < THINGS)} for i, name in enumerate(names)
        ],
    }
    (folder / "panoptic.json").write_text(json.dumps(content))
    entries = [
        {
            "file_name": f"{i}.jpg",
            "image_id": i,
            "sem_seg_file_name": str(folder / f"{i % len(images)}_semantic.png"),
        }
        for i in range(number)
    ]
    DatasetCatalog.register(name, lambda: entries)
    MetadataCatalog.get(name).set(
        panoptic_json=str(folder / "panoptic.json"),
        panoptic_root=str(folder),
        thing_dataset_id_to_contiguous_id={i: i for i in range(THINGS)},
        stuff_dataset_id_to_contiguous_id={i: i for i in range(THINGS, THINGS + STUFF)},
        stuff_classes=names,
        ignore_label=255,
    )


def _star(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(24, 2) corners x, y of a shape somewhere in the image, with a radius from 3 pixels to 0.4
    times the shorter side."""
    height, width = size
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    radius = np.exp(random.uniform(np.log(3), np.log(0.4 * min(size))))
    radii = radius * random.uniform(0.7, 1.3, CORNERS)
    centre = random.uniform((0, 0), (width, height))
    corners = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return corners.clip((0, 0), (width, height))


def _displaced(random: np.random.Generator, star: np.ndarray) -> np.ndarray:
    centre = star.mean(axis=0)
    extent = np.ptp(star, axis=0)
    scale = random.normal(1, 0.1)
    return centre + scale * (star - centre) + random.normal(0, 0.05, 2) * extent


def _run_lengths(star: np.ndarray, size: tuple[int, int]) -> dict:
    (rle,) = mask_util.frPyObjects([star.reshape(-1).tolist()], *size)
    return {"size": rle["size"], "counts": rle["counts"].decode()}
