"""tools/train_net.py on real COCO images: it learns, evaluates and resumes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

NETWORK = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: EoMT
  DEVICE: cpu
  BACKBONE: {NAME: ViT}
  VIT: {NAME: "", EMBED_DIM: 48, DEPTH: 4, NUM_HEADS: 2, LAYER_SCALE_INIT: 0.0, POSITION: rotary}
  EOMT: {NUM_BLOCKS: 2}
INPUT:
  IMAGE_SIZE: 128
  MIN_SIZE_TEST: 128
  MAX_SIZE_TEST: 128
  MIN_SCALE: 0.8
  MAX_SCALE: 1.25
SOLVER:
  IMS_PER_BATCH: 4
  BASE_LR: 0.003
  LAYER_DECAY: 1.0
  MAX_ITER: 300
  WARMUP_ITERS_HEAD: 4
  WARMUP_ITERS_BACKBONE: 16
  CHECKPOINT_PERIOD: 150
DATALOADER: {NUM_WORKERS: 0}
SEED: 1
"""
PANOPTIC = """
  MASK_FORMER: {NUM_OBJECT_QUERIES: 40, TRAIN_NUM_POINTS: 256, TEST: {PANOPTIC_ON: True}}
  SEM_SEG_HEAD: {NUM_CLASSES: 133}
DATASETS:
  TRAIN: ("mini_coco",)
  TEST: ("mini_coco",)
  REGISTER:
  - NAME: mini_coco
    TYPE: coco_panoptic
    IMAGE_ROOT: {coco}/val2017
    PANOPTIC_ROOT: {coco}/panoptic_val2017_mini
    PANOPTIC_JSON: {coco}/annotations/panoptic_val2017_mini.json
"""
INSTANCE = """
  MASK_FORMER: {NUM_OBJECT_QUERIES: 40, TRAIN_NUM_POINTS: 256, TEST: {INSTANCE_ON: True}}
  SEM_SEG_HEAD: {NUM_CLASSES: 80}
DATASETS:
  TRAIN: ("mini_coco",)
  TEST: ("mini_coco",)
  REGISTER:
  - NAME: mini_coco
    TYPE: coco_instances
    IMAGE_ROOT: {coco}/val2017
    JSON: {coco}/annotations/instances_val2017_mini.json
"""


def train_net(config_file, *arguments):
    command = [sys.executable, "tools/train_net.py", "--config-file", config_file, *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*map(str, command)], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


def scalars(output, key):
    """(iteration, value) of a scalar in metrics.json."""
    records = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return [(record["iteration"], record[key]) for record in records if key in record]


@pytest.mark.parametrize(
    ("task", "data", "metric"),
    [("panoptic", PANOPTIC, "panoptic_seg/PQ"), ("instance", INSTANCE, "segm/AP")],
)
def test_learns_evaluates_and_resumes(task, data, metric, test_data, tmp_path):
    head, solver = NETWORK.split("INPUT:")
    config = tmp_path / f"{task}.yaml"
    model, datasets = data.split("DATASETS:")
    datasets = "DATASETS:" + datasets.replace("{coco}", str(test_data / "coco"))
    config.write_text(head.rstrip() + model + datasets + "INPUT:" + solver)
    output = tmp_path / "run"

    train_net(config, "OUTPUT_DIR", output)
    # Detectron2 writes the median of the last 20 iterations every 20 iterations: the first value
    # is the warm-up, the second the 20 iterations after it.
    losses = scalars(output, "total_loss")
    assert [iteration for iteration, _ in losses] == list(range(19, 300, 20))
    assert losses[-1][1] < 0.7 * losses[1][1]
    evaluations = scalars(output, metric)
    assert [iteration for iteration, _ in evaluations] == [300]

    more = train_net(config, "--resume", "OUTPUT_DIR", output, "SOLVER.MAX_ITER", "320")
    assert "Starting training from iteration 300" in more
    assert [iteration for iteration, _ in scalars(output, "total_loss")][-1] == 319
    assert scalars(output, "total_loss")[-1][1] < 0.7 * losses[1][1]

    alone = tmp_path / "alone"
    weights = output / "model_final.pth"
    train_net(config, "--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", alone)
    assert (alone / "inference" / "mini_coco").is_dir()
