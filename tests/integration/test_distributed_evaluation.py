"""Two processes share two images evenly or not; the main one gets the result for both images."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from panopticapi.utils import id2rgb
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
# The images of both processes: one each, and a process without any.
SPLITS = [[[0], [1]], [[0, 1], []], [[], [1, 0]]]
SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from detectron2.data import DatasetCatalog, MetadataCatalog
from eomt_d2.evaluation import (
    CityscapesPanopticEvaluator, InstanceEvaluator, PanopticEvaluator,
    SemanticSegmentationEvaluator,
)
from detectron2.structures import BitMasks, Instances

folder, port, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
entries = [
    {"file_name": f"{i}.jpg", "image_id": i, "sem_seg_file_name": f"{folder}/{i}_semantic.png"}
    for i in (0, 1)
]
DatasetCatalog.register("data", lambda: entries)
MetadataCatalog.get("data").set(
    panoptic_json=f"{folder}/panoptic.json", panoptic_root=folder,
    json_file=f"{folder}/instances.json", stuff_classes=["cat", "sky"], ignore_label=255,
    thing_dataset_id_to_contiguous_id={1: 0}, stuff_dataset_id_to_contiguous_id={2: 1},
)

def output(image_id):
    # Cat on the upper half, sky below: right on image 0; on image 1 everything is called sky.
    labels = torch.ones(8, 8, dtype=torch.int64)
    if image_id == 0:
        labels[:4] = 0
    masks = labels[None] == 0
    boxes = BitMasks(masks).get_bounding_boxes()
    instances = Instances((8, 8), pred_masks=masks, pred_boxes=boxes,
                          pred_classes=torch.zeros(1, dtype=torch.int64), scores=torch.ones(1))
    segments = [
        {"id": i + 1, "category_id": i, "isthing": i == 0} for i in labels.unique().tolist()
    ]
    return {"panoptic_seg": (labels.int() + 1, segments), "instances": instances,
            "sem_seg_labels": labels}

all_results = []
for split in SPLITS:
    results = {}
    for evaluator in (PanopticEvaluator("data"), InstanceEvaluator("data"),
                      SemanticSegmentationEvaluator("data"), CityscapesPanopticEvaluator("data")):
        evaluator.reset()
        for image_id in split[rank]:
            evaluator.process([entries[image_id]], [output(image_id)])
        results[type(evaluator).__name__] = evaluator.evaluate()
    assert rank == 0 or not any(results.values()), results
    all_results.append(results)
if rank == 0:
    json.dump(all_results, open(f"{folder}/results.json", "w"))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture
def folder(tmp_path):
    """Two equal images of 8 x 8: a cat above, the sky below."""
    ids = np.repeat(np.array([[1], [2]], dtype=np.int32), 4, axis=0).repeat(8, axis=1)
    panoptic, instances = [], []
    for i in (0, 1):
        Image.fromarray(id2rgb(ids)).save(tmp_path / f"{i}.png")
        Image.fromarray((ids - 1).astype(np.uint8)).save(tmp_path / f"{i}_semantic.png")
        segments = [{"id": k, "category_id": k, "area": 32, "iscrowd": 0} for k in (1, 2)]
        panoptic.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
        box = {"bbox": [0, 0, 8, 4], "segmentation": [[0, 0, 8, 0, 8, 4, 0, 4]], "area": 32}
        instances.append({"id": i + 1, "image_id": i, "category_id": 1, "iscrowd": 0, **box})
    images = [{"id": i, "height": 8, "width": 8} for i in (0, 1)]
    cat, sky = {"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}
    for name, annotations, categories in (
        ("panoptic", panoptic, [cat, sky]),
        ("instances", instances, [cat]),
    ):
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_results_of_two_processes_are_put_together(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = f"SPLITS = {SPLITS}\n{SCRIPT}"
    command = [sys.executable, "-W", "ignore", "-c", script, str(folder), str(port)]
    processes = [
        subprocess.Popen([*command, str(rank)], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)

    all_results = json.loads((folder / "results.json").read_text())
    assert len(all_results) == len(SPLITS)
    for results in all_results:
        assert_results_for_both_images(results)


def assert_results_for_both_images(results):
    for name in ("PanopticEvaluator", "CityscapesPanopticEvaluator"):
        metrics = results[name]["panoptic_seg"]
        # Cat: one found, one missed, 1 / 1.5. Sky: one exact; the other covers 32 of 64 pixels,
        # IoU 0.5, which is not above 0.5: one found, one missed, one false, 1 / 2.
        assert metrics["PQ-cat"] == pytest.approx(66.6667, abs=1e-3)
        assert metrics["PQ-sky"] == pytest.approx(50.0)
    # One of two cats: precision 1 at 51 of 101 recall points.
    assert results["InstanceEvaluator"]["segm"]["AP"] == pytest.approx(50.4950, abs=1e-3)
    # Cat: 32 of 64 pixels, 50. Sky: 64 right, 32 false, 66.6667.
    assert results["SemanticSegmentationEvaluator"]["sem_seg"]["mIoU"] == pytest.approx(
        58.3333, abs=1e-3
    )
