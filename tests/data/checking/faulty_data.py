"""Small data sets with one image for every fault."""

import io
import json

import numpy as np
from PIL import Image

CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1},
    {"id": 4, "name": "sky", "isthing": 0},
]
BOX = [[1.0, 1.0, 5.0, 1.0, 5.0, 4.0, 1.0, 4.0]]
SIZE = (8, 6)  # width, height


def png(mode="RGB", size=SIZE, color=0):
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, "PNG")
    return file.getvalue()


def noise_png():
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


# Image files that cannot be used -> what the message says of them.
BAD_IMAGES = {
    "missing.png": (None, "does not exist"),
    "empty.png": (b"", "is empty (0 bytes)"),
    "truncated.png": (noise_png()[:-60], "cannot be read"),
    "corrupt.png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "cannot be read"),
    "text.jpg": (b"<html>404</html>", "it is none of JPEG, PNG"),
    "other_size.png": (png(size=(8, 7)), "has 8x7 pixels, but its annotation file says 8x6"),
}

# Annotations of an instance file -> what the message says of their image.
BAD_INSTANCES = {
    "box_without_mask.png": ({"bbox": [1, 1, 4, 3]}, "has no usable segmentation"),
    "nan.png": ({"segmentation": [[float("nan"), 1, 5, 1, 5, 4]]}, "no finite number"),
    "infinite.png": ({"segmentation": [[1e400, 1, 5, 1, 5, 4]]}, "no finite number"),
    "far_outside.png": (
        {"segmentation": [[1, 1, 1e9, 1, 5, 4]]},
        "reaches from 1 to 1e+09, far outside",
    ),
    "text_points.png": ({"segmentation": [["1", 1, 5, 1, 5, 4]]}, "no finite number"),
    "rle_of_other_size.png": (
        {"segmentation": {"size": [8, 6], "counts": [48]}},
        "is for an image of 6x8 pixels, but the image has 8x6",
    ),
    "huge_rle.png": (
        {"segmentation": {"size": [10**9, 10**9], "counts": [10**18]}},
        "is for an image of 1000000000x1000000000 pixels",
    ),
    "short_rle.png": ({"segmentation": {"size": [6, 8], "counts": [40]}}, "do not add up"),
    "negative_rle.png": ({"segmentation": {"size": [6, 8], "counts": [60, -12]}}, "do not add"),
    "empty_rle.png": ({"segmentation": {"size": [6, 8], "counts": ""}}, "do not add up"),
    "cut_rle.png": ({"segmentation": {"size": [6, 8], "counts": "oo"}}, "do not add up"),
    "sizeless_rle.png": ({"segmentation": {"counts": [48]}}, "has no usable size"),
}


def instance(image_id, number, **values):
    return {
        "id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0,
        "area": 12, "bbox": [1, 1, 4, 3], **values,
    }  # fmt: skip


def write_instances(folder):
    """An instance data set: one good image and one for every fault of a single image."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []

    def add(name, content, *annotated):
        if content is not None:
            (folder / "images" / name).write_bytes(content)
        images.append({"id": len(images), "file_name": name, "height": SIZE[1], "width": SIZE[0]})
        for values in annotated:
            annotations.append(instance(images[-1]["id"], len(annotations), **values))

    good = {"segmentation": BOX}
    add("good.png", png(), good)
    for name, (content, _) in BAD_IMAGES.items():
        add(name, content, good)
    for name, (values, _) in BAD_INSTANCES.items():
        add(name, png(), good, values)
    add("unannotated.png", png())
    add("crowd.png", png(), {**good, "iscrowd": 1})
    add("outside.png", png(), good, {"segmentation": [[20, 1, 25, 1, 25, 4]]})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES[:1]}
    (folder / "instances.json").write_text(json.dumps(content))
    return content


def write_panoptic(folder):
    """A panoptic data set; the PNG of each image has the id 7 everywhere."""
    for name in ("images", "panoptic"):
        (folder / name).mkdir(parents=True)
    segment = {"id": 7, "category_id": 4, "iscrowd": 0, "area": 48, "bbox": [0, 0, 8, 6]}
    faults = {
        "good": [segment],
        "unlisted": [{**segment, "id": 8}],
        "without_pixels": [segment, {**segment, "id": 9}],
        "twice": [segment, segment],
        "impossible_id": [segment, {**segment, "id": 1 << 24}],
        "negative_id": [segment, {**segment, "id": -7}],
        "nothing": [],
        "crowd": [{**segment, "iscrowd": 1}],
        "missing_png": [segment],
        "gray_png": [{**segment, "id": 0x070707}],
        "other_size": [segment],
    }
    images, annotations = [], []
    for number, (name, segments) in enumerate(faults.items()):
        (folder / "images" / f"{name}.png").write_bytes(png())
        label = {"gray_png": png("L", SIZE, 7), "other_size": png("RGB", (6, 8), (7, 0, 0))}
        if name != "missing_png":
            file = folder / "panoptic" / f"{name}.png"
            file.write_bytes(label.get(name, png("RGB", SIZE, (7, 0, 0))))
        images.append({"id": number, "file_name": f"{name}.png", "height": 6, "width": 8})
        annotations.append(
            {"image_id": number, "file_name": f"{name}.png", "segments_info": segments}
        )
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "panoptic.json").write_text(json.dumps(content))
    return content


def write_semantic(folder):
    """A semantic data set of the classes 0 and 1."""
    labels = {
        "good": png("L", SIZE, 1),
        "beyond": png("L", SIZE, 2),
        "colour": png("RGB", SIZE, (1, 1, 1)),
        "ignored": png("L", SIZE, 255),
        "other_size": png("L", (8, 7), 1),
        "one_pixel": png("L", (1, 1), 1),
    }
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for name, label in labels.items():
        size = (1, 1) if name == "one_pixel" else SIZE
        (folder / "images" / f"{name}.png").write_bytes(png(size=size))
        (folder / "labels" / f"{name}.png").write_bytes(label)
    (folder / "images" / "unpaired.png").write_bytes(png())


def register_entries_of(folder):
    """Entries of DATASETS.REGISTER for the three data sets, where they have been written."""
    return [
        {"NAME": "faulty_instances", "TYPE": "coco_instances",
         "IMAGE_ROOT": str(folder / "instances/images"),
         "JSON": str(folder / "instances/instances.json")},
        {"NAME": "faulty_panoptic", "TYPE": "coco_panoptic",
         "IMAGE_ROOT": str(folder / "panoptic/images"),
         "PANOPTIC_ROOT": str(folder / "panoptic/panoptic"),
         "PANOPTIC_JSON": str(folder / "panoptic/panoptic.json")},
        {"NAME": "faulty_semantic", "TYPE": "semantic",
         "IMAGE_ROOT": str(folder / "semantic/images"),
         "LABEL_ROOT": str(folder / "semantic/labels"),
         "CLASSES": ["cat", "sky"], "IMAGE_SUFFIX": ".png"},
    ]  # fmt: skip
