"""The command line on the shapes data with a ViT of 2 blocks: a few seconds per run."""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser

from eomt_d2.data.datasets.shapes import make_shapes
from eomt_d2.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "tools" / "train_net.py"

CONFIG = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: EoMT
  DEVICE: cpu
  BACKBONE: {NAME: ViT}
  VIT: {NAME: "", EMBED_DIM: 32, DEPTH: 3, NUM_HEADS: 2, LAYER_SCALE_INIT: 0.1}
  EOMT: {NUM_BLOCKS: 2}
  MASK_FORMER:
    NUM_OBJECT_QUERIES: 10
    TRAIN_NUM_POINTS: 128
    TEST: {SEMANTIC_ON: True}
  SEM_SEG_HEAD: {NUM_CLASSES: 8}
INPUT: {IMAGE_SIZE: 64, MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 64}
DATASETS:
  TRAIN: ("train_net_train",)
  TEST: ("train_net_val",)
  REGISTER:
  - NAME: train_net_train
    TYPE: coco_panoptic
    IMAGE_ROOT: {root}/train
    PANOPTIC_ROOT: {root}/panoptic_train
    PANOPTIC_JSON: {root}/annotations/panoptic_train.json
  - NAME: train_net_val
    TYPE: coco_panoptic
    IMAGE_ROOT: {root}/val
    PANOPTIC_ROOT: {root}/panoptic_val
    PANOPTIC_JSON: {root}/annotations/panoptic_val.json
    SEM_SEG_ROOT: {root}/semantic_val
SOLVER:
  IMS_PER_BATCH: 2
  BASE_LR: 0.001
  MAX_ITER: 12
  WARMUP_ITERS_HEAD: 2
  WARMUP_ITERS_BACKBONE: 2
  CHECKPOINT_PERIOD: 4
DATALOADER: {NUM_WORKERS: 0}
SEED: 3
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    root = make_shapes(folder / "shapes", num_train=4, num_val=3, num_workers=1)
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.replace("{root}", str(root)))
    return path


@pytest.fixture(scope="module")
def run(config_file):
    """Run the command line in a process of its own."""

    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }

    def call(*arguments, launcher=(), file=config_file):
        return subprocess.run(
            [sys.executable, *launcher, SCRIPT, "--config-file", file, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return call


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """A finished training by two processes, as torchrun starts them."""
    output = tmp_path_factory.mktemp("trained")
    result = run(
        "OUTPUT_DIR",
        output,
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return output, result.stdout


def metrics_of(output):
    """All entries of metrics.json, by iteration."""
    merged = {}
    for line in (output / "metrics.json").read_text().splitlines():
        entry = json.loads(line)
        merged.setdefault(entry["iteration"], {}).update(entry)
    return merged


def test_training_logs_saves_and_evaluates(trained):
    output, log = trained
    metrics = metrics_of(output)
    last = metrics[11]
    # Iteration 11 of 12, warm-ups 2 and 2: (1 - 9 / 10)^0.9 and (1 - 7 / 8)^0.9 of 0.001.
    assert last["lr/head"] == pytest.approx(0.001 * 0.1**0.9)
    assert last["lr/block_2"] == pytest.approx(0.001 * 0.125**0.9)
    assert last["lr/block_1"] == pytest.approx(0.8 * last["lr/block_2"])
    assert (last["mask_annealing/block_0"], last["mask_annealing/block_1"]) == (0, 0)
    assert math.isfinite(last["total_loss"])
    assert "World size: 2" in log
    assert 0 <= metrics[12]["sem_seg/mIoU"] <= 100
    assert "copypaste: Task: sem_seg" in log
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert {path.name for path in output.glob("*.pth")} == {
        "model_0000003.pth", "model_0000007.pth", "model_0000011.pth", "model_final.pth",
    }  # fmt: skip
    checkpoint = torch.load(output / "model_final.pth", weights_only=True)
    assert checkpoint["model"]["mask_annealing.probs"].tolist() == [0, 0]


@pytest.fixture
def main(config_file, restored_loggers):
    """The work of one process, in this one."""
    spec = importlib.util.spec_from_file_location("train_net", SCRIPT)
    train_net = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train_net)

    def call(*arguments):
        file = ["--config-file", str(config_file)]
        return train_net.main(default_argument_parser().parse_args([*file, *arguments]))

    return call


def test_evaluation_alone_gives_what_training_ended_with(trained, main, tmp_path):
    output, _ = trained
    weights = str(output / "model_final.pth")
    results = main("--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path))
    at_the_end = metrics_of(output)[12]
    assert len(results["sem_seg"]) > 8
    for name, value in results["sem_seg"].items():
        assert value == pytest.approx(at_the_end[f"sem_seg/{name}"], nan_ok=True), name


def test_resume_continues_an_interrupted_training(trained, main, tmp_path):
    output, _ = trained
    (tmp_path / "model_0000007.pth").write_bytes((output / "model_0000007.pth").read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000007.pth")
    main("--resume", "OUTPUT_DIR", str(tmp_path))
    assert metrics_of(tmp_path)[11]["lr/head"] == pytest.approx(0.001 * 0.1**0.9)
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert {int(state["step"]) for state in optimizer_state(checkpoint).values()} == {12}


def optimizer_state(checkpoint):
    return checkpoint["trainer"]["_trainer"]["optimizer"]["state"]


def test_a_mistake_is_one_sentence_and_exit_code_2(run):
    result = run("SOLVER.LAYER_DECY", "0.8")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "error: The config key SOLVER.LAYER_DECY in the command line does not exist; the nearest "
        "one is SOLVER.LAYER_DECAY."
    )
    assert "Traceback" not in result.stderr + result.stdout


def test_evaluation_refuses_a_half_loaded_model(trained, main, tmp_path):
    weights = torch.load(trained[0] / "model_final.pth", weights_only=True)["model"]
    path = tmp_path / "backbone.pth"
    torch.save({k: v for k, v in weights.items() if k.startswith("backbone.")}, path)
    with pytest.raises(UserError, match="class_head.bias is not in the file"):
        main("--eval-only", "MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(tmp_path))


def test_a_damaged_image_is_one_sentence_and_exit_code_2(run, config_file, tmp_path):
    root = tmp_path / "shapes"
    shutil.copytree(config_file.parent / "shapes", root)
    for path in (root / "train").iterdir():
        path.write_bytes(b"")
    file = tmp_path / "damaged.yaml"
    file.write_text(config_file.read_text().replace(str(config_file.parent / "shapes"), str(root)))
    result = run("DATALOADER.NUM_WORKERS", "1", "OUTPUT_DIR", tmp_path / "output", file=file)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert str(root / "train") in last
    assert "Traceback" not in result.stderr + result.stdout
