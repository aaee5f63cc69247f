import math

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from eomt_d2.engine.step_report import StepReport, gather_reports, write_metrics


def written(names, *reports):
    with EventStorage() as storage:
        write_metrics(names, reports)
        return {name: value for name, (value, _) in storage.latest().items()}


def test_a_report_holds_numbers(monkeypatch):
    losses = {"loss_x": torch.tensor(1.5), "loss_y": torch.tensor(2.0, dtype=torch.float16)}
    other = StepReport((0.5, 1.0), 3.0, 0.5, 10)
    monkeypatch.setattr(comm, "all_gather", lambda own: [own, other])
    reports = gather_reports(losses, torch.tensor(3.0), 0.25)
    assert reports == [StepReport((1.5, 2.0), 3.0, 0.25, 0), other]
    assert written(list(losses), *reports) == {
        "loss_x": 1.0, "loss_y": 1.5, "total_loss": 2.5, "data_time": 0.5, "grad_norm": 3.0,
    }  # fmt: skip


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_told_and_not_written(bad):
    good, of_loss, of_gradient = (
        StepReport(losses, norm, 0.25)
        for losses, norm in [((1.0, 2.0), 3.0), ((1.0, bad), 3.0), ((1.0, 2.0), bad)]
    )
    assert (good.loss_is_finite, good.is_finite) == (True, True)
    assert (of_loss.loss_is_finite, of_loss.is_finite) == (False, False)
    assert (of_gradient.loss_is_finite, of_gradient.is_finite) == (True, False)
    # One bad rank spoils the mean.
    assert written(["x", "y"], good, of_loss) == {"data_time": 0.25, "grad_norm": 3.0}
    assert written(["x", "y"], of_gradient) == {
        "x": 1.0, "y": 2.0, "total_loss": 3.0, "data_time": 0.25,
    }  # fmt: skip
