"""The trainer on the smallest model that has all it trains with."""

import logging
from contextlib import contextmanager

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer, HookBase

from eomt_d2.config import add_eomt_config
from eomt_d2.engine import Trainer
from eomt_d2.errors import UserError
from tests.engine.tiny_training import (
    ITERATIONS,
    Tiny,
    TinyTrainer,
    Watcher,
    assert_same_training,
    config,
    train,
)


@pytest.fixture
def uninterrupted(tmp_path):
    return train(config(tmp_path / "whole"))


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, uninterrupted):
    whole, seen = uninterrupted
    _, first = train(config(tmp_path / "parts"), stop_after=6)
    second_trainer, second = train(config(tmp_path / "parts"), resume=True, first_batch=6)
    assert len(first.rates) == len(second.rates) == 6
    assert first.rates + second.rates == seen.rates
    assert first.probs + second.probs == seen.probs
    assert_same_training(whole, second_trainer)


def test_rates_and_probabilities_are_those_of_the_recipe(uninterrupted):
    _, seen = uninterrupted
    backbone, head = zip(*seen.rates, strict=True)
    # Warm-ups 2 + 2 of 12, power 0.9: (1 - (s - 2) / 10)^0.9 and (1 - (s - 4) / 8)^0.9.
    assert head == pytest.approx([0, 0.05, *(0.1 * (1 - i / 10) ** 0.9 for i in range(10))])
    assert backbone == pytest.approx([0, 0, 0, 0.05, *(0.1 * (1 - i / 8) ** 0.9 for i in range(8))])
    # Staggered windows for two blocks and T = 12: 2 to 4 and 8 to 10; halfway 0.5^0.9.
    half = pytest.approx(0.5358867)
    assert [p[0] for p in seen.probs] == [1, 1, 1, half] + [0] * 8
    assert [p[1] for p in seen.probs] == [1] * 9 + [half] + [0] * 2


def test_a_finished_training_is_unmasked_in_its_checkpoint(tmp_path, uninterrupted):
    checkpoint = torch.load(tmp_path / "whole" / "model_final.pth", weights_only=True)
    assert checkpoint["model"]["mask_annealing.probs"].tolist() == [0, 0]
    assert checkpoint["iteration"] == ITERATIONS - 1


def test_a_new_training_from_a_finished_one_masks_again(tmp_path, uninterrupted):
    cfg = config(tmp_path / "next")
    cfg.MODEL.WEIGHTS = str(tmp_path / "whole" / "model_final.pth")
    _, seen = train(cfg, stop_after=2)
    assert seen.probs == [[1, 1], [1, 1]]


def test_a_network_that_does_not_anneal_masks_throughout(tmp_path, uninterrupted):
    """Also from a checkpoint without masks, and whatever windows the config has."""

    class Masked(TinyTrainer):
        @classmethod
        def build_model(cls, cfg):
            model = Tiny()
            model.mask_annealing.enabled = False
            return model

    cfg = config(tmp_path)
    cfg.MODEL.WEIGHTS = str(tmp_path / "whole" / "model_final.pth")
    annealing = cfg.MODEL.MASK_FORMER.MASK_ANNEALING
    annealing.SCHEDULE, annealing.STARTS, annealing.ENDS = "iterations", [1], [2]
    trainer = Masked(cfg)
    watcher = Watcher()
    trainer.register_hooks([watcher])
    trainer.resume_or_load(resume=False)
    assert trainer.model.mask_annealing.probs.tolist() == [0, 0]
    trainer.train()
    assert watcher.probs == [[1, 1]] * ITERATIONS


