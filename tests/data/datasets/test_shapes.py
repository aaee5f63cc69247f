"""The files of the shapes data set agree with each other and with COCO's formats."""

import hashlib
import json
import os

import numpy as np
import pytest
from panopticapi.evaluation import pq_compute
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools import mask as mask_util

from eomt_d2.data.datasets import shapes
from eomt_d2.data.datasets.shapes import SHAPES_CATEGORIES, make_shapes, scene_of
from eomt_d2.errors import UserError

CLASS_OF = {1: 0, 3: 1, 4: 2, 7: 3, 8: 4, 92: 5, 95: 6, 100: 7}
THINGS = {1, 3, 4, 7, 8}


@pytest.fixture
def folder(shapes_root):
    return shapes_root / "shapes"


def read_json(folder, name):
    return json.loads((folder / "annotations" / f"{name}.json").read_text())


def read_ids(path):
    return rgb2id(np.asarray(Image.open(path)))


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_categories():
    assert [c["name"] for c in SHAPES_CATEGORIES if c["isthing"]] == [
        "circle",
        "square",
        "triangle",
        "star",
        "ring",
    ]
    assert [c["id"] for c in SHAPES_CATEGORIES] == sorted(CLASS_OF)
    assert {c["id"] for c in SHAPES_CATEGORIES if c["isthing"]} == THINGS


@pytest.mark.parametrize(("split", "count"), [("train", 6), ("val", 4)])
def test_panoptic_json_and_png_agree_both_ways(folder, split, count):
    content = read_json(folder, f"panoptic_{split}")
    assert len(content["images"]) == len(content["annotations"]) == count
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        assert annotation["image_id"] == image["id"]
        ids = read_ids(folder / f"panoptic_{split}" / annotation["file_name"])
        assert ids.shape == (image["height"], image["width"]) == (128, 128)
        segments = annotation["segments_info"]
        assert {segment["id"] for segment in segments} == set(np.unique(ids))
        assert 0 not in ids
        for segment in segments:
            rows, columns = np.nonzero(ids == segment["id"])
            x, y, width, height = segment["bbox"]
            assert segment["area"] == len(rows)
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width - 1, y + height - 1) == (columns.max(), rows.max())
            assert segment["iscrowd"] == 0


def test_panoptic_ids_use_all_three_bytes(folder):
    segments = [
        segment
        for annotation in read_json(folder, "panoptic_train")["annotations"]
        for segment in annotation["segments_info"]
    ]
    assert max(segment["id"] for segment in segments) > 256**2
    assert len({segment["id"] % 256 for segment in segments}) > 10


def test_semantic_labels_are_the_classes_of_the_segments(folder):
    for annotation in read_json(folder, "panoptic_train")["annotations"]:
        ids = read_ids(folder / "panoptic_train" / annotation["file_name"])
        labels = np.asarray(Image.open(folder / "semantic_train" / annotation["file_name"]))
        assert labels.dtype == np.uint8 and labels.shape == ids.shape
        for segment in annotation["segments_info"]:
            assert (labels[ids == segment["id"]] == CLASS_OF[segment["category_id"]]).all()


def test_instances_are_the_things_of_the_panoptic_annotation(folder):
    instances = read_json(folder, "instances_train")
    assert {category["id"] for category in instances["categories"]} == THINGS
    numbers = [instance["id"] for instance in instances["annotations"]]
    assert numbers == list(range(1, len(numbers) + 1))
    for annotation in read_json(folder, "panoptic_train")["annotations"]:
        ids = read_ids(folder / "panoptic_train" / annotation["file_name"])
        things = [s for s in annotation["segments_info"] if s["category_id"] in THINGS]
        found = [i for i in instances["annotations"] if i["image_id"] == annotation["image_id"]]
        assert len(found) == len(things) >= 2
        for thing, instance in zip(things, found, strict=True):
            mask = mask_util.decode(instance["segmentation"]) > 0
            assert (mask == (ids == thing["id"])).all()
            for key in ("category_id", "area", "bbox", "iscrowd"):
                assert instance[key] == thing[key]


def test_files_hold_the_scenes(folder):
    scene = scene_of(0, "val", 2, 128)
    image = np.asarray(Image.open(folder / "val" / "000000000003.png"))
    assert (image == scene.image).all()


def test_splits_share_no_image(folder):
    hashes = digests(folder)
    train = {digest for name, digest in hashes.items() if name.startswith("train/")}
    val = {digest for name, digest in hashes.items() if name.startswith("val/")}
    assert (len(train), len(val)) == (6, 4)
    assert not train & val


