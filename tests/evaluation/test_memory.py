"""What evaluators keep of an image once it has been looked at: nothing of the size of a map."""

import gc
import json
import sys
import types

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Instances
from panopticapi.utils import id2rgb
from PIL import Image

from eomt_d2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemanticEvaluator,
    InstanceEvaluator,
    PanopticEvaluator,
    SemanticSegmentationEvaluator,
)

HEIGHT, WIDTH, IMAGES = 300, 400, 12
FOREIGN = (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType)


def held_bytes(root):
    """Bytes of all that can be reached from an object, but for code and modules; of each array and
    tensor also what lies behind it."""
    seen, total = set(), 0
    waiting = [root]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, FOREIGN):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        if isinstance(item, torch.Tensor):
            total += item.untyped_storage().nbytes()
        elif isinstance(item, np.ndarray) and item.base is not None:
            total += item.nbytes
        waiting.extend(gc.get_referents(item))
    return total


def test_held_bytes_finds_maps():
    class Evaluator:
        pass

    evaluator = Evaluator()
    evaluator.predictions = [{"a": np.zeros((100, 100))}, (torch.zeros(50, 50, 4), b"x" * 3000)]
    assert 80_000 + 40_000 + 3_000 < held_bytes(evaluator) < 130_000


def output():
    """A result with two segments, each on one half of the image."""
    labels = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    labels[:, WIDTH // 2 :] = 1
    masks = torch.stack([labels == 0, labels == 1])
    instances = Instances((HEIGHT, WIDTH), pred_masks=masks, scores=torch.tensor([0.9, 0.8]))
    instances.pred_boxes = BitMasks(masks).get_bounding_boxes()
    instances.pred_classes = torch.tensor([0, 1])
    segments = [{"id": i + 1, "category_id": i, "isthing": True} for i in (0, 1)]
    return {
        "panoptic_seg": (labels.int() + 1, segments),
        "instances": instances,
        "sem_seg_labels": labels,
    }


@pytest.fixture
def dataset(register, tmp_path):
    ids = output()["panoptic_seg"][0].numpy()
    Image.fromarray(id2rgb(ids)).save(tmp_path / "panoptic.png")
    Image.fromarray((ids - 1).astype(np.uint8)).save(tmp_path / "semantic.png")
    info = [
        {"id": i, "category_id": i, "area": int((ids == i).sum()), "iscrowd": 0} for i in (1, 2)
    ]
    categories = [{"id": i, "name": f"class {i}", "isthing": 1} for i in (1, 2)]
    images = [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(IMAGES)]
    annotations = [
        {"image_id": i, "file_name": "panoptic.png", "segments_info": info} for i in range(IMAGES)
    ]
    for name, entries in (("panoptic", annotations), ("instances", [])):
        content = {"images": images, "annotations": entries, "categories": categories}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return register(
        "memory_data",
        [
            {"file_name": f"{i}.jpg", "sem_seg_file_name": str(tmp_path / "semantic.png")}
            for i in range(IMAGES)
        ],
        panoptic_json=str(tmp_path / "panoptic.json"),
        panoptic_root=str(tmp_path),
        json_file=str(tmp_path / "instances.json"),
        gt_dir=str(tmp_path),
        ignore_label=255,
        stuff_classes=["one", "two"],
        thing_classes=["person", "car"],
        thing_dataset_id_to_contiguous_id={1: 0, 2: 1},
        stuff_dataset_id_to_contiguous_id={},
    )


@pytest.mark.parametrize(
    "evaluator_class",
    [
        CityscapesInstanceEvaluator,
        CityscapesSemanticEvaluator,
        InstanceEvaluator,
        PanopticEvaluator,
        SemanticSegmentationEvaluator,
    ],
)
def test_nothing_of_the_size_of_a_map_is_kept(dataset, evaluator_class):
    evaluator = evaluator_class(dataset)
    evaluator.reset()
    before = held_bytes(evaluator)
    for i in range(IMAGES):
        evaluator.process([{"file_name": f"{i}.jpg", "image_id": i}], [output()])
    if hasattr(evaluator, "_work"):
        assert len(evaluator._work.results()) == IMAGES
    kept = (held_bytes(evaluator) - before) / IMAGES
    # One mask has 120,000 bytes, and 15,000 with 8 pixels to the byte.
    assert kept < 5_000
