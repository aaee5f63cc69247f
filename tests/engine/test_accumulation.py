"""A batch in several parts trains like the batch in one piece, also over several processes.

Run as a script, this file is one of two processes.
"""

import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eomt_d2.engine.train_step import TrainStep
from eomt_d2.errors import UserError
from eomt_d2.modeling.backbone import ViT
from eomt_d2.modeling.criterion import MaskClassificationCriterion
from eomt_d2.modeling.eomt import EoMT
from eomt_d2.modeling.matcher import HungarianMatcher
from eomt_d2.modeling.postprocessing import PostProcessing
from tests.engine.test_trainer import ITERATIONS, Tiny, config, train
from tests.modeling.draws import same_points_for_all

QUERIES, CLASSES, SIZE = 6, 4, 32
# Segments of eight images: in four parts of two, one part has none, another one more than queries.
SEGMENTS = (3, 1, 0, 0, 2, 9, 1, 0)


def make_eomt():
    torch.manual_seed(1)
    criterion = MaskClassificationCriterion(
        num_classes=CLASSES, matcher=HungarianMatcher(num_points=40), num_points=40
    )
    model = EoMT(
        backbone=ViT(
            embed_dim=32, depth=3, num_heads=2, patch_size=8, img_size=SIZE, layer_scale_init=0.0
        ),
        num_queries=QUERIES,
        num_blocks=2,
        num_classes=CLASSES,
        criterion=criterion,
        postprocessing=PostProcessing(semantic_on=True),
        pixel_mean=[128.0] * 3,
        pixel_std=[64.0] * 3,
        image_size=SIZE,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_batch():
    generator = torch.Generator().manual_seed(2)
    batch = []
    for count in SEGMENTS:
        instances = Instances((SIZE, SIZE))
        instances.gt_classes = torch.randint(CLASSES, (count,), generator=generator)
        instances.gt_masks = torch.rand(count, SIZE, SIZE, generator=generator) > 0.6
        image = torch.randint(256, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances})
    return batch


def train_once(model, batch, accumulation_steps, **kwargs):
    """One step of SGD at rate 1, which subtracts the clipped gradient from the weights.

    Returns:
        the weights after the step, and what was logged.
    """
    step = TrainStep(
        model,
        [batch],
        torch.optim.SGD(model.parameters(), lr=1.0),
        clip_gradients=lambda parameters: nn.utils.clip_grad_norm_(parameters, 1.0),
        accumulation_steps=accumulation_steps,
        **kwargs,
    )
    # The default, 65536, overflows fp16 in the first step.
    enabled = step.grad_scaler.is_enabled()
    step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=128.0, enabled=enabled)
    with EventStorage() as storage, mock.patch("torch.rand", same_points_for_all):
        step.run_step()
        logged = {name: value for name, (value, _) in storage.latest().items()}
    del logged["data_time"]
    return [parameter.detach().clone() for parameter in model.parameters()], logged


def assert_same_step(one, other):
    (weights, logged), (other_weights, other_logged) = one, other
    assert logged == pytest.approx(other_logged, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(weights, other_weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_equal_the_whole_batch(parts):
    whole = train_once(make_eomt(), make_batch(), 1)
    assert_same_step(train_once(make_eomt(), make_batch(), parts), whole)
    before = [parameter.detach() for parameter in make_eomt().parameters()]
    assert all((a != b).any() for a, b in zip(before, whole[0], strict=True))


def test_the_mean_over_parts_would_be_another_loss():
    """The parts have different numbers of masks, so their own normalisers would weigh them."""
    model, batch = make_eomt(), make_batch()
    _, whole = train_once(make_eomt(), batch, 1)
    with mock.patch("torch.rand", same_points_for_all):
        parts = [model(batch[start : start + 2]) for start in range(0, 8, 2)]
    for name in ("loss_ce", "loss_mask", "loss_dice"):
        mean = sum(losses[name].item() for losses in parts) / 4
        assert mean != pytest.approx(whole[name], rel=0.05)


def test_neither_schedule_nor_annealing_nor_result_depends_on_the_parts(tmp_path):
    whole, seen = train(config(tmp_path / "whole"))
    with mock.patch.object(Tiny, "forward", autospec=True, side_effect=Tiny.forward) as forward:
        in_parts, seen_in_parts = train(config(tmp_path / "parts", ACCUMULATION_STEPS=4))
    assert [len(call.args[1]) for call in forward.mock_calls] == [1] * 4 * ITERATIONS
    assert seen_in_parts.rates == seen.rates
    assert seen_in_parts.probs == seen.probs
    torch.testing.assert_close(dict(in_parts.model.state_dict()), dict(whole.model.state_dict()))


class Detector(nn.Module):
    """Keeps to Detectron2's contract, as GeneralizedRCNN does: losses are means over the images."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.seen = []

    def forward(self, batched_inputs):
        self.seen.append(len(batched_inputs))
        x = torch.stack([image["x"] for image in batched_inputs]) @ self.weight
        return {"loss_cls": x.square().mean(), "loss_box_reg": x.sigmoid().mean()}


def test_other_architectures_train_on_the_mean_over_the_parts():
    batch = [{"x": x} for x in torch.randn(8, 2)]
    whole, model = train_once(Detector(), batch, 1), Detector()
    assert_same_step(train_once(model, batch, 4), whole)
    assert model.seen == [2, 2, 2, 2]


@pytest.mark.parametrize("count", [7, 3])
def test_a_batch_that_cannot_be_cut_is_explained(count):
    batch = [{"x": torch.ones(2)}] * count
    with pytest.raises(UserError, match=f"has {count} images .*ACCUMULATION_STEPS 4 does not"):
        train_once(Detector(), batch, 4)


def test_half_precision_unscales_the_sum_of_all_parts_once():
    batch = [{"x": x} for x in torch.tensor([[3.0, 0.0], [0.0, 4.0]])]

    class Linear(Detector):
        def forward(self, batched_inputs):
            return {"loss": torch.stack([x["x"] for x in batched_inputs]).sum(0) @ self.weight}

    # The mean gradient of both parts is (1.5, 2), of norm 2.5, clipped to norm 1.
    weights, logged = train_once(Linear(), batch, 2, precision="float16")
    assert weights[0].tolist() == pytest.approx([1 - 0.6, -2 - 0.8], rel=1e-3)
    assert logged["grad_norm"] == pytest.approx(2.5, rel=1e-3)


def average_gradients(exchanged, bucket):
    """What DDP does by itself, and a note that it has been done."""
    exchanged.append(bucket.index())
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda reduced: reduced.value()[0] / 2)


def run_rank(rank, init_file, result_file):
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    results = []
    for parts in (1, 2, 4):
        model, exchanged = DistributedDataParallel(make_eomt()), []
        model.register_comm_hook(exchanged, average_gradients)
        images = make_batch()[4 * rank : 4 * rank + 4]
        results.append((*train_once(model, images, parts), len(exchanged)))
    torch.save(results, f"{result_file}{rank}")
    dist.destroy_process_group()


def test_parts_over_two_processes_equal_the_whole_batch(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path / "init"), str(tmp_path / "rank")],
            env=environment,
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    whole = train_once(make_eomt(), make_batch(), 1)
    for rank in range(2):
        in_one, *in_parts = torch.load(tmp_path / f"rank{rank}", weights_only=True)
        assert in_one[2] > 0
        for weights, logged, exchanged in (in_one, *in_parts):
            assert_same_step((weights, logged), whole)
            assert exchanged == in_one[2], "gradients are exchanged once, with the last part"


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), sys.argv[2], sys.argv[3])
