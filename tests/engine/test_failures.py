import math

import pytest
import torch

from eomt_d2.errors import UserError
from tests.engine.tiny_training import (
    Tiny,
    TinyTrainer,
    assert_same_training,
    config,
    train,
)

FULL = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def fail_at(iteration, trainer_class=TinyTrainer, place="forward"):
    """A trainer whose GPU is too small for one iteration, in the network or in the update."""

    class Failing(trainer_class):
        def run_step(self):
            if self.iter == iteration and place == "forward":
                self.model.register_forward_hook(lambda *_: fail())
            if self.iter == iteration and place == "update":
                self.optimizer.register_step_post_hook(lambda *_: fail())
            super().run_step()

    def fail():
        raise FULL

    return Failing


def test_too_little_memory_saves_what_is_complete(tmp_path):
    cfg = config(tmp_path / "parts", ACCUMULATION_STEPS=2)
    with pytest.raises(UserError) as raised:
        fail_at(8)(cfg).train()
    assert str(raised.value) == (
        "The memory of the GPU did not suffice in iteration 8; raise SOLVER.ACCUMULATION_STEPS "
        "(now 2), which needs less for the same updates, set MODEL.VIT.ACTIVATION_CHECKPOINTING "
        "True, or lower SOLVER.IMS_PER_BATCH (now 16); the last good checkpoint is "
        f"{tmp_path}/parts/model_0000007.pth."
    )
    whole, _ = train(config(tmp_path / "whole", ACCUMULATION_STEPS=2))
    resumed, seen = train(cfg, resume=True, first_batch=8)
    assert len(seen.rates) == 4
    assert_same_training(resumed, whole)


def test_half_an_update_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="the last good checkpoint is .*/model_0000005.pth"):
        fail_at(8, place="update")(config(tmp_path)).train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000005.pth"


def test_too_little_memory_from_the_beginning(tmp_path):
    with pytest.raises(UserError, match="in iteration 0; .*; there is no checkpoint yet"):
        fail_at(0)(config(tmp_path)).train()
    assert not list(tmp_path.glob("*.pth"))


def test_too_little_memory_after_resuming_names_what_was_resumed(tmp_path):
    train(config(tmp_path), stop_after=6)
    trainer = fail_at(6)(config(tmp_path))
    trainer.resume_or_load(resume=True)
    with pytest.raises(UserError, match="the last good checkpoint is .*/model_0000005.pth"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("*.pth")] == ["model_0000005.pth"]


@pytest.mark.parametrize("period, when, name", [
    (5, "after iteration 4", "model_0000004.pth"),
    (0, "after the last iteration", "model_final.pth"),
])  # fmt: skip
def test_too_little_memory_to_evaluate(tmp_path, period, when, name):
    class Evaluated(TinyTrainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            raise FULL

    cfg = config(tmp_path)
    cfg.TEST.EVAL_PERIOD = period
    with pytest.raises(UserError, match=f"did not suffice {when}; set TEST.SEM.*/{name}"):
        Evaluated(cfg).train()
    assert (tmp_path / "last_checkpoint").read_text() == name


def test_persistently_bad_losses(tmp_path, monkeypatch):
    forward = Tiny.forward

    def poisoned(self, batch):
        self.forwards = getattr(self, "forwards", 0) + 1
        return {"loss": forward(self, batch)["loss"] * (math.nan if self.forwards > 8 else 1.0)}

    monkeypatch.setattr(Tiny, "forward", poisoned)
    with pytest.raises(UserError) as raised:
        TinyTrainer(config(tmp_path, MAX_SKIPPED_STEPS=4)).train()
    assert str(raised.value).startswith(
        "The loss was infinite or NaN in 4 iterations in a row, up to iteration 11 with the images "
        "an image without a file, an image without a file, an image without a file, an image "
        f"without a file; the last good checkpoint is {tmp_path}/model_0000005.pth; look at these "
        "images"
    )
    assert [path.name for path in tmp_path.glob("*.pth")] == ["model_0000005.pth"]
