"""Whatever happened to an annotation file: it can be used, or one of our sentences says why not."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from eomt_d2.data import MaskClassificationMapper
from eomt_d2.data.datasets.coco_format import (
    instance_metadata,
    load_coco_instances,
    load_coco_panoptic,
    panoptic_metadata,
    read_categories,
)
from eomt_d2.errors import UserError
from tests.properties.mutations import JUNK, mutated

QUICK = settings(
    max_examples=250,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

IMAGES = [
    {"id": 1, "file_name": "a.png", "height": 6, "width": 8},
    {"id": 2, "file_name": "b.png", "height": 6, "width": 8},
]
CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1, "color": [1, 2, 3]},
    {"id": 4, "name": "sky", "isthing": 0, "color": [4, 5, 6]},
]
PANOPTIC = {
    "images": IMAGES,
    "categories": CATEGORIES,
    "annotations": [
        {
            "image_id": image["id"],
            "file_name": image["file_name"],
            "segments_info": [
                {"id": 7, "category_id": 4, "area": 24, "bbox": [0, 0, 4, 6], "iscrowd": 0},
                {"id": 300, "category_id": 1, "area": 24, "bbox": [4, 0, 4, 6], "iscrowd": 0},
            ],
        }
        for image in IMAGES
    ],
}
MASKS = [
    [[1, 1, 5, 1, 5, 4, 1, 4]],
    {"size": [6, 8], "counts": [7, 3, 3, 3, 32]},
    {"size": [6, 8], "counts": "7330m0"},
]
INSTANCES = {
    "images": IMAGES,
    "categories": CATEGORIES,
    "annotations": [
        {
            "id": number,
            "image_id": 1 + number % 2,
            "category_id": (1, 4)[number % 2],
            "iscrowd": number // 3,
            "area": 12.0,
            "bbox": [1.0, 1.0, 4.0, 3.0],
            "segmentation": mask,
        }
        for number, mask in enumerate([*MASKS, MASKS[1]])
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two images and their panoptic PNG files, left half 7 and right half 300 (44 + 256)."""
    root = tmp_path_factory.mktemp("data")
    for name in ("images", "panoptic"):
        (root / name).mkdir()
    for image in IMAGES:
        Image.new("RGB", (8, 6), (90, 60, 30)).save(root / "images" / image["file_name"])
        ids = Image.new("RGB", (8, 6), (7, 0, 0))
        ids.paste((44, 1, 0), (4, 0, 8, 6))
        ids.save(root / "panoptic" / image["file_name"])
    return root


def load_panoptic(file, root, **options):
    metadata = panoptic_metadata(read_categories(file))
    return load_coco_panoptic(file, root / "images", root / "panoptic", metadata, **options)


def load_instances(file, root, **options):
    metadata = instance_metadata(read_categories(file))
    return load_coco_instances(file, root / "images", metadata, **options)


def use(load, document, root):
    """Load the document as training would and as the check does, and map its images."""
    file = root / "annotations.json"
    file.write_text(json.dumps(document))
    mapper = MaskClassificationMapper(is_train=True, image_size=16, min_scale=1.0, max_scale=1.5)
    mapped = 0
    faults = []
    for options in ({}, {"report": faults.append}):
        try:
            records = load(file, root, **options)
        except UserError as error:
            assert str(error)
            continue
        for record in records:
            assert str(root / "images") in record["file_name"] and ".." not in record["file_name"]
            try:
                mapped += mapper(record) is not None
            except UserError as error:
                assert str(error)
    return mapped, faults


@pytest.mark.parametrize("load, document", [(load_panoptic, PANOPTIC), (load_instances, INSTANCES)])
def test_the_unchanged_document_can_be_used(folder, load, document):
    assert use(load, document, folder) == (4, [])


@given(document=mutated(PANOPTIC))
@QUICK
def test_panoptic(folder, document):
    use(load_panoptic, document, folder)


@given(document=mutated(INSTANCES))
@QUICK
def test_instances(folder, document):
    use(load_instances, document, folder)


@pytest.mark.parametrize("load", [load_panoptic, load_instances])
@given(document=JUNK)
@settings(QUICK, max_examples=60)
def test_no_annotation_file_at_all(folder, load, document):
    use(load, document, folder)


@given(segmentation=st.one_of(mutated({"s": MASKS}).map(lambda d: d.get("s")), JUNK))
@QUICK
def test_segmentations(folder, segmentation):
    """One annotation after the other, so that the first fault hides none behind it."""
    for mask in segmentation if isinstance(segmentation, list) else [segmentation]:
        document = {**INSTANCES, "annotations": [{**INSTANCES["annotations"][0]}]}
        document["annotations"][0]["segmentation"] = mask
        use(load_instances, document, folder)


@given(text=st.text(max_size=40) | st.text("[]{}:,\"'0123456789eE+-. \n", max_size=40))
@settings(QUICK, max_examples=150)
def test_text_that_is_no_json(folder, text):
    file = folder / "text.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError):
        load_instances(file, folder)
