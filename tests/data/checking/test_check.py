"""One made image for each fault: found by the check, and said by the training path."""

import json
import logging
import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from eomt_d2 import add_eomt_config
from eomt_d2.data import MaskClassificationMapper, build_train_loader
from eomt_d2.data.checking import check_dataset
from eomt_d2.data.datasets import register_datasets
from eomt_d2.data.datasets.faults import Fault
from eomt_d2.errors import UserError
from tests.data.checking import faulty_data


@pytest.fixture
def data(tmp_path, catalogs):
    """Write one of the faulty data sets and give (name, config to train on it)."""

    def make(kind):
        getattr(faulty_data, f"write_{kind}")(tmp_path / kind)
        cfg = get_cfg()
        add_eomt_config(cfg)
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.SOLVER.IMS_PER_BATCH = 1
        cfg.INPUT.IMAGE_SIZE = 16
        cfg.INPUT.MIN_SCALE = 0.5
        name = f"faulty_{kind}"
        entries = faulty_data.register_entries_of(tmp_path)
        cfg.DATASETS.REGISTER = [entry for entry in entries if entry["NAME"] == name]
        cfg.DATASETS.TRAIN = (name,)
        register_datasets(cfg)
        return name, cfg

    return make


def by_file(check):
    faults = {}
    for fault in check.faults:
        faults.setdefault(Path(fault.file).name, []).append(fault)
    return faults


def train_on(cfg, file_name):
    """Map one image as training does."""
    mapper = MaskClassificationMapper(cfg, is_train=True)
    (entry,) = (
        entry
        for entry in DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
        if Path(entry["file_name"]).name == file_name
    )
    return mapper(entry)


INSTANCE_ERRORS = {
    name: sentence
    for name, (_, sentence) in (faulty_data.BAD_IMAGES | faulty_data.BAD_INSTANCES).items()
}
PANOPTIC_ERRORS = {
    "unlisted.png": "has a segment with id 7 that is not in its segments_info",
    "twice.png": "has the id 7 twice",
    "impossible_id.png": "has the id 16777216; an id has to be a whole number from 1 to 16777215",
    "negative_id.png": "has the id -7; an id has to be",
    "missing_png.png": "does not exist",
    "other_size.png": "has 8x6 pixels, but its ground truth",
}
SEMANTIC_ERRORS = {
    "beyond.png": "has the label 2, but the data set has 2 classes",
    "colour.png": "is no label map: its pixels are of mode RGB",
    "other_size.png": "has 8x6 pixels, but its ground truth",
}
ERRORS = {"instances": INSTANCE_ERRORS, "panoptic": PANOPTIC_ERRORS, "semantic": SEMANTIC_ERRORS}
WARNINGS = {
    "instances": {
        "unannotated.png": "has no annotation and is left out",
        "crowd.png": "lists only crowds and is left out",
        "outside.png": "1 instances of .* have no pixel inside the image",
    },
    "panoptic": {
        "without_pixels.png": "has no pixel of the listed segments 9;",
        "nothing.png": "has no annotation and is left out",
        "crowd.png": "lists only crowds and is left out",
    },
    "semantic": {
        "ignored.png": "has no pixel of any class and is skipped",
        "one_pixel.png": "has only 1x1 pixels",
        "images": "1 files of .* have no partner",
    },
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("workers", [1, 2])
def test_every_fault_is_found(data, kind, workers):
    name, cfg = data(kind)
    check = check_dataset(cfg, name, "TRAIN", num_workers=workers)
    found = by_file(check)
    assert found.keys() == ERRORS[kind].keys() | WARNINGS[kind].keys()
    for file, sentence in ERRORS[kind].items():
        (fault,) = found[file]
        assert fault.severity == "error" and sentence in fault.message
        assert file in fault.message and len(fault.message.splitlines()) == 1
    for file, sentence in WARNINGS[kind].items():
        (fault,) = found[file]
        assert fault.severity == "warning" and re.search(sentence, fault.message)
    assert check.num_images == check.num_checked == len(DatasetCatalog.get(name))


@pytest.mark.parametrize("kind, file", [(kind, file) for kind in ERRORS for file in ERRORS[kind]])
def test_training_says_the_same(data, kind, file):
    _, cfg = data(kind)
    with pytest.raises(UserError) as caught:
        train_on(cfg, file)
    assert ERRORS[kind][file] in str(caught.value) and file in str(caught.value)


@pytest.mark.parametrize(
    "kind, file",
    [("instances", "outside.png"), ("panoptic", "without_pixels.png"), ("panoptic", "gray_png.png"),
     ("semantic", "one_pixel.png")],
)  # fmt: skip
def test_training_goes_on_with_what_is_only_warned_of(data, kind, file):
    _, cfg = data(kind)
    assert len(train_on(cfg, file)["instances"]) == 1


def test_a_clean_data_set_has_no_faults(data, tmp_path):
    name, cfg = data("semantic")
    for folder in ("images", "labels"):
        for file in (tmp_path / "semantic" / folder).iterdir():
            if file.name != "good.png":
                file.unlink()
    check = check_dataset(cfg, name, "TRAIN", num_workers=1)
    assert check == (name, "TRAIN", 1, 1, [])


def test_every_bad_annotation_of_an_image_is_told(data, tmp_path):
    name, cfg = data("instances")
    file = tmp_path / "instances/instances.json"
    content = json.loads(file.read_text())
    bad = [{"segmentation": [[1e9, 1, 5, 1, 5, 4]]}, {"segmentation": {"counts": [48]}}, {}, {}]
    content["annotations"] += [
        faulty_data.instance(0, 1000 + i, **values) for i, values in enumerate(bad)
    ]
    file.write_text(json.dumps(content))
    messages = [f.message for f in by_file(check_dataset(cfg, name, "TRAIN"))["good.png"]]
    assert len(messages) == 3
    assert any(message.startswith("2 times: An instance annotation of") for message in messages)


def test_limit(data):
    name, cfg = data("instances")
    check = check_dataset(cfg, name, "TRAIN", num_workers=1, limit=2)
    assert (check.num_images, check.num_checked) == (22, 2)
    assert by_file(check).keys() == {"missing.png"}


def test_faults_of_the_annotation_file_come_with_those_of_the_images(data, tmp_path):
    name, cfg = data("panoptic")
    file = tmp_path / "panoptic/panoptic.json"
    content = json.loads(file.read_text())
    content["images"].append(content["images"][0])
    content["annotations"][1]["segments_info"][0]["category_id"] = 99
    content["annotations"][2]["file_name"] = "../../secret.png"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"have the same id 0.*\(2 more faults; tools/check_data"):
        DatasetCatalog.get(name)
    found = by_file(check_dataset(cfg, name, "TRAIN", num_workers=1))
    messages = " ".join(fault.message for fault in found["panoptic.json"])
    for part in ("have the same id 0", "category 99, which is not among", "'../../secret.png'"):
        assert part in messages
    assert found["missing_png.png"][0].severity == "error"


