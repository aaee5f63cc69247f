"""With a fixed seed a training repeats itself to the last bit."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from eomt_d2.config import add_eomt_config
from eomt_d2.engine.train_step import TrainStep
from eomt_d2.solver import build_optimizer
from eomt_d2.solver.clipping import build_gradient_clipper
from tests.modeling.test_eomt import make_model, perturb, training_input


def trained_weights(seed, annealed):
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_eomt_config(cfg)
    torch.manual_seed(seed)
    model = perturb(make_model()).train()
    model.mask_annealing.set_probs([0.0, 0.0] if annealed else [1.0, 0.5])
    batches = [[training_input(2), training_input(5)] for _ in range(3)]
    step = TrainStep(
        model,
        batches,
        build_optimizer(cfg, model),
        clip_gradients=build_gradient_clipper(cfg),
    )
    with EventStorage():
        for _ in batches:
            step.run_step()
    return model.state_dict()


@pytest.mark.parametrize("annealed", [False, True])
def test_one_seed_gives_equal_weights(annealed):
    first, second, other = (trained_weights(seed, annealed) for seed in (3, 3, 4))
    for name, weights in first.items():
        assert torch.equal(weights, second[name]), name
    assert not torch.equal(first["class_head.weight"], other["class_head.weight"])
