import json
import logging
import math

import pytest
import torch
from torch import nn

from eomt_d2.checkpoint import Checkpointer
from eomt_d2.engine.saving import BestCheckpoint, has_finite_weights
from eomt_d2.errors import UserError
from tests.engine.tiny_training import Tiny, TinyTrainer, Watcher, config, train


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("*.pth"))


def test_the_newest_are_kept_and_the_end(tmp_path):
    train(config(tmp_path, CHECKPOINT_PERIOD=2, CHECKPOINT_KEEP=2))
    assert checkpoints(tmp_path) == ["model_0000009.pth", "model_0000011.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_all_are_kept_unless_asked_otherwise(tmp_path):
    train(config(tmp_path, CHECKPOINT_PERIOD=5))
    assert checkpoints(tmp_path) == ["model_0000004.pth", "model_0000009.pth", "model_final.pth"]


class Poisoned(Tiny):
    """Its losses are NaN from some forward on."""

    def __init__(self, first_bad, last_bad):
        super().__init__()
        self.forwards, self.bad = 0, range(first_bad, last_bad + 1)

    def forward(self, batch):
        losses = super().forward(batch)
        self.forwards += 1
        return {"loss": losses["loss"] * (math.nan if self.forwards - 1 in self.bad else 1.0)}


def poisoned_trainer(cfg, *bad):
    class PoisonedTrainer(TinyTrainer):
        @classmethod
        def build_model(cls, cfg):
            return Poisoned(*bad)

    return PoisonedTrainer(cfg)


def test_nothing_is_saved_while_losses_are_bad(tmp_path):
    # Iterations 3 and 8 are due, 3 to 4 bad.
    trainer = poisoned_trainer(config(tmp_path, CHECKPOINT_PERIOD=4), 3, 4)
    trainer.train()
    assert checkpoints(tmp_path) == ["model_0000007.pth", "model_0000011.pth", "model_final.pth"]


def test_a_good_end_is_saved_after_bad_losses(tmp_path):
    trainer = poisoned_trainer(config(tmp_path, CHECKPOINT_PERIOD=4), 10, 11)
    trainer.train()
    assert checkpoints(tmp_path) == ["model_0000003.pth", "model_0000007.pth", "model_final.pth"]
    assert has_finite_weights(trainer.model)


def test_bad_weights_are_never_saved(tmp_path):
    class Spoiler(Watcher):
        def after_step(self):
            if self.trainer.iter == 7:
                nn.init.constant_(self.trainer.model.head.bias, math.inf)

    trainer = TinyTrainer(config(tmp_path, CHECKPOINT_PERIOD=4))
    spoiler = Spoiler()
    trainer.register_hooks([spoiler])
    trainer._hooks.insert(0, trainer._hooks.pop())
    with pytest.raises(
        UserError,
        match=r"infinite or NaN after iteration 7, .*the last good checkpoint is .*0000003.pth",
    ):
        trainer.train()
    assert checkpoints(tmp_path) == ["model_0000003.pth"]


def test_finite_weights():
    model = nn.Linear(2, 2)
    assert has_finite_weights(model)
    with torch.no_grad():
        model.weight[1, 0] = math.nan
    assert not has_finite_weights(model)


METRIC = "panoptic_seg/PQ"


def evaluated(value):
    return {"panoptic_seg": {"PQ": value, "SQ": 70.0}}


@pytest.fixture
def best_of(tmp_path):
    """A best checkpoint, of a training that goes on or not, and the weights it would save."""

    def build(resumed=False, metric=METRIC):
        model = nn.Linear(1, 1, bias=False)
        best = BestCheckpoint(Checkpointer(model, str(tmp_path)), metric)
        if resumed:
            best.resume()

        def update(value, iteration):
            nn.init.constant_(model.weight, iteration)
            best.update(evaluated(value), iteration)

        return update

    return build


def kept(folder):
    note = json.loads((folder / "model_best.json").read_text())
    content = torch.load(folder / "model_best.pth", weights_only=True)
    assert content["model"]["weight"].item() == content["iteration"] == note["iteration"]
    assert note["metric"] == METRIC
    return note["iteration"], note["value"]


def test_the_highest_value_is_kept(tmp_path, best_of):
    update = best_of()
    for iteration, (value, expected) in enumerate(
        [(30.0, (0, 30.0)), (math.nan, (0, 30.0)), (40.0, (2, 40.0)), (40.0, (2, 40.0)),
         (39.0, (2, 40.0))]
    ):  # fmt: skip
        update(value, iteration)
        assert kept(tmp_path) == expected
    assert not (tmp_path / "last_checkpoint").exists()


def test_a_resumed_training_knows_the_best_value(tmp_path, best_of):
    best_of(resumed=True)(40.0, 2)
    best_of(resumed=True)(39.0, 3)
    assert kept(tmp_path) == (2, 40.0)
    # A new training in the same folder starts anew.
    best_of()(35.0, 1)
    assert kept(tmp_path) == (1, 35.0)


def test_a_metric_that_was_not_evaluated(tmp_path, best_of, caplog):
    with caplog.at_level(logging.WARNING):
        best_of(metric="sem_seg/mIoU")(30.0, 1)
    assert (
        "TEST.BEST_METRIC is 'sem_seg/mIoU', which was not evaluated, so no model is the best; "
        "there are panoptic_seg/PQ, panoptic_seg/SQ."
    ) in caplog.text
    assert not list(tmp_path.iterdir())


def test_other_processes_have_no_results(tmp_path):
    BestCheckpoint(Checkpointer(nn.Linear(1, 1), str(tmp_path)), METRIC).update({}, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("values, iteration", [([1, 3, 2, 2], 5), ([1, 2, 3, 4], 11)])
def test_the_trainer_keeps_the_best(tmp_path, values, iteration):
    values = iter(values)

    class EvaluatedTrainer(TinyTrainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            return evaluated(next(values))

    cfg = config(tmp_path)
    cfg.TEST.EVAL_PERIOD = 3
    cfg.TEST.BEST_METRIC = METRIC
    EvaluatedTrainer(cfg).train()
    assert json.loads((tmp_path / "model_best.json").read_text())["iteration"] == iteration
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
