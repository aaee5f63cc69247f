"""The fine-tuning configs of the shapes, in small: pre-train, then fine-tune beside a training from
scratch on the same data."""

import argparse
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import HookBase

from eomt_d2.config import add_eomt_config
from eomt_d2.data.datasets.shapes import make_shapes
from eomt_d2.engine import Trainer, set_up

CONFIGS = Path(__file__).parents[1] / "configs" / "shapes"
# Half the depth and half the width.
SMALL = (
    "MODEL.VIT.EMBED_DIM", 32, "MODEL.VIT.DEPTH", 3, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 256,
    "SOLVER.IMS_PER_BATCH", 4, "SOLVER.WARMUP_ITERS_HEAD", 2, "SOLVER.WARMUP_ITERS_BACKBONE", 3,
    "DATASETS.TEST", "()",
)  # fmt: skip
PRE_TRAINING, FINE_TUNING = 60, 6


def flat(node, prefix=""):
    """Every key of a config and its value."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_fine_tuning_differs_from_scratch_in_its_weights_alone():
    settings = []
    for name in ("finetune", "scratch"):
        cfg = get_cfg()
        add_eomt_config(cfg)
        cfg.merge_from_file(str(CONFIGS / "fine_tuning" / f"{name}.yaml"))
        settings.append(dict(flat(cfg)))
    one, other = settings
    assert one.keys() == other.keys()
    assert {key for key in one if one[key] != other[key]} == {"MODEL.WEIGHTS", "OUTPUT_DIR"}
    # What the pre-training's config writes.
    pre_training = get_cfg()
    add_eomt_config(pre_training)
    pre_training.merge_from_file(str(CONFIGS / "panoptic" / "eomt_tiny.yaml"))
    assert one["MODEL.WEIGHTS"] == f"{pre_training.OUTPUT_DIR}/model_final.pth"


class Watcher(HookBase):
    """Notes masking probabilities and losses of every iteration."""

    def __init__(self):
        self.probs, self.losses = [], []

    def before_step(self):
        self.probs.append(self.trainer.model.mask_annealing.probs.tolist())

    def after_step(self):
        latest = self.trainer.storage.latest()
        self.losses.append({name: value for name, (value, _) in latest.items() if "loss" in name})

    def mean(self, name):
        return sum(losses[name] for losses in self.losses) / len(self.losses)


def train(config, output, iterations, *opts):
    opts = [*SMALL, "SOLVER.MAX_ITER", iterations, "OUTPUT_DIR", str(output), *opts]
    config_file = str(CONFIGS / f"{config}.yaml")
    args = argparse.Namespace(config_file=config_file, opts=opts, eval_only=False, resume=False)
    trainer, watcher = Trainer(set_up(args)), Watcher()
    trainer.register_hooks([watcher])
    trainer.resume_or_load(resume=False)
    trainer.train()
    return watcher


@pytest.fixture
def one_thread():
    """So small a network only loses by sharing its work, a lot where other processes run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trainings(tmp_path, monkeypatch, catalogs, restored_loggers, one_thread):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    make_shapes(tmp_path / "shapes", num_train=40, num_val=1, num_workers=1)
    make_shapes(
        tmp_path / "other_shapes", class_set="other_shapes", num_train=8, num_val=1, num_workers=1
    )
    train("panoptic/eomt_tiny", tmp_path / "pre", PRE_TRAINING)
    weights = tmp_path / "pre" / "model_final.pth"
    fine_tuned = train(
        "fine_tuning/finetune", tmp_path / "fine", FINE_TUNING, "MODEL.WEIGHTS", str(weights)
    )
    scratch = train("fine_tuning/scratch", tmp_path / "scratch", FINE_TUNING)
    return tmp_path, fine_tuned, scratch


def test_fine_tuning_starts_from_the_masks_of_the_pre_training(trainings):
    folder, fine_tuned, scratch = trainings
    finished = torch.load(folder / "pre" / "model_final.pth", weights_only=True)["model"]
    assert finished["mask_annealing.probs"].tolist() == [0, 0]
    assert finished["class_head.weight"].shape == (9, 32)

    # Eight classes became six: the class head alone starts anew, and the log says so.
    log = (folder / "fine" / "log.txt").read_text()
    assert re.findall(r"(\S+) starts anew: (.*)", log) == [
        ("class_head", "8 classes in the file, 6 in the model.")
    ]
    assert "Not in the file" not in log and "Not in the model" not in log

    # The finished model runs without masks; the new training begins with them, and ends without.
    assert fine_tuned.probs[0] == [1, 1]
    assert scratch.probs == fine_tuned.probs
    tuned = torch.load(folder / "fine" / "model_final.pth", weights_only=True)["model"]
    assert tuned["mask_annealing.probs"].tolist() == [0, 0]

    # The data are the same, image by image. Masks of things on textures are known from the
    # pre-training: seen, 0.70 and 0.78 of the losses from scratch.
    for name in ("loss_mask", "loss_dice"):
        assert fine_tuned.mean(name) < 0.9 * scratch.mean(name)
