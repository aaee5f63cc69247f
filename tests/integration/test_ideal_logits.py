"""Ideal logits, made from ground truth, through our post-processing and the real evaluators.

At the original size the results have to be perfect: whatever is lost there, no network could get
back. At a network's stride some is always lost; run this file as a script to see how much:

    python tests/integration/test_ideal_logits.py [FOLDER OF TEST DATA]
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.evaluation import inference_on_dataset
from panopticapi.utils import rgb2id
from PIL import Image

from eomt_d2.config import add_eomt_config
from eomt_d2.data import MaskClassificationMapper, build_test_loader
from eomt_d2.data.datasets import register_datasets
from eomt_d2.evaluation import build_evaluator
from eomt_d2.modeling import MaskClassificationModel
from eomt_d2.modeling.structures import MaskPrediction, MaskTarget

SWITCH = {"panoptic": "PANOPTIC_ON", "instance": "INSTANCE_ON", "semantic": "SEMANTIC_ON"}


class IdealModel(MaskClassificationModel):
    """Knows the truth of the image it is given, and predicts it at its stride.

    The image it takes is a map of coordinates instead of colours: row and column in the original
    image, and 1. So padding, cropping and windows are those of the base class, and ``predict``
    sees for every pixel where it comes from.

    Args:
        stride: of the mask logits. A logit is 40 * (share of its cell inside the mask - 1/2).
    """

    def __init__(self, cfg, stride):
        super().__init__(**MaskClassificationModel.from_config(cfg), size_divisibility=stride)
        self.stride = stride

    def forward(self, batched_inputs):
        (entry,) = batched_inputs
        self.truth = entry["truth"]
        return super().forward(batched_inputs)

    def predict(self, images, all_predictions=False):
        rows, columns, inside = (images * self.pixel_std + self.pixel_mean).round().long().unbind(1)
        logits = [
            self._logits(self.truth.masks[:, row, column] & (part > 0))
            for row, column, part in zip(rows, columns, inside, strict=True)
        ]
        class_logits = 20.0 * F.one_hot(self.truth.labels, self.num_classes + 1)
        return [MaskPrediction(torch.stack(logits), class_logits.repeat(len(images), 1, 1))]

    def _logits(self, masks):
        share = F.avg_pool2d(masks[None].float(), self.stride)[0]
        return 40 * (share - 0.5)


class CoordinateMapper(MaskClassificationMapper):
    """The test mapper, with coordinates for colours and the truth added."""

    def __call__(self, dataset_dict):
        result = super().__call__(dataset_dict)
        result["truth"] = read_truth(dataset_dict, result["height"], result["width"])
        size = result["image"].shape[1:]
        # Nearest, with the floor rule, as masks are resized in training.
        rows = torch.arange(size[0]) * result["height"] // size[0]
        columns = torch.arange(size[1]) * result["width"] // size[1]
        grid = torch.meshgrid(rows, columns, indexing="ij")
        result["image"] = torch.stack([*grid, torch.ones_like(grid[0])]).float()
        return result


def read_truth(entry, height, width):
    """All segments that a perfect model would predict: crowds are not among them."""
    if "segments_info" in entry:
        ids = rgb2id(np.array(Image.open(entry["pan_seg_file_name"]).convert("RGB")))
        segments = [s for s in entry["segments_info"] if not s["iscrowd"]]
        labels = [s["category_id"] for s in segments]
        masks = np.stack([ids == s["id"] for s in segments])
    elif "annotations" in entry:
        annotations = [a for a in entry["annotations"] if not a["iscrowd"]]
        instances = annotations_to_instances(annotations, (height, width), mask_format="bitmask")
        return MaskTarget(instances.gt_classes, instances.gt_masks.tensor)
    else:
        ids = np.array(Image.open(entry["sem_seg_file_name"]))
        labels = [label for label in np.unique(ids).tolist() if label != 255]
        masks = np.stack([ids == label for label in labels])
    return MaskTarget(torch.tensor(labels), torch.from_numpy(masks))


def register(data, folder):
    """Register the real images under names of this file. Returns the names by kind.

    ``folder`` receives the semantic truth of COCO, which the published files do not have: the
    classes of the panoptic PNG, crowds included, 255 where it is void.
    """
    coco, ade = data / "coco", data / "ade20k"
    panoptic_json = coco / "annotations" / "panoptic_val2017_mini.json"
    content = json.loads(panoptic_json.read_text())
    index = {c["id"]: i for i, c in enumerate(content["categories"])}
    for annotation in content["annotations"]:
        png = coco / "panoptic_val2017_mini" / annotation["file_name"]
        ids = rgb2id(np.array(Image.open(png)))
        labels = np.full(ids.shape, 255, dtype=np.uint8)
        for segment in annotation["segments_info"]:
            labels[ids == segment["id"]] = index[segment["category_id"]]
        Image.fromarray(labels).save(folder / annotation["file_name"])
    cfg = config()
    images = str(coco / "val2017")
    ade_classes = list(MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes)
    cfg.DATASETS.REGISTER = [
        {
            "NAME": "ideal_coco_panoptic",
            "TYPE": "coco_panoptic",
            "IMAGE_ROOT": images,
            "PANOPTIC_ROOT": str(coco / "panoptic_val2017_mini"),
            "PANOPTIC_JSON": str(panoptic_json),
        },
        {
            "NAME": "ideal_coco_instance",
            "TYPE": "coco_instances",
            "IMAGE_ROOT": images,
            "JSON": str(coco / "annotations" / "instances_val2017_mini.json"),
        },
        {
            "NAME": "ideal_coco_semantic",
            "TYPE": "semantic",
            "IMAGE_ROOT": images,
            "LABEL_ROOT": str(folder),
            "CLASSES": [category["name"] for category in content["categories"]],
        },
        {
            "NAME": "ideal_ade20k_semantic",
            "TYPE": "semantic",
            "IMAGE_ROOT": str(ade / "images" / "validation"),
            "LABEL_ROOT": str(ade / "annotations_detectron2" / "validation"),
            "CLASSES": ade_classes,
        },
    ]
    register_datasets(cfg)
    return [entry["NAME"] for entry in cfg.DATASETS.REGISTER]


def config():
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.DATALOADER.NUM_WORKERS = 0
    # A map of coordinates is not normalised.
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    return cfg


def evaluate(name, folder, *, input_size=None, stride=1):
    """Evaluate the ideal model on a data set.

    Args:
        name: ends in "panoptic", "instance" or "semantic".
        input_size: of square (panoptic, instance) or window (semantic) inference in pixels; None
            resizes nothing and only pads the images to a multiple of 32.
        stride: of the mask logits.

    Returns:
        the evaluator's results.
    """
    task = name.rpartition("_")[2]
    cfg = config()
    cfg.DATASETS.TEST = (name,)
    cfg.MODEL.MASK_FORMER.TEST[SWITCH[task]] = True
    metadata = MetadataCatalog.get(name)
    classes = metadata.thing_classes if task == "instance" else metadata.stuff_classes
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(classes)
    cfg.TEST.SEMANTIC_OUTPUT = "labels"
    if input_size is None:
        cfg.INPUT.TEST_MODE, cfg.INPUT.SIZE_DIVISIBILITY = "divisible", 32
        cfg.INPUT.MIN_SIZE_TEST = 0  # ResizeShortestEdge then resizes nothing
    else:
        cfg.INPUT.TEST_MODE = "window" if task == "semantic" else "square"
        cfg.INPUT.IMAGE_SIZE = cfg.INPUT.MIN_SIZE_TEST = input_size
        cfg.INPUT.MAX_SIZE_TEST = 10**6 if task == "semantic" else input_size
    loader = build_test_loader(cfg, name, CoordinateMapper(cfg, is_train=False))
    evaluator = build_evaluator(cfg, name, str(folder))
    return inference_on_dataset(IdealModel(cfg, stride), loader, evaluator)


def ceiling(data, input_sizes=(640, 1280), stride=4):
    """Print what ideal logits of a stride reach, as a Markdown table.

    Args:
        data: folder with ``coco`` and ``ade20k``.
        input_sizes: of the network, in pixels.
    """
    metrics = {"panoptic": ("panoptic_seg", "PQ"), "instance": ("segm", "AP")}
    with tempfile.TemporaryDirectory() as folder:
        names = register(data, Path(folder))
        columns = [metrics.get(name.rpartition("_")[2], ("sem_seg", "mIoU")) for name in names]
        titles = [f"{n.split('_')[1]} {key}" for n, (_, key) in zip(names, columns, strict=True)]
        print("| logits |", " | ".join(titles), "|")
        print("|---|" + "---|" * len(titles))
        for size in (None, *input_sizes):
            resolution = {"input_size": size, "stride": stride} if size else {}
            values = [
                evaluate(name, folder, **resolution)[task][key]
                for name, (task, key) in zip(names, columns, strict=True)
            ]
            title = f"stride {stride} at {size}" if size else "original size"
            print(f"| {title} |", " | ".join(f"{v:.2f}" for v in values), "|", flush=True)


@pytest.fixture(scope="module")
def datasets(test_data, tmp_path_factory):
    names = register(test_data, tmp_path_factory.mktemp("semantic"))
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_panoptic_quality_is_100(datasets, tmp_path):
    results = evaluate("ideal_coco_panoptic", tmp_path)["panoptic_seg"]
    for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"):
        assert results[key] == pytest.approx(100.0, abs=1e-9)


def test_average_precision_is_at_least_99(datasets, tmp_path):
    results = evaluate("ideal_coco_instance", tmp_path)["segm"]
    for key in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        assert results[key] >= 99.0


@pytest.mark.parametrize("name", ["ideal_coco_semantic", "ideal_ade20k_semantic"])
def test_mean_iou_is_100(datasets, tmp_path, name):
    assert_perfect(evaluate(name, tmp_path)["sem_seg"])


def test_mean_iou_is_100_through_windows(datasets, tmp_path):
    # The one image that windows of the published size take as it is: 683 x 512.
    entries = DatasetCatalog.get("ideal_ade20k_semantic")[:1]
    metadata = MetadataCatalog.get("ideal_ade20k_semantic").as_dict()
    name = metadata["name"] = "ideal_window_semantic"
    DatasetCatalog.register(name, lambda: entries)
    try:
        MetadataCatalog.get(name).set(**metadata)
        assert_perfect(evaluate(name, tmp_path, input_size=512)["sem_seg"])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def assert_perfect(results):
    for key in ("mIoU", "fwIoU", "mACC", "pACC"):
        assert results[key] == pytest.approx(100.0, abs=1e-9)
    # The others are IoUs by class: 100, or NaN where the class is absent.
    assert not any(value < 100.0 for value in results.values())


if __name__ == "__main__":
    default = os.environ.get("EOMT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")
    ceiling(Path(sys.argv[1] if len(sys.argv) > 1 else default))
