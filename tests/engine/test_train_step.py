"""One linear parameter pair whose loss 3 x + 4 y has the gradient (3, 4), norm 5."""

import math
from itertools import repeat

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from eomt_d2.engine.step_report import NonFiniteError
from eomt_d2.engine.train_step import TrainStep


class Plane(nn.Module):
    """``factors``: of loss_a, one after the other, the last one for ever."""

    def __init__(self, *factors):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 1.0]))
        self.factors = list(factors or [1.0])
        self.dtypes = []

    def forward(self, batch):
        product = torch.tensor([[3.0, 4.0]], device=self.weight.device) @ self.weight[:, None]
        self.dtypes.append(product.dtype)
        factor = self.factors.pop(0) if len(self.factors) > 1 else self.factors[0]
        return {"loss_a": product.float().sum() * factor, "loss_b": self.weight.sum() * 0}


def clip_to(limit):
    return lambda parameters: nn.utils.clip_grad_norm_(parameters, limit)


def make_step(model, *, precision="float32", fused=None, batch=({},), **options):
    # Learning rate 1 and no momentum: a step changes the weights by minus the clipped gradient.
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=fused)
    clip = clip_to(0.01)
    return with_small_scale(
        TrainStep(
            model, repeat(batch), optimizer, clip_gradients=clip, precision=precision, **options
        )
    )


def with_small_scale(step):
    """Loss scaling from 128, because 4 * 65536 overflows fp16 in the first step."""
    scaler = step.grad_scaler
    step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=128.0, enabled=scaler.is_enabled())
    return step


def run(step, iterations=1):
    with EventStorage() as storage:
        for _ in range(iterations):
            step.run_step()
        return {name: value for name, (value, _) in storage.latest().items()}


def test_the_update_is_the_clipped_gradient():
    model = Plane()
    scalars = run(make_step(model))
    assert model.weight.tolist() == pytest.approx([1 - 0.006, 1 - 0.008])
    assert scalars["loss_a"] == scalars["total_loss"] == 7.0
    assert scalars["loss_b"] == 0.0
    assert scalars["grad_norm"] == pytest.approx(5.0)
    assert scalars["data_time"] >= 0


