import json
import logging

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg, register_coco_instances, register_coco_panoptic
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from PIL import Image

from eomt_d2 import add_eomt_config
from eomt_d2.data import build_test_loader, build_train_loader, load_training_dicts
from eomt_d2.errors import UserError

PANOPTIC, INSTANCE, SEMANTIC = (f"test_build_{kind}" for kind in ("pan", "inst", "sem"))


@pytest.fixture
def real_data(test_data):
    """Register the real images with Detectron2's own functions."""
    coco, ade = test_data / "coco", test_data / "ade20k"
    register_coco_panoptic(
        PANOPTIC,
        _get_builtin_metadata("coco_panoptic_standard"),
        str(coco / "val2017"),
        str(coco / "panoptic_val2017_mini"),
        str(coco / "annotations/panoptic_val2017_mini.json"),
    )
    instances_json = str(coco / "annotations/instances_val2017_mini.json")
    register_coco_instances(INSTANCE, {}, instances_json, str(coco / "val2017"))
    DatasetCatalog.register(
        SEMANTIC,
        lambda: load_sem_seg(
            str(ade / "annotations_detectron2/validation"), str(ade / "images/validation")
        ),
    )
    MetadataCatalog.get(SEMANTIC).set(stuff_classes=[str(i) for i in range(150)], ignore_label=255)
    yield
    for name in (PANOPTIC, INSTANCE, SEMANTIC):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def register():
    """Register a list of dicts for the time of a test."""
    names = []

    def register_dicts(dicts):
        names.append(f"test_build_dicts_{len(names)}")
        DatasetCatalog.register(names[-1], lambda: dicts)
        return names[-1]

    yield register_dicts
    for name in names:
        DatasetCatalog.remove(name)


def config(*names, workers=0, **inputs):
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.DATASETS.TRAIN = names
    cfg.DATASETS.TEST = names
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.SOLVER.IMS_PER_BATCH = 3
    cfg.INPUT.IMAGE_SIZE = cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = 96
    for key, value in inputs.items():
        cfg.INPUT[key] = value
    return cfg


def batches(loader, count):
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


class TestTrainLoader:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize(
        "name, num_classes", [(PANOPTIC, 133), (INSTANCE, 80), (SEMANTIC, 150)]
    )
    def test_real_images(self, real_data, name, num_classes, workers):
        loaded = batches(build_train_loader(config(name, workers=workers)), 4)
        for sample in (sample for batch in loaded for sample in batch):
            assert sample["image"].shape == (3, 96, 96) and sample["image"].dtype == torch.uint8
            instances = sample["instances"]
            assert instances.image_size == (96, 96)
            assert instances.gt_masks.tensor.shape == (len(instances), 96, 96)
            assert instances.gt_masks.tensor.flatten(1).any(1).all() and len(instances) > 0
            assert 0 <= instances.gt_classes.min() <= instances.gt_classes.max() < num_classes
        assert [len(batch) for batch in loaded] == [3] * 4
        # 12 samples of one shuffled sequence: every image comes up once per pass.
        size = {PANOPTIC: 11, INSTANCE: 11, SEMANTIC: 3}[name]
        files = [sample["file_name"] for batch in loaded for sample in batch]
        if workers == 0:
            assert len(set(files[:size])) == size

    def test_classes_are_contiguous(self, real_data):
        # COCO's ids 17 (cat), 63 (couch) and 75 (remote) by their position in the sorted list.
        entry = next(
            entry for entry in load_training_dicts(config(PANOPTIC)) if entry["image_id"] == 39769
        )
        names = MetadataCatalog.get(PANOPTIC).stuff_classes
        classes = {s["category_id"]: names[s["category_id"]] for s in entry["segments_info"]}
        assert classes.items() >= {15: "cat", 57: "couch", 65: "remote"}.items()

    def test_workers_draw_different_numbers(self, real_data):
        # One image only: whatever differs between samples was drawn.
        cfg = config(SEMANTIC, workers=2)
        first = load_training_dicts(cfg)[:1]
        name = "test_build_single"
        DatasetCatalog.register(name, lambda: first)
        cfg.DATASETS.TRAIN = (name,)
        images = [
            sample["image"].numpy().tobytes()
            for batch in batches(build_train_loader(cfg), 4)
            for sample in batch
        ]
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        assert len(set(images)) == len(images) == 12

    def test_skipped_images_are_replaced(self, tmp_path, register):
        entries = []
        for i, value in enumerate((255, 0)):
            Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
            Image.new("L", (8, 8), value).save(tmp_path / f"{i}_labels.png")
            entries.append(
                {
                    "file_name": str(tmp_path / f"{i}.png"),
                    "sem_seg_file_name": str(tmp_path / f"{i}_labels.png"),
                }
            )
        loader = build_train_loader(config(register(entries)))
        files = {sample["file_name"] for batch in batches(loader, 3) for sample in batch}
        assert files == {str(tmp_path / "1.png")}

    def test_nothing_but_skipped_images(self, tmp_path, register):
        Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
        Image.new("L", (8, 8), 255).save(tmp_path / "0_labels.png")
        files = {"file_name": "0.png", "sem_seg_file_name": "0_labels.png"}
        entry = {key: str(tmp_path / name) for key, name in files.items()}
        with pytest.raises(UserError, match="No image of DATASETS.TRAIN has a segment"):
            batches(build_train_loader(config(register([entry, dict(entry)]))), 1)


