import copy
import itertools

import pytest
import torch
from detectron2.utils.events import EventStorage

from eomt_d2.benchmark.building import build_network, build_step
from eomt_d2.benchmark.plan import Point
from eomt_d2.benchmark.steps import observe_predict
from eomt_d2.benchmark.timing import Stopwatch
from eomt_d2.engine.train_step import TrainStep
from eomt_d2.solver import build_gradient_clipper, build_optimizer
from tests.benchmark.models import EOMT, MASK2FORMER, narrow, tiny

POINT = Point(size=64, batch=2, original_size=(60, 80))


class Phases(Stopwatch):
    """Only remembers the names."""

    def __init__(self):
        self.names = []

    def lap(self, phase):
        self.names.append(phase)


def phases_of(step):
    watch = Phases()
    step(watch)
    return watch.names


@pytest.mark.parametrize("config", [EOMT, MASK2FORMER])
def test_inference_finds_the_scene(config):
    (model,), settings = tiny(config)
    step, _ = build_step(model, POINT, settings)
    assert phases_of(step) == ["preparation", "network", "post-processing"]
    results = step(Stopwatch("cpu"))
    assert step.network_input == (2, 3, 64, 64)
    for result in results:
        segmentation, segments = result["panoptic_seg"]
        assert segmentation.shape == (60, 80)
        # Five queries, of which those with one stuff class are merged.
        assert 1 < len(segments) <= 5


def test_the_network_runs_once_on_all_images():
    (model,), settings = tiny(EOMT)
    step, _ = build_step(model, POINT, settings)
    batches = []
    for block in step.model.backbone.blocks:
        block.register_forward_pre_hook(lambda _, args: batches.append(args[0].shape[0]))
    step(Stopwatch("cpu"))
    assert batches == [2] * 6


def test_every_way_to_call_predict_is_observed():
    """By the instance, by the class, and where the instance has one of its own (compiled)."""

    class Network(torch.nn.Module):
        def predict(self, x):
            return [x]

    seen = []

    def around(predict, x):
        seen.append(x)
        return predict(x)

    plain, compiled = Network(), Network()
    compiled.predict = lambda x: [x + 1]
    for network in (plain, compiled):
        observe_predict(network, around)
    assert plain.predict(1) == [1]
    assert type(plain).predict(plain, 2) == [2]
    assert compiled.predict(3) == [4]
    assert type(compiled).predict(compiled, 4) == [4]
    assert seen == [1, 2, 3, 4]
    assert isinstance(plain, Network) and type(plain).__name__ == "Network"
    assert Network().predict(5) == [5] and seen[-1] == 4, "others are left alone"


@pytest.mark.parametrize("which", [0, 1])
def test_phases_of_training(which):
    models, settings = narrow(mode="train")
    step, _ = build_step(models[which], POINT, settings)
    for _ in range(2):
        names = phases_of(step)
        assert names == ["forward", "loss", "backward", "optimizer"]


def test_training_is_a_step_of_the_trainer():
    (model,), settings = tiny(EOMT, mode="train", opts=["SOLVER.BASE_LR", "0.01"])
    step, _ = build_step(model, POINT, settings)
    expected = copy.deepcopy(build_network(model.cfg, settings)).train()
    before = copy.deepcopy(expected.state_dict())
    trainer = TrainStep(
        expected,
        itertools.repeat(step.inputs),
        build_optimizer(model.cfg, expected),
        clip_gradients=build_gradient_clipper(model.cfg),
    )
    torch.manual_seed(5)
    with EventStorage():
        trainer.run_step()
    torch.manual_seed(5)
    step(Stopwatch("cpu"))
    for name, value in step.model.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], msg=name)
    weight = "class_head.weight"
    assert not torch.equal(before[weight], step.model.state_dict()[weight])


def test_network_alone_is_in_lower_precision():
    (model,), settings = tiny(EOMT, precision="bfloat16")
    step, _ = build_step(model, POINT, settings)
    dtypes = []
    step.model.class_head.register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
    step(Stopwatch("cpu"))
    assert dtypes == [torch.bfloat16]
    assert next(step.model.parameters()).dtype == torch.float32
