"""Two parameters with gradients (3, 4) and (12,): norms 5 and 12, together 13."""

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from eomt_d2.config import add_eomt_config
from eomt_d2.errors import UserError
from eomt_d2.solver import build_gradient_clipper


def clip(**settings):
    cfg = get_cfg()
    add_eomt_config(cfg)
    for key, value in settings.items():
        cfg.SOLVER.CLIP_GRADIENTS[key] = value
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad = torch.tensor([3.0, 4.0])
    parameters[1].grad = torch.tensor([12.0])
    norm = build_gradient_clipper(cfg)(iter(parameters))
    return float(norm), [*parameters[0].grad.tolist(), *parameters[1].grad.tolist()]


@pytest.mark.parametrize(
    "settings, expected",
    [
        # The default: the total norm is 0.01.
        ({}, [0.03 / 13, 0.04 / 13, 0.12 / 13]),
        ({"CLIP_VALUE": 20.0}, [3.0, 4.0, 12.0]),
        ({"CLIP_TYPE": "norm", "CLIP_VALUE": 10.0}, [3.0, 4.0, 10.0]),
        ({"CLIP_TYPE": "value", "CLIP_VALUE": 3.5}, [3.0, 3.5, 3.5]),
        ({"ENABLED": False}, [3.0, 4.0, 12.0]),
        ({"NORM_TYPE": float("inf"), "CLIP_VALUE": 6.0}, [1.5, 2.0, 6.0]),
    ],
)
def test_clipped_gradients(settings, expected):
    norm, gradients = clip(**settings)
    assert gradients == pytest.approx(expected, rel=1e-4)
    assert norm == pytest.approx(12.0 if "NORM_TYPE" in settings else 13.0)


def test_parameters_without_gradient_do_not_count():
    cfg = get_cfg()
    add_eomt_config(cfg)
    unused, used = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    used.grad = torch.tensor([2.0])
    assert float(build_gradient_clipper(cfg)([unused, used])) == 2.0
    assert unused.grad is None


def test_unknown_type():
    with pytest.raises(UserError, match="CLIP_TYPE is 'adaptive'; it must be full_model"):
        clip(CLIP_TYPE="adaptive")