def test_panopticapi_reads_it(folder):
    """The official evaluation gives the ground truth itself PQ 100 in every class present."""
    annotations, pngs = folder / "annotations" / "panoptic_val.json", folder / "panoptic_val"
    result = pq_compute(str(annotations), str(annotations), str(pngs), str(pngs))
    assert result["All"]["pq"] == 1.0
    assert result["Things"]["n"] + result["Stuff"]["n"] == result["All"]["n"] >= 6


def test_result_depends_on_neither_run_nor_processes(folder, tmp_path):
    again = make_shapes(tmp_path / "again", num_train=6, num_val=4, num_workers=2)
    assert digests(again) == digests(folder)


def test_longer_data_set_begins_with_the_shorter_one(folder, tmp_path):
    short = make_shapes(tmp_path / "short", num_train=2, num_val=1, num_workers=1)
    pictures = {k: v for k, v in digests(short).items() if k.endswith(".png")}
    assert len(pictures) == 9
    assert pictures.items() <= digests(folder).items()


@pytest.fixture
def small(tmp_path):
    def make(**changes):
        arguments = {"num_train": 2, "num_val": 1, "num_workers": 1, **changes}
        return make_shapes(tmp_path / "shapes", **arguments)

    return make


def test_complete_data_set_is_reused(small, monkeypatch):
    before = digests(small())
    monkeypatch.setattr(shapes, "draw_scene", None)  # drawing again would fail
    assert digests(small()) == before


def test_incomplete_data_set_is_made_again(small):
    folder = small()
    before = digests(folder)
    (folder / "panoptic_train" / "000000000002.png").unlink()
    assert digests(small()) == before


def test_other_parameters_make_another_data_set(small, tmp_path):
    before = digests(small())
    after = digests(small(seed=1))
    assert before.keys() == after.keys()
    assert before["train/000000000001.png"] != after["train/000000000001.png"]
    assert os.listdir(tmp_path) == ["shapes"]


def test_other_class_sets_have_their_own_categories(small):
    folder = small(class_set="other_shapes")
    things = {"cross": 2, "diamond": 5, "dome": 6, "frame": 9}
    panoptic, instances = (
        {c["name"]: c["id"] for c in read_json(folder, name)["categories"]}
        for name in ("panoptic_train", "instances_train")
    )
    assert instances == things
    assert panoptic == {**things, "zigzag": 91, "bricks": 97}
    for annotation in read_json(folder, "panoptic_train")["annotations"]:
        ids = read_ids(folder / "panoptic_train" / annotation["file_name"])
        labels = np.asarray(Image.open(folder / "semantic_train" / annotation["file_name"]))
        for segment in annotation["segments_info"]:
            label = [2, 5, 6, 9, 91, 97].index(segment["category_id"])
            assert (labels[ids == segment["id"]] == label).all()


def test_interrupted_run_leaves_nothing(small, tmp_path, monkeypatch):
    def draw_one_then_stop(rng, size, class_set, draw=shapes.draw_scene, drawn=[]):  # noqa: B006
        if drawn:
            raise KeyboardInterrupt
        drawn.append(1)
        return draw(rng, size, class_set)

    monkeypatch.setattr(shapes, "draw_scene", draw_one_then_stop)
    with pytest.raises(KeyboardInterrupt):
        small()
    assert os.listdir(tmp_path) == []


def test_the_faster_of_two_processes_wins(small, tmp_path, monkeypatch):
    def draw_after_the_other(rng, size, class_set, draw=shapes.draw_scene):
        monkeypatch.setattr(shapes, "draw_scene", draw)
        small()
        marks.append((tmp_path / "shapes" / "shapes.json").stat().st_ino)
        return draw(rng, size, class_set)

    marks = []
    monkeypatch.setattr(shapes, "draw_scene", draw_after_the_other)
    folder = small()
    assert marks == [(folder / "shapes.json").stat().st_ino]
    assert os.listdir(tmp_path) == ["shapes"]


def test_folder_with_other_files_is_left_alone(small, tmp_path):
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not a shapes data set"):
        small()
    assert (tmp_path / "shapes" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train": 0}, "number of training images .* is 0; use 1"),
        ({"num_val": 0}, "number of validation images .* is 0; use 1"),
        ({"size": 96}, "image size .* is 96; use 128"),
        ({"seed": -1}, "seed .* is -1; use 0"),
        ({"class_set": "letters"}, "class set .* is 'letters'; use shapes or other_shapes"),
    ],
)
def test_parameters_out_of_range_are_named(small, change, message):
    with pytest.raises(UserError, match=message):
        small(**change)
