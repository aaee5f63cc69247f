import sys

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import TrainerBase
from torch import nn

from eomt_d2.config import add_eomt_config
from eomt_d2.engine.hooks import (
    HostMemoryLogger,
    LearningRateLogger,
    MaskAnnealingHook,
    configured_windows,
)
from eomt_d2.modeling.masked_attention import MaskAnnealing


class Recorder(TrainerBase):
    """A loop that notes the masking probabilities each step runs with."""

    def __init__(self, annealing):
        super().__init__()
        self.annealing = annealing
        self.used = []

    def run_step(self):
        self.used.append([round(p, 6) for p in self.annealing.probs.tolist()])


def run(annealing, hook, start=0, end=8):
    trainer = Recorder(annealing)
    trainer.register_hooks([hook])
    trainer.train(start, end)
    return trainer


def test_each_iteration_uses_its_own_probability_and_the_end_is_unmasked():
    annealing = MaskAnnealing(2)
    hook = MaskAnnealingHook(annealing, [(1, 3), (4, 8)], power=1.0)
    trainer = run(annealing, hook)
    assert trainer.used == [
        [1, 1],
        [1, 1],
        [0.5, 1],
        [0, 1],
        [0, 1],
        [0, 0.75],
        [0, 0.5],
        [0, 0.25],
    ]
    assert annealing.probs.tolist() == [0, 0]
    assert annealing.active == (False, False)
    # What is logged is what the last iteration used.
    assert trainer.storage.latest()["mask_annealing/block_1"] == (0.25, 7)


def test_a_new_training_masks_again_and_a_resumed_one_continues():
    windows = [(1, 3), (4, 8)]
    annealing = MaskAnnealing(2)
    annealing.set_probs([0.0, 0.0])
    assert run(annealing, MaskAnnealingHook(annealing, windows, 1.0), 0, 1).used == [[1, 1]]
    annealing.set_probs([0.0, 0.0])
    assert run(annealing, MaskAnnealingHook(annealing, windows, 1.0), 6, 7).used == [[0, 0.5]]


def test_without_windows_every_mask_stays():
    annealing = MaskAnnealing(3)
    annealing.set_probs([0.0, 0.2, 1.0])
    assert run(annealing, MaskAnnealingHook(annealing, None)).used == [[1, 1, 1]] * 8
    assert annealing.active == (True, True, True)


def test_windows_and_blocks_must_agree():
    with pytest.raises(ValueError, match="1 windows for 2 query blocks"):
        MaskAnnealingHook(MaskAnnealing(2), [(0, 1)])


def annealing_config(schedule, starts=(), ends=(), max_iter=88692):
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.SOLVER.MAX_ITER = max_iter
    node = cfg.MODEL.MASK_FORMER.MASK_ANNEALING
    node.SCHEDULE, node.STARTS, node.ENDS = schedule, list(starts), list(ends)
    return cfg


@pytest.mark.parametrize(
    "cfg, expected",
    [
        # Published for COCO, ViT-L: T / 6 = 14,782.
        (
            annealing_config("staggered"),
            [(14782, 29564), (29564, 44346), (44346, 59128), (59128, 73910)],
        ),
        (annealing_config("fractions", [0.25], [0.5], 1000), [(250, 500)]),
        # Published for ADE20K semantic, DINOv3.
        (
            annealing_config("iterations", [0, 6520], [3000, 9780], 20192),
            [(0, 3000), (6520, 9780)],
        ),
        (annealing_config("none"), None),
    ],
)
def test_windows_of_the_config(cfg, expected):
    assert configured_windows(cfg, 4) == expected


def test_learning_rates_are_logged_by_group():
    trainer = TrainerBase()
    trainer.run_step = lambda: None
    trainer.optimizer = torch.optim.SGD(
        [
            {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5, "name": "block_0"},
            {"params": [nn.Parameter(torch.zeros(1))], "lr": 2.0, "name": "head"},
        ]
    )
    trainer.register_hooks([LearningRateLogger()])
    trainer.train(0, 1)
    latest = trainer.storage.latest()
    assert {name: value for name, (value, _) in latest.items()} == {
        "lr/block_0": 0.5,
        "lr/head": 2.0,
    }


class Hoarder(TrainerBase):
    """A loop that takes 64 MiB in its 21st step and keeps them."""

    def run_step(self):
        if self.iter == 20:
            self.kept = b"x" * (64 * 2**20)


def test_memory_that_is_kept_shows_in_the_log():
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells how much memory a process holds")
    trainer = Hoarder()
    trainer.register_hooks([HostMemoryLogger()])
    trainer.train(0, 45)
    (before, first), (after, second) = trainer.storage.history("host_memory").values()
    assert (first, second) == (19, 39)
    assert 60 < after - before < 200