def test_a_data_set_without_a_segment(data, tmp_path):
    name, cfg = data("instances")
    file = tmp_path / "instances/instances.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    file.write_text(json.dumps(content))
    faults = check_dataset(cfg, name, "TRAIN", num_workers=1).faults
    assert any("No image of faulty_instances has a segment" in f.message for f in faults)
    with pytest.raises(UserError, match="No image of faulty_instances has a segment"):
        build_train_loader(cfg)


def test_evaluated_ground_truth_is_what_the_tasks_need(data, tmp_path):
    name, cfg = data("panoptic")
    seen = check_dataset(cfg, name, "TEST", ("panoptic",), num_workers=1)
    # An image of which training would make no use is evaluated nevertheless.
    errors = {Path(f.file).name for f in seen.faults if f.severity == "error"}
    assert errors == PANOPTIC_ERRORS.keys() | {"nothing.png"}
    unseen = check_dataset(cfg, name, "TEST", ("semantic",), num_workers=1)
    assert unseen.faults == []


def test_instances_of_a_panoptic_data_set_come_from_their_own_file(data, tmp_path):
    name, cfg = data("panoptic")
    content = faulty_data.write_instances(tmp_path / "instances")
    content["images"] = content["images"][:1]
    content["annotations"] = [
        faulty_data.instance(0, 0, segmentation=faulty_data.BOX),
        faulty_data.instance(0, 1, category_id=9),
    ]
    file = tmp_path / "instances/instances.json"
    file.write_text(json.dumps(content))
    (tmp_path / "panoptic/images/good.png").rename(tmp_path / "panoptic/images/moved.png")
    (tmp_path / "panoptic/images/good.png").write_bytes(faulty_data.png())
    MetadataCatalog.get(name).json_file = str(file)
    faults = check_dataset(cfg, name, "TEST", ("instance",), num_workers=1).faults
    assert faults == [
        Fault(
            "error",
            str(file),
            f"Image 0 of '{file}' has an instance of category 9, which is not among the data "
            "set's categories.",
        )
    ]


def test_skipping_trains_on_what_is_left(data, caplog):
    _, cfg = data("semantic")
    cfg.DATALOADER.ON_BAD_SAMPLE = "skip"
    loader = iter(build_train_loader(cfg))
    with caplog.at_level(logging.WARNING):
        files = {Path(next(loader)[0]["file_name"]).name for _ in range(12)}
    assert files == {"good.png", "one_pixel.png"}
    skipped = [r.message for r in caplog.records if r.message.startswith("Bad sample skipped")]
    assert len(skipped) == 3  # each bad image once, however often it came up
    assert "bad images so far: 3" in skipped[-1]