def test_every_iteration_starts_from_no_gradient():
    assert run(make_step(Plane()), 3)["grad_norm"] == pytest.approx(5.0)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_mixed_precision_clips_the_true_gradient(precision, fused):
    # A fused optimizer would unscale inside its own step, after a clipping of scaled gradients.
    model = Plane()
    step = make_step(model, precision=precision, fused=fused)
    assert step.grad_scaler.is_enabled() == (precision == "float16")
    scalars = run(step)
    assert model.dtypes == [getattr(torch, precision)]
    assert model.weight.tolist() == pytest.approx([1 - 0.006, 1 - 0.008], rel=1e-4)
    assert scalars["grad_norm"] == pytest.approx(5.0, rel=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_skips_the_update_and_lowers_the_scale(fused):
    # 7e37 is finite, 7e37 * 128 is not.
    model = Plane(1e37)
    step = make_step(model, precision="float16", fused=fused)
    scalars = run(step)
    assert model.weight.tolist() == [1.0, 1.0]
    assert step.grad_scaler.get_scale() == 64.0
    assert "grad_norm" not in scalars
    model.factors = [1.0]
    run(step)
    assert model.weight.tolist() == pytest.approx([1 - 0.006, 1 - 0.008], rel=1e-4)
    assert step.skipped_steps == 0


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_bad_loss_skips_the_update_and_training_recovers(bad, precision, caplog):
    model = Plane(bad, bad, 1.0)
    step = make_step(model, precision=precision, batch=[{"file_name": "a.jpg"}])
    scalars = run(step, 2)
    assert model.weight.tolist() == [1.0, 1.0]
    assert step.skipped_steps == 2
    assert "total_loss" not in scalars
    assert [record.getMessage() for record in caplog.records] == [
        "The loss is infinite or NaN at iteration 0, whose update is skipped; its images: a.jpg."
    ]
    assert run(step)["loss_a"] == 7.0
    assert model.weight.tolist() == pytest.approx([1 - 0.006, 1 - 0.008])
    assert step.skipped_steps == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_bad_gradient_skips_the_update_without_loss_scaling_too(precision, caplog):
    # The loss is finite, but the square of its gradient's norm is not.
    model = Plane(1e37)
    assert run(make_step(model, precision=precision))["loss_a"] == pytest.approx(7e37, rel=0.01)
    assert model.weight.tolist() == [1.0, 1.0]
    assert "The gradient is infinite or NaN at iteration 0" in caplog.text


def test_bad_losses_in_a_row_end_the_training():
    model = Plane(math.nan, 1.0, math.nan)
    batch = [{"file_name": "a.jpg"}, {"file_name": "b.jpg"}]
    step = make_step(model, batch=batch, max_skipped_steps=3)
    run(step, 4)
    assert step.skipped_steps == 2
    step.iter = 4
    after_one_step = model.weight.tolist()
    with pytest.raises(
        NonFiniteError,
        match=r"^The loss was infinite or NaN in 3 iterations in a row, up to iteration 4 with the "
        r"images a.jpg, b.jpg$",
    ):
        run(step)
    assert model.weight.tolist() == after_one_step


def test_only_the_images_of_bad_ranks_are_named(monkeypatch):
    def gather(own):
        if isinstance(own, list):
            return [own, ["other.jpg"]]
        return [own, own._replace(losses=(1.0, 1.0))]

    monkeypatch.setattr(comm, "all_gather", gather)
    step = make_step(Plane(math.nan), batch=[{"file_name": "a.jpg"}], max_skipped_steps=1)
    with pytest.raises(NonFiniteError, match="with the images a.jpg$"):
        run(step)


def test_a_signal_to_any_rank_is_known_to_all(monkeypatch):
    step = make_step(Plane())
    monkeypatch.setattr(comm, "all_gather", lambda own: [own, own._replace(signal=10)])
    run(step)
    assert step.agreed_signal == 10


class Drawing(Plane):
    def forward(self, batch):
        self.drawn = torch.rand(1).item()
        return super().forward(batch)


def test_random_numbers_depend_on_seed_iteration_and_rank(monkeypatch):
    def drawn(seed, iteration, rank=0):
        model = Drawing()
        step = make_step(model)
        step.seed, step.iter = seed, iteration
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        torch.rand(1)
        run(step)
        return model.drawn

    assert drawn(1, 2) == drawn(1, 2)
    assert len({drawn(1, 2), drawn(2, 2), drawn(1, 3), drawn(1, 2, rank=1)}) == 4


def test_the_loader_starts_with_the_first_step():
    started = []

    def batches():
        started.append(True)
        yield [{}]

    optimizer = torch.optim.SGD((model := Plane()).parameters(), lr=1.0)
    step = TrainStep(model, batches(), optimizer, clip_gradients=clip_to(1.0))
    assert not started
    run(step)
    assert started


def test_a_model_left_in_evaluation_mode_is_noticed():
    model = Plane()
    step = make_step(model)
    model.eval()
    with pytest.raises(RuntimeError, match="evaluation mode"):
        run(step)


def test_state_restores_momentum_and_scale():
    def fresh():
        model = Plane()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return with_small_scale(
            TrainStep(
                model, [[{}]] * 10, optimizer, clip_gradients=clip_to(1.0), precision="float16"
            )
        )

    step = fresh()
    run(step, 3)
    step.grad_scaler.update(32.0)
    other = fresh()
    other.load_state_dict(step.state_dict())
    assert other.grad_scaler.get_scale() == 32.0
    (state,) = other.optimizer.state.values()
    assert state["step"] == 3
    assert (
        state["exp_avg"].tolist() == next(iter(step.optimizer.state.values()))["exp_avg"].tolist()
    )


def test_state_saved_without_scaling_starts_with_a_fresh_scale():
    plain, scaled = make_step(Plane()), make_step(Plane(), precision="float16")
    scaled.load_state_dict(plain.state_dict())
    assert scaled.grad_scaler.get_scale() == 128.0


@pytest.mark.cuda
def test_fused_adamw_under_loss_scaling_equals_full_precision():
    def train(precision):
        torch.manual_seed(0)
        model = Plane().cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        step = TrainStep(
            model, [[{}]] * 10, optimizer, clip_gradients=clip_to(0.01), precision=precision
        )
        step.grad_scaler = torch.amp.GradScaler(
            "cuda", init_scale=128.0, enabled=precision == "float16"
        )
        run(step, 5)
        return model.weight.tolist()

    assert train("float16") == pytest.approx(train("float32"), rel=1e-3)
