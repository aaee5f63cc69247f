"""The three ADE20K scripts on a tree small enough to check by hand."""

import json

import numpy as np
import pytest
from panopticapi.evaluation import pq_compute
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools.coco import COCO

from eomt_d2.data.datasets.ade20k import ADE20K_CATEGORIES, ADE20K_THING_CATEGORIES
from eomt_d2.data.datasets.coco_format import (
    instance_metadata,
    load_coco_instances,
    load_coco_panoptic,
    panoptic_metadata,
)

# PNG values: 0 other, 1 wall (class 0), 3 sky (2), 8 bed (7, a thing).
LABEL = [[1, 1, 1, 3, 3], [1, 8, 8, 3, 3], [0, 8, 8, 0, 0]]
# Two beds (class 1) and a person (class 4); the semantic bed pixel (2, 2) is in no instance.
RED = [[0, 0, 0, 0, 0], [0, 1, 1, 4, 0], [0, 1, 0, 4, 0]]
GREEN = [[0, 0, 0, 0, 0], [0, 1, 2, 1, 0], [0, 1, 0, 1, 0]]


@pytest.fixture
def ade(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for split, folder in (("train", "training"), ("val", "validation")):
        for kind in ("images", "annotations", "annotations_instance"):
            (root / kind / folder).mkdir(parents=True)
        name = f"ADE_{split}_00000012"
        Image.new("RGB", (5, 3)).save(root / "images" / folder / f"{name}.jpg")
        Image.fromarray(np.array(LABEL, np.uint8)).save(
            root / "annotations" / folder / f"{name}.png"
        )
        instances = np.stack([RED, GREEN, np.zeros_like(RED)], axis=-1).astype(np.uint8)
        Image.fromarray(instances).save(root / "annotations_instance" / folder / f"{name}.png")
    return root


def run(run_script, ade, task):
    run_script(f"prepare_ade20k_{task}", "--root", ade.parent, "--workers", 1)


def test_sem_seg(run_script, ade):
    run(run_script, ade, "sem_seg")
    for folder, split in (("training", "train"), ("validation", "val")):
        file = ade / "annotations_detectron2" / folder / f"ADE_{split}_00000012.png"
        np.testing.assert_array_equal(
            np.asarray(Image.open(file)),
            [[0, 0, 0, 2, 2], [0, 7, 7, 2, 2], [255, 7, 7, 255, 255]],
        )


def test_panoptic(run_script, ade):
    run(run_script, ade, "panoptic")
    content = json.loads((ade / "ade20k_panoptic_val.json").read_text())
    assert content["images"] == [
        {"id": 12, "file_name": "ADE_val_00000012.jpg", "height": 3, "width": 5}
    ]
    assert content["categories"] == ADE20K_CATEGORIES
    (annotation,) = content["annotations"]
    assert (annotation["image_id"], annotation["file_name"]) == (12, "ADE_val_00000012.png")

    ids = rgb2id(np.asarray(Image.open(ade / "ade20k_panoptic_val" / "ADE_val_00000012.png")))
    segments = annotation["segments_info"]
    assert {segment["id"] for segment in segments} == set(np.unique(ids)) - {0}
    found = {tuple(map(tuple, np.argwhere(ids == s["id"]).tolist())): s for s in segments}
    wall = ((0, 0), (0, 1), (0, 2), (1, 0))
    sky = ((0, 3), (0, 4), (1, 4))
    beds, person = (((1, 1), (2, 1)), ((1, 2),)), ((1, 3), (2, 3))
    classes = {pixels: segment["category_id"] for pixels, segment in found.items()}
    assert classes == {wall: 0, sky: 2, beds[0]: 7, beds[1]: 7, person: 12}
    assert found[sky]["bbox"] == [3, 0, 2, 2]
    assert found[sky]["area"] == 3
    assert {segment["iscrowd"] for segment in segments} == {0}


def test_panoptic_is_read_by_our_loader_and_by_panopticapi(run_script, ade):
    run(run_script, ade, "panoptic")
    annotations, pngs = ade / "ade20k_panoptic_train.json", ade / "ade20k_panoptic_train"
    (record,) = load_coco_panoptic(
        annotations, ade / "images" / "training", pngs, panoptic_metadata(ADE20K_CATEGORIES)
    )
    things = [s["category_id"] for s in record["segments_info"] if s["isthing"]]
    assert sorted(things) == [7, 7, 12]
    result = pq_compute(str(annotations), str(annotations), str(pngs), str(pngs))
    assert (result["All"]["pq"], result["All"]["n"]) == (1.0, 4)
    assert (result["Things"]["n"], result["Stuff"]["n"]) == (2, 2)


def test_instance(run_script, ade):
    run(run_script, ade, "instance")
    coco = COCO(str(ade / "ade20k_instance_val.json"))
    assert len(coco.getCatIds()) == 100
    assert coco.loadImgs([12])[0]["file_name"] == "ADE_val_00000012.jpg"
    masks = {}
    for annotation in coco.loadAnns(coco.getAnnIds([12])):
        pixels = np.argwhere(coco.annToMask(annotation)).tolist()
        masks[tuple(map(tuple, pixels))] = annotation["category_id"]
        assert annotation["area"] == len(pixels)
    assert masks == {((1, 1), (2, 1)): 7, ((1, 2),): 7, ((1, 3), (2, 3)): 12}

    (record,) = load_coco_instances(
        ade / "ade20k_instance_val.json",
        ade / "images" / "validation",
        instance_metadata(ADE20K_THING_CATEGORIES),
    )
    # Bed is the first thing, person the fourth.
    assert sorted(x["category_id"] for x in record["annotations"]) == [0, 0, 3]


@pytest.mark.parametrize("task", ["sem_seg", "panoptic", "instance"])
def test_second_run_writes_nothing(run_script, ade, task):
    run(run_script, ade, task)
    before = {p: p.stat().st_mtime_ns for p in ade.rglob("*") if p.is_file()}
    run(run_script, ade, task)
    assert {p: p.stat().st_mtime_ns for p in ade.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("task", "folder"),
    [
        ("sem_seg", "annotations"),
        ("panoptic", "annotations"),
        ("instance", "annotations_instance"),
    ],
)
def test_missing_folder_is_one_sentence(run_script, tmp_path, capsys, task, folder):
    with pytest.raises(SystemExit) as exit:
        run_script(f"prepare_ade20k_{task}", "--root", tmp_path, "--workers", 1)
    assert exit.value.code == 2
    expected = tmp_path / "ADEChallengeData2016" / folder / "training"
    assert f"'{expected}' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_broken_instance_file_is_named_and_no_json_is_left(run_script, ade, capsys, task):
    file = ade / "annotations_instance" / "training" / "ADE_train_00000012.png"
    Image.new("RGB", (5, 3), (101, 1, 0)).save(file)
    with pytest.raises(SystemExit) as exit:
        run(run_script, ade, task)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert str(file) in error and "class 101 is above 100" in error
    assert not (ade / f"ade20k_{task}_train.json").exists()


def test_missing_instance_file_is_named(run_script, ade, capsys):
    (ade / "annotations_instance" / "training" / "ADE_train_00000012.png").unlink()
    with pytest.raises(SystemExit):
        run(run_script, ade, "panoptic")
    assert "annotations_instance/training/ADE_train_00000012.png" in capsys.readouterr().err
