"""Learning rates and masking probabilities for any length of training, warm-ups and windows."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eomt_d2.modeling.masked_attention import annealing_windows, masking_probability
from eomt_d2.solver.lr_scheduler import TwoStageWarmupPolyLR, two_stage_poly_factor

QUICK = settings(max_examples=150, derandomize=True, database=None, deadline=None)
POWERS = st.floats(0.05, 5)


@st.composite
def schedules(draw, longest=10**6):
    head, backbone = (draw(st.integers(0, longest // 3)) for _ in "hb")
    max_iter = head + backbone + draw(st.integers(1, longest // 3))
    return dict(warmup_head=head, warmup_backbone=backbone, max_iter=max_iter, power=draw(POWERS))


@given(schedule=schedules(), role=st.sampled_from(["head", "backbone"]), data=st.data())
@QUICK
def test_rates_rise_once_and_then_fall_to_zero(schedule, role, data):
    max_iter = schedule["max_iter"]
    peak = schedule["warmup_head"] + schedule["warmup_backbone"] * (role == "backbone")
    steps = data.draw(st.lists(st.integers(0, max_iter + 5), min_size=2, max_size=20))
    steps = sorted({0, peak, max(0, peak - 1), max_iter - 1, max_iter, *steps})
    factors = [two_stage_poly_factor(step, role, **schedule) for step in steps]
    assert all(0 <= factor <= 1 for factor in factors)
    for (step, factor), (later, after) in zip(
        zip(steps, factors, strict=True), zip(steps[1:], factors[1:], strict=True), strict=False
    ):
        assert (factor <= after) if later <= peak else True
        assert (factor >= after) if step >= peak else True
    by_step = dict(zip(steps, factors, strict=True))
    assert by_step[peak] == 1
    assert by_step[max_iter] == 0 < by_step[max_iter - 1]
    if peak:
        assert by_step[0] == 0
    if role == "backbone":
        assert two_stage_poly_factor(schedule["warmup_head"], role, **schedule) == (
            0 if schedule["warmup_backbone"] else 1
        )


@given(schedule=schedules(longest=60), data=st.data())
@settings(QUICK, max_examples=60)
def test_a_schedule_continues_where_it_was_saved(schedule, data):
    def new():
        groups = [
            {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr, "role": role}
            for lr, role in ((1e-3, "head"), (1e-4, "backbone"))
        ]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        return optimizer, TwoStageWarmupPolyLR(optimizer, **schedule)

    def rates(optimizer):
        return [group["lr"] for group in optimizer.param_groups]

    optimizer, scheduler = new()
    saved_at = data.draw(st.integers(0, schedule["max_iter"]))
    state = None
    seen = []
    for step in range(schedule["max_iter"] + 1):
        seen.append(rates(optimizer))
        if step == saved_at:
            state = scheduler.state_dict()
        optimizer.step()
        scheduler.step()
    optimizer, scheduler = new()
    scheduler.load_state_dict(state)
    for step in range(saved_at, schedule["max_iter"] + 1):
        assert rates(optimizer) == seen[step]
        optimizer.step()
        scheduler.step()


@given(schedule=schedules(), excess=st.integers(0, 1000))
@settings(QUICK, max_examples=30)
def test_warm_ups_that_do_not_fit_are_refused(schedule, excess):
    schedule["max_iter"] = max(0, schedule["warmup_head"] + schedule["warmup_backbone"] - excess)
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "role": "head"}], lr=1.0)
    with pytest.raises(ValueError, match="must exceed the two warm-ups"):
        TwoStageWarmupPolyLR(optimizer, **schedule)


@given(start=st.floats(0, 1e6), length=st.floats(0, 1e6), power=POWERS, data=st.data())
@QUICK
def test_masking_falls_from_one_to_zero(start, length, power, data):
    end = start + length
    last = math.ceil(end) + 3
    iterations = sorted({0, last, *data.draw(st.lists(st.integers(0, last), max_size=20))})
    values = [masking_probability(i, start, end, power) for i in iterations]
    assert all(0 <= value <= 1 for value in values)
    assert values == sorted(values, reverse=True)
    for i, value in zip(iterations, values, strict=True):
        if i < start:
            assert value == 1
        if i > end:
            assert value == 0


@given(num_blocks=st.integers(1, 40), max_iter=st.integers(0, 10**7))
@QUICK
def test_windows_follow_one_another_inside_the_training(num_blocks, max_iter):
    windows = annealing_windows(num_blocks, max_iter)
    assert len(windows) == num_blocks
    assert windows == sorted(windows)
    for start, end in windows:
        assert 0 <= start <= end <= max_iter
        # Each takes a sixth, to rounding of both ends.
        assert abs((end - start) - max_iter / 6) <= 1
    assume(num_blocks > 1)
    assert abs(windows[-1][1] - max_iter * 5 / 6) <= 1
