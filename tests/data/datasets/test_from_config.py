"""Data sets described in DATASETS.REGISTER, on real COCO images."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from panopticapi.utils import rgb2id
from PIL import Image

from eomt_d2.config import add_eomt_config
from eomt_d2.data.datasets import register_datasets
from eomt_d2.data.datasets.from_config import register_entries
from eomt_d2.errors import UserError

PANOPTIC = {
    "NAME": "mini_panoptic",
    "TYPE": "coco_panoptic",
    "IMAGE_ROOT": "coco/val2017",
    "PANOPTIC_ROOT": "coco/panoptic_val2017_mini",
    "PANOPTIC_JSON": "coco/annotations/panoptic_val2017_mini.json",
    "INSTANCES_JSON": "coco/annotations/instances_val2017_mini.json",
}
INSTANCES = {
    "NAME": "mini_instances",
    "TYPE": "coco_instances",
    "IMAGE_ROOT": "coco/val2017",
    "JSON": "coco/annotations/instances_val2017_mini.json",
}
SEMANTIC = {
    "NAME": "mini_semantic",
    "TYPE": "semantic",
    "IMAGE_ROOT": "ade20k/images",
    "LABEL_ROOT": "ade20k/annotations_detectron2",
    "CLASSES": [f"class {i}" for i in range(150)],
}


@pytest.fixture
def config():
    cfg = get_cfg()
    add_eomt_config(cfg)
    return cfg


def test_lists_of_mappings_survive_a_config(config, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({"DATASETS": {"REGISTER": [PANOPTIC, SEMANTIC]}}))
    config.merge_from_file(str(file))
    assert config.DATASETS.REGISTER == [PANOPTIC, SEMANTIC]

    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(config.clone().dump())
    again = get_cfg()
    add_eomt_config(again)
    again.merge_from_file(str(dumped))
    assert again.DATASETS.REGISTER == [PANOPTIC, SEMANTIC]


def test_entries_can_be_given_on_the_command_line(config):
    config.merge_from_list(["DATASETS.REGISTER", str([INSTANCES])])
    assert config.DATASETS.REGISTER == [INSTANCES]


def test_coco_panoptic(catalogs, test_data):
    register_entries([PANOPTIC], test_data)
    metadata = MetadataCatalog.get("mini_panoptic")
    assert len(metadata.stuff_classes) == 133
    things = metadata.thing_dataset_id_to_contiguous_id
    assert sorted(things.values()) == list(range(80))
    assert (things[1], things[90]) == (0, 79)
    assert metadata.stuff_dataset_id_to_contiguous_id[200] == 132
    assert metadata.json_file == str(test_data / PANOPTIC["INSTANCES_JSON"])
    assert metadata.get("sem_seg_root") is None

    records = DatasetCatalog.get("mini_panoptic")
    assert len(records) == 11
    assert sum(len(r["segments_info"]) for r in records) == 157
    assert sum(s["iscrowd"] for r in records for s in r["segments_info"]) == 3
    by_id = {record["image_id"]: record for record in records}
    assert (by_id[1503]["width"], by_id[1503]["height"]) == (320, 240)


def test_coco_panoptic_ground_truth_reaches_pq_100(catalogs, test_data):
    register_entries([PANOPTIC], test_data)
    evaluator = COCOPanopticEvaluator("mini_panoptic")
    evaluator.reset()
    for record in DatasetCatalog.get("mini_panoptic"):
        ids = rgb2id(np.asarray(Image.open(record["pan_seg_file_name"])))
        segments = [s for s in record["segments_info"] if not s["iscrowd"]]
        ids[~np.isin(ids, [s["id"] for s in segments])] = 0
        info = [{k: s[k] for k in ("id", "category_id", "isthing")} for s in segments]
        evaluator.process([record], [{"panoptic_seg": (torch.as_tensor(ids), info)}])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == 100


def test_coco_instances(catalogs, test_data):
    register_entries([INSTANCES], test_data)
    metadata = MetadataCatalog.get("mini_instances")
    assert metadata.evaluator_type == "coco"
    assert (metadata.thing_classes[0], metadata.thing_classes[79]) == ("person", "toothbrush")
    records = DatasetCatalog.get("mini_instances")
    assert len(records) == 11
    objects = [x for record in records for x in record["annotations"]]
    assert len(objects) == 109
    assert sum(isinstance(x["segmentation"], list) for x in objects) == 26


def test_semantic(catalogs, test_data):
    register_entries([{**SEMANTIC, "IGNORE_LABEL": 254}], test_data)
    metadata = MetadataCatalog.get("mini_semantic")
    assert metadata.evaluator_type == "sem_seg"
    assert metadata.ignore_label == 254
    assert len(metadata.stuff_classes) == 150
    (first, *_), count = DatasetCatalog.get("mini_semantic"), 3
    assert len(DatasetCatalog.get("mini_semantic")) == count
    assert first["file_name"].endswith("images/validation/ADE_val_00000001.jpg")
    assert first["sem_seg_file_name"].endswith(
        "annotations_detectron2/validation/ADE_val_00000001.png"
    )


def test_relative_paths_start_at_detectron2_datasets(catalogs, test_data, config, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(test_data))
    config.DATASETS.REGISTER = [INSTANCES]
    register_datasets(config)
    assert len(DatasetCatalog.get("mini_instances")) == 11


def test_relative_paths_start_here_otherwise(catalogs, test_data, config, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(test_data)
    config.DATASETS.REGISTER = [INSTANCES]
    register_datasets(config)
    assert len(DatasetCatalog.get("mini_instances")) == 11


def test_example_of_the_readme(catalogs, test_data, config, tmp_path, monkeypatch):
    readme = Path(__file__).parents[3] / "datasets" / "README.md"
    (example,) = re.findall(r"```yaml\n(.*?)```", readme.read_text(), re.DOTALL)
    (tmp_path / "example.yaml").write_text(example)
    monkeypatch.setenv("EOMT_TEST_DATA", str(test_data.resolve()))
    config.merge_from_file(str(tmp_path / "example.yaml"))
    register_datasets(config)
    assert config.DATASETS.TRAIN == ("mini_panoptic",)
    assert len(DatasetCatalog.get("mini_panoptic")) == 11
    assert len(DatasetCatalog.get("mini_instances")) == 11


def test_the_same_entry_twice_is_fine(catalogs, test_data):
    register_entries([INSTANCES], test_data)
    register_entries([INSTANCES], test_data)
    assert len(DatasetCatalog.get("mini_instances")) == 11


def test_another_entry_of_the_same_name_is_not(catalogs, test_data):
    register_entries([INSTANCES], test_data)
    with pytest.raises(UserError, match="'mini_instances': the name belongs to another data set"):
        register_entries([{**SEMANTIC, "NAME": "mini_instances"}], test_data)


def test_a_name_of_detectron2_is_refused(catalogs, test_data):
    with pytest.raises(UserError, match="'coco_2017_val': the name belongs to another"):
        register_entries([{**INSTANCES, "NAME": "coco_2017_val"}], test_data)


def without(entry, key):
    return {k: v for k, v in entry.items() if k != key}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("mini", "Entry 0 .* must be a mapping with a NAME, not mini"),
        (without(INSTANCES, "NAME"), "Entry 0 .* must be a mapping with a NAME"),
        (without(INSTANCES, "TYPE"), "TYPE is None, but must be one of coco_panoptic, coco_inst"),
        ({**INSTANCES, "TYPE": "voc"}, "TYPE is 'voc', but must be one of"),
        (without(INSTANCES, "JSON"), "JSON must be given where TYPE is coco_instances"),
        ({"NAME": "a", "TYPE": "semantic"}, "CLASSES, IMAGE_ROOT, LABEL_ROOT must be given"),
        ({**INSTANCES, "JSN": 1}, "unknown key JSN; coco_instances knows IMAGE_ROOT, JSON"),
        ({**INSTANCES, "JSON": "no.json"}, "JSON '.*no.json' does not exist"),
        ({**INSTANCES, "JSON": "coco"}, "JSON '.*coco' is not a file"),
        ({**INSTANCES, "JSON": 3}, "JSON must be a path, not 3"),
        ({**INSTANCES, "IMAGE_ROOT": "nowhere"}, "IMAGE_ROOT '.*nowhere' does not exist"),
        ({**INSTANCES, "IMAGE_ROOT": INSTANCES["JSON"]}, "IMAGE_ROOT '.*json' is not a folder"),
        ({**PANOPTIC, "PANOPTIC_JSON": INSTANCES["JSON"]}, "'person' lacks 'isthing'"),
        ({**SEMANTIC, "CLASSES": "road"}, "CLASSES must be a list of names, not 'road'"),
        ({**SEMANTIC, "CLASSES": []}, "CLASSES must be a list of names"),
        ({**SEMANTIC, "IGNORE_LABEL": 149}, "IGNORE_LABEL is 149, .* at least 150"),
        ({**SEMANTIC, "IGNORE_LABEL": "255"}, "IGNORE_LABEL is '255', but must be an integer"),
        ({**SEMANTIC, "IMAGE_SUFFIX": ""}, "IMAGE_SUFFIX must be the end of a file name"),
    ],
)
def test_mistakes_are_named(catalogs, test_data, entry, message):
    before = set(DatasetCatalog.list())
    with pytest.raises(UserError, match=message) as caught:
        register_entries([entry], test_data)
    if isinstance(entry, dict) and "NAME" in entry:
        assert f"entry '{entry['NAME']}'" in str(caught.value)
    assert set(DatasetCatalog.list()) == before
