"""One linear parameter pair whose loss 3 x + 4 y has the gradient (3, 4), norm 5."""

import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from eomt_d2.engine.train_step import TrainStep, write_metrics


class Plane(nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 1.0]))
        self.factor = factor
        self.dtypes = []

    def forward(self, batch):
        product = torch.tensor([[3.0, 4.0]], device=self.weight.device) @ self.weight[:, None]
        self.dtypes.append(product.dtype)
        return {"loss_a": product.float().sum() * self.factor, "loss_b": self.weight.sum() * 0}


def clip_to(limit):
    return lambda parameters: nn.utils.clip_grad_norm_(parameters, limit)


def make_step(model, *, precision="float32", fused=None):
    # Learning rate 1 and no momentum: a step changes the weights by minus the clipped gradient.
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=fused)
    return with_small_scale(
        TrainStep(model, [[{}]] * 10, optimizer, clip_gradients=clip_to(0.01), precision=precision)
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
    model = Plane(factor=1e37)
    step = make_step(model, precision="float16", fused=fused)
    scalars = run(step)
    assert model.weight.tolist() == [1.0, 1.0]
    assert step.grad_scaler.get_scale() == 64.0
    assert "grad_norm" not in scalars


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_a_bad_loss_stops_before_the_update(factor):
    model = Plane(factor)
    with pytest.raises(FloatingPointError, match="infinite or NaN at iteration 0.*loss_a"):
        run(make_step(model))
    assert model.weight.tolist() == [1.0, 1.0]


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


def test_metrics_add_up():
    losses = {"loss_x": torch.tensor(1.5), "loss_y": torch.tensor(2.0, dtype=torch.float16)}
    with EventStorage() as storage:
        write_metrics(losses, torch.tensor(math.inf), 0.25)
        scalars = {name: value for name, (value, _) in storage.latest().items()}
    assert scalars == {"loss_x": 1.5, "loss_y": 2.0, "total_loss": 3.5, "data_time": 0.25}


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