def test_evaluation_after_training_sees_the_final_probabilities(tmp_path):
    results = []

    class EvaluatedTrainer(TinyTrainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            results.append(model.mask_annealing.probs.tolist())
            return {"task": {"metric": 1.0}}

    cfg = config(tmp_path)
    cfg.TEST.EVAL_PERIOD = 3
    trainer = EvaluatedTrainer(cfg)
    trainer.train()
    # After 3, 6, 9 and 12 updates: the values that the next iteration would use.
    half = pytest.approx(0.5358867)
    assert results == [[half, 1], [0, 1], [0, half], [0, 0]]
    assert trainer.storage.latest()["task/metric"] == (1.0, ITERATIONS)


def test_skipped_updates_advance_schedule_and_annealing(tmp_path, uninterrupted, monkeypatch):
    cfg = config(tmp_path / "skipped")
    cfg.SOLVER.AMP.ENABLED = True
    cfg.SOLVER.AMP.PRECISION = "float16"
    huge = lambda model, batch: {"loss": model.head.weight.sum() * 1e38}  # noqa: E731
    monkeypatch.setattr(Tiny, "forward", huge)
    before = TinyTrainer.build_model(cfg).head.weight.tolist()
    trainer, seen = train(cfg, stop_after=ITERATIONS)
    assert trainer.model.head.weight.tolist() == before
    assert trainer._trainer.grad_scaler.get_scale() == 65536 / 2**ITERATIONS
    assert seen.rates == uninterrupted[1].rates
    assert seen.probs == uninterrupted[1].probs


def test_hooks_log_and_anneal_before_saving_and_evaluating(tmp_path):
    trainer = TinyTrainer(config(tmp_path))
    assert [type(hook).__name__ for hook in trainer._hooks] == [
        "IterationTimer",
        "LearningRateLogger",
        "HostMemoryLogger",
        "MaskAnnealingHook",
        "LRScheduler",
        "InterruptionHook",
        "PeriodicCheckpoint",
        "EvalHook",
        "PeriodicWriter",
    ]


def test_logs_hold_rates_and_probabilities(uninterrupted):
    latest = uninterrupted[0].storage.latest()
    assert {"lr/backbone", "lr/head", "mask_annealing/block_0", "mask_annealing/block_1"} < set(
        latest
    )


@contextmanager
def lines_of(name, level):
    """Log lines, caught at the source, because set-up cuts the way from there to caplog."""
    lines = []
    handler = logging.Handler(level)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def warnings_of_the_trainer():
    return lines_of("eomt_d2.engine.trainer", logging.WARNING)


class TestForeignCheckpoints:
    """Resuming from what other trainers saved."""

    def checkpoint_without(self, folder, *keys):
        train(config(folder), stop_after=6)
        path = folder / "model_0000005.pth"
        content = torch.load(path, weights_only=True)
        for key in keys:
            *parents, last = key.split(".")
            node = content
            for parent in parents:
                node = node[parent]
            del node[last]
        torch.save(content, path)

    def test_detectron2_06_saves_no_optimizer(self, tmp_path, uninterrupted):
        self.checkpoint_without(tmp_path, "trainer._trainer")
        with warnings_of_the_trainer() as lines:
            _, seen = train(config(tmp_path), resume=True, first_batch=6)
        assert "lacks the optimizer's state and the loss scaling" in lines[0]
        assert seen.rates == uninterrupted[1].rates[6:]
        assert seen.probs == uninterrupted[1].probs[6:]

    def test_detectron2_06_on_new_pytorch_saves_no_schedule(self, tmp_path, uninterrupted):
        self.checkpoint_without(tmp_path, "trainer.hooks")
        with warnings_of_the_trainer() as lines:
            resumed, seen = train(config(tmp_path), resume=True, first_batch=6)
        assert "lacks the learning-rate schedule at iteration 6" in lines[0]
        assert seen.rates == uninterrupted[1].rates[6:]
        assert_same_training(resumed, uninterrupted[0])

    def test_weights_alone_cannot_be_resumed(self, tmp_path):
        self.checkpoint_without(tmp_path, "trainer")
        with pytest.raises(UserError, match="holds weights but not the state of a training"):
            train(config(tmp_path), resume=True)

    def test_optimizer_of_another_kind(self, tmp_path):
        train(config(tmp_path), stop_after=6)
        path = tmp_path / "model_0000005.pth"
        content = torch.load(path, weights_only=True)
        content["trainer"]["_trainer"]["optimizer"]["param_groups"].pop()
        torch.save(content, path)
        with pytest.raises(UserError, match="optimizer's state in the checkpoint does not fit"):
            train(config(tmp_path), resume=True)


def test_resumes_alike_where_detectron2_saves_its_own_step(tmp_path, uninterrupted, monkeypatch):
    """Detectron2 main's DefaultTrainer saves and restores `_trainer` by itself."""
    plain_state, plain_load = DefaultTrainer.state_dict, DefaultTrainer.load_state_dict

    def state_dict(self):
        return {**plain_state(self), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state):
        plain_load(self, state)
        self._trainer.load_state_dict(state["_trainer"])

    monkeypatch.setattr(DefaultTrainer, "state_dict", state_dict)
    monkeypatch.setattr(DefaultTrainer, "load_state_dict", load_state_dict)
    train(config(tmp_path / "parts"), stop_after=6)
    resumed, _ = train(config(tmp_path / "parts"), resume=True, first_batch=6)
    assert_same_training(resumed, uninterrupted[0])


def test_resume_without_a_checkpoint_starts_anew(tmp_path, uninterrupted):
    _, seen = train(config(tmp_path / "empty"), resume=True, stop_after=2)
    assert seen.rates == uninterrupted[1].rates[:2]


def test_what_a_model_refuses_is_a_mistake_of_the_user():
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "EoMT"
    cfg.MODEL.BACKBONE.NAME = "ViT"
    cfg.MODEL.VIT.NAME = "vit_enormous"
    with pytest.raises(UserError, match="vit_enormous"):
        Trainer.build_model(cfg)


class Mistake(HookBase):
    def __init__(self, error):
        self.error = error
        self.left = False

    def before_step(self):
        if self.trainer.iter == 8:
            raise self.error

    def after_train(self):
        self.left = True


@pytest.mark.parametrize(
    ("error", "logged"),
    [(UserError("photo.jpg is damaged"), []), (ValueError("ours"), ["Exception during training:"])],
)
def test_a_mistake_of_the_user_is_not_logged_with_a_traceback(tmp_path, error, logged):
    trainer = TinyTrainer(config(tmp_path))
    mistake = Mistake(error)
    trainer.register_hooks([mistake])
    with lines_of("detectron2.engine.train_loop", logging.ERROR) as lines:
        with pytest.raises(type(error), match=str(error)):
            trainer.train()
    assert lines == logged
    # As in any training that fails, hooks finish and what was written stays.
    assert mistake.left
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000005.pth"
