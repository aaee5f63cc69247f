"""The two-stage schedule. Decimal literals were computed by hand with `bc` from the formulas
s / 500, (s - 500) / 1000 and (1 - (s - w) / (88692 - w))^0.9 with w = 500 and 1500."""

import warnings

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from eomt_d2.config import add_eomt_config
from eomt_d2.errors import UserError
from eomt_d2.solver import TwoStageWarmupPolyLR, build_lr_scheduler, two_stage_poly_factor

COCO_12_EPOCHS = {"warmup_head": 500, "warmup_backbone": 1000, "max_iter": 88692, "power": 0.9}


@pytest.mark.parametrize(
    "step, head, backbone",
    [
        (0, 0.0, 0.0),
        (250, 0.5, 0.0),
        (499, 0.998, 0.0),
        (500, 1.0, 0.0),
        (1000, 0.99489604693668798, 0.5),
        (1500, 0.98978918286811083, 1.0),
        (44346, 0.53862032174862275, 0.54417681165989645),
        (88691, 3.5409005361251752e-05, 3.5774290095439439e-05),
        (88692, 0.0, 0.0),
        (100000, 0.0, 0.0),
    ],
)
def test_factor_of_a_coco_training(step, head, backbone):
    assert two_stage_poly_factor(step, "head", **COCO_12_EPOCHS) == pytest.approx(head, abs=1e-12)
    assert two_stage_poly_factor(step, "backbone", **COCO_12_EPOCHS) == pytest.approx(
        backbone, abs=1e-12
    )


def test_without_warm_ups_both_roles_decay_together():
    # Power 1: 1 - s / T.
    for role in ("head", "backbone"):
        shape = {"warmup_head": 0, "warmup_backbone": 0, "max_iter": 10, "power": 1.0}
        assert [two_stage_poly_factor(s, role, **shape) for s in (0, 5, 9)] == pytest.approx(
            [1.0, 0.5, 0.1]
        )


def optimizer_and_schedule(max_iter=20):
    optimizer = torch.optim.SGD(
        [
            {"params": [nn.Parameter(torch.zeros(1))], "lr": 1e-2, "role": "head"},
            {"params": [nn.Parameter(torch.zeros(1))], "lr": 1e-3, "role": "backbone"},
        ]
    )
    schedule = TwoStageWarmupPolyLR(
        optimizer, warmup_head=2, warmup_backbone=4, max_iter=max_iter, power=1.0
    )
    return optimizer, schedule


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def test_scheduler_sets_each_group_by_its_role():
    optimizer, schedule = optimizer_and_schedule()
    seen = []
    for _ in range(8):
        seen.append(rates(optimizer))
        optimizer.step()
        schedule.step()
    head, backbone = zip(*seen, strict=True)
    assert head == pytest.approx(
        [0, 0.5e-2, 1e-2, 1e-2 * 17 / 18, 1e-2 * 16 / 18, 1e-2 * 15 / 18, 1e-2 * 14 / 18,
         1e-2 * 13 / 18]
    )  # fmt: skip
    assert backbone == pytest.approx([0, 0, 0, 0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3 * 13 / 14])


def test_saved_schedule_continues_where_it_was():
    optimizer, schedule = optimizer_and_schedule()
    for _ in range(5):
        optimizer.step()
        schedule.step()
    fresh_optimizer, fresh_schedule = optimizer_and_schedule()
    fresh_schedule.load_state_dict(schedule.state_dict())
    assert rates(fresh_optimizer) == rates(optimizer)
    optimizer.step(), schedule.step()
    fresh_optimizer.step(), fresh_schedule.step()
    assert rates(fresh_optimizer) == rates(optimizer)


def test_detectron2_of_any_release_takes_it_for_a_schedule():
    # v0.6 asks for the first, main for the second, before it saves or restores anything.
    assert issubclass(TwoStageWarmupPolyLR, torch.optim.lr_scheduler._LRScheduler)
    assert issubclass(TwoStageWarmupPolyLR, torch.optim.lr_scheduler.LRScheduler)


def test_a_skipped_first_update_is_no_reason_to_warn():
    _, schedule = optimizer_and_schedule()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.step()
    assert schedule.last_epoch == 1


def test_warm_ups_must_leave_room():
    with pytest.raises(ValueError, match=r"max_iter \(6\) must exceed .* \(2 \+ 4\)"):
        optimizer_and_schedule(max_iter=6)


def config(name):
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.SOLVER.LR_SCHEDULER_NAME = name
    cfg.SOLVER.MAX_ITER = 2000
    return cfg


def test_config_describes_the_schedule():
    optimizer, _ = optimizer_and_schedule()
    for group in optimizer.param_groups:
        del group["initial_lr"]
        group["lr"] = 1.0
    schedule = build_lr_scheduler(config("TwoStageWarmupPolyLR"), optimizer)
    schedule.load_state_dict({"last_epoch": 1000})
    # Defaults 500 + 1000 and power 0.9: (1 - 500 / 1500)^0.9 and (1000 - 500) / 1000.
    assert rates(optimizer) == pytest.approx([0.6942532, 0.5], abs=1e-6)


def test_other_names_go_to_detectron2():
    optimizer, _ = optimizer_and_schedule()
    schedule = build_lr_scheduler(config("WarmupCosineLR"), optimizer)
    assert type(schedule).__name__ == "LRMultiplier"


def test_unknown_name():
    optimizer, _ = optimizer_and_schedule()
    with pytest.raises(UserError, match="SOLVER.LR_SCHEDULER_NAME is 'Sawtooth'"):
        build_lr_scheduler(config("Sawtooth"), optimizer)


def test_mask2former_s_poly_schedule_has_no_warm_up():
    """(1 - 1000 / 2000)^0.9 for every group; with a warm-up of Detectron2's kind it is refused."""
    optimizer, _ = optimizer_and_schedule()
    for group in optimizer.param_groups:
        del group["initial_lr"]
        group["lr"] = 1.0
    cfg = config("WarmupPolyLR")
    cfg.SOLVER.WARMUP_ITERS = 0
    schedule = build_lr_scheduler(cfg, optimizer)
    schedule.load_state_dict({"last_epoch": 1000})
    assert rates(optimizer) == pytest.approx([0.5358867, 0.5358867], abs=1e-6)
    cfg.SOLVER.WARMUP_ITERS = 10
    with pytest.raises(UserError, match="WARMUP_ITERS 10 and WARMUP_FACTOR 0.001; only its form"):
        build_lr_scheduler(cfg, optimizer)
