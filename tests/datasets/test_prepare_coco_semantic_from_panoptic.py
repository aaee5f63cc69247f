"""Semantic labels from panoptic PNG files, by hand and on real COCO images."""

import json
import shutil

import numpy as np
import pytest
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image

NAME = "prepare_coco_semantic_from_panoptic"


@pytest.fixture
def coco(tmp_path):
    """A tree of one val image: void, category 5 (a crowd and an object), category 9."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "panoptic_val2017").mkdir()
    ids = np.array([[0, 70000, 70000], [300, 1, 1]])
    Image.fromarray(id2rgb(ids)).save(root / "panoptic_val2017" / "a.png")
    segments = [
        {"id": 70000, "category_id": 9, "iscrowd": 0},
        {"id": 300, "category_id": 5, "iscrowd": 0},
        {"id": 1, "category_id": 5, "iscrowd": 1},
    ]
    content = {
        "images": [],
        "categories": [{"id": i, "name": str(i), "isthing": 1} for i in (9, 2, 5)],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
    }
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(content))
    return root


def test_classes_are_positions_of_sorted_category_ids(run_script, coco):
    run_script(NAME, "--root", coco.parent, "--workers", 1)
    labels = np.asarray(Image.open(coco / "panoptic_semseg_val2017" / "a.png"))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [[255, 2, 2], [1, 1, 1]])


def test_real_coco(run_script, test_data, tmp_path):
    source = test_data / "coco"
    json_file = source / "annotations" / "panoptic_val2017_mini.json"
    panoptic = source / "panoptic_val2017_mini"
    arguments = ("--panoptic-json", json_file, "--panoptic-root", panoptic, "--output", tmp_path)
    run_script(NAME, *arguments, "--workers", 1)

    content = json.loads(json_file.read_text())
    order = sorted(category["id"] for category in content["categories"])
    assert len(list(tmp_path.glob("*.png"))) == len(content["annotations"]) == 11
    for annotation in content["annotations"]:
        labels = np.asarray(Image.open(tmp_path / annotation["file_name"]))
        ids = rgb2id(np.asarray(Image.open(panoptic / annotation["file_name"])))
        areas = np.zeros(256, dtype=int)
        for segment in annotation["segments_info"]:
            areas[order.index(segment["category_id"])] += segment["area"]
        areas[255] = (ids == 0).sum()
        np.testing.assert_array_equal(np.bincount(labels.ravel(), minlength=256), areas)


def test_interrupted_run_is_continued(run_script, coco):
    shutil.copy(coco / "panoptic_val2017" / "a.png", coco / "panoptic_val2017" / "b.png")
    file = coco / "annotations" / "panoptic_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"].append({**content["annotations"][0], "file_name": "b.png"})
    file.write_text(json.dumps(content))
    done = coco / "panoptic_semseg_val2017" / "a.png"
    done.parent.mkdir()
    done.write_bytes(b"made before")
    run_script(NAME, "--root", coco.parent, "--workers", 1)
    assert done.read_bytes() == b"made before"
    np.testing.assert_array_equal(
        np.asarray(Image.open(done.with_name("b.png"))), [[255, 2, 2], [1, 1, 1]]
    )


def test_png_without_annotation_is_named(run_script, coco, capsys):
    shutil.copy(coco / "panoptic_val2017" / "a.png", coco / "panoptic_val2017" / "b.png")
    with pytest.raises(SystemExit) as exit:
        run_script(NAME, "--root", coco.parent, "--workers", 1)
    assert exit.value.code == 2
    assert "b.png' is not annotated" in capsys.readouterr().err


def test_no_coco_there(run_script, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        run_script(NAME, "--root", tmp_path)
    assert exit.value.code == 2
    assert "neither panoptic_train2017 nor panoptic_val2017" in capsys.readouterr().err


def test_options_that_go_together(run_script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_script(NAME, "--output", tmp_path)
    assert "go together" in capsys.readouterr().err