class TestFilter:
    crowd, thing = {"iscrowd": 1, "category_id": 0}, {"iscrowd": 0, "category_id": 0}

    def panoptic(self, name, *segments):
        return {
            "file_name": name,
            "pan_seg_file_name": f"{name}.png",
            "segments_info": list(segments),
        }

    def instance(self, name, *annotations):
        return {"file_name": name, "annotations": list(annotations)}

    @pytest.mark.parametrize("make", ["panoptic", "instance"])
    def test_images_without_a_segment_are_left_out(self, register, caplog, make):
        make = getattr(self, make)
        name = register(
            [
                make("none"),
                make("crowds", self.crowd, self.crowd),
                make("both", self.crowd, self.thing),
                make("thing", self.thing),
            ]
        )
        with caplog.at_level(logging.INFO):
            kept = load_training_dicts(config(name))
        assert [entry["file_name"] for entry in kept] == ["both", "thing"]
        assert f"2 of the 4 images of {name} have no segment besides crowds" in caplog.text
        assert len(load_training_dicts(config(name, EMPTY_SAMPLES="keep"))) == 4

    def test_counts_what_will_be_trained_on(self, register):
        entry = {**self.panoptic("a", self.crowd), "sem_seg_file_name": "a_labels.png"}
        name = register([entry])
        assert load_training_dicts(config(name, DATASET_MAPPER_NAME="semantic")) == [entry]
        with pytest.raises(UserError, match=f"No image of {name} has a segment"):
            load_training_dicts(config(name))

    def test_several_data_sets(self, register):
        names = register([self.panoptic("a", self.thing)]), register([self.panoptic("b")])
        assert [e["file_name"] for e in load_training_dicts(config(*names))] == ["a"]

    def test_real_images(self, real_data):
        assert len(load_training_dicts(config(PANOPTIC))) == 11
        assert len(load_training_dicts(config(INSTANCE))) == 11
        assert len(load_training_dicts(config(SEMANTIC))) == 3

    def test_faults_are_named(self, register):
        with pytest.raises(UserError, match="DATASETS.TRAIN is empty"):
            load_training_dicts(config())
        name = register([self.panoptic("a.jpg", self.thing)])
        with pytest.raises(UserError, match="a.jpg has no instance ground truth"):
            load_training_dicts(config(name, DATASET_MAPPER_NAME="instance"))


class TestTestLoader:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_every_image_once_resized_only(self, real_data, test_data, workers):
        cfg = config(PANOPTIC, workers=workers)
        samples = [sample for batch in build_test_loader(cfg, PANOPTIC) for sample in batch]
        annotations = test_data / "coco/annotations/panoptic_val2017_mini.json"
        images = {image["id"]: image for image in json.loads(annotations.read_text())["images"]}
        assert sorted(sample["image_id"] for sample in samples) == sorted(images)
        for sample in samples:
            height, width = sample["height"], sample["width"]
            image = images[sample["image_id"]]
            assert (height, width) == (image["height"], image["width"])
            assert max(sample["image"].shape[1:]) == 96
            ratio = np.divide(*sample["image"].shape[1:])
            assert abs(ratio / (height / width) - 1) < 0.02
            assert "instances" not in sample

    def test_images_without_segments_are_kept(self, test_data, register):
        entry = {
            "file_name": str(test_data / "photos/hopper_128x128.jpg"),
            "image_id": 1,
            "annotations": [],
        }
        name = register([entry])
        ((sample,),) = list(build_test_loader(config(name), name))
        assert sample["image"].shape == (3, 96, 96)


def test_missing_files_of_a_registered_data_set_are_named():
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.DATASETS.TRAIN = ("coco_2017_train_panoptic",)
    with pytest.raises(UserError, match=r"coco_2017_train_panoptic lacks .*DETECTRON2_DATASETS"):
        load_training_dicts(cfg)
    with pytest.raises(UserError, match=r"coco_2017_val_panoptic lacks .*DETECTRON2_DATASETS"):
        build_test_loader(cfg, "coco_2017_val_panoptic")
