import pytest
import torch
from detectron2.structures import BitMasks, Instances
from torch import nn

from eomt_d2.benchmark.memory import peak_memory, resident_bytes, tensors_of

MB = 1_000_000


def floats(millions):
    return torch.zeros(millions * MB // 4)


def test_peak_is_the_worst_moment_and_not_the_sum():
    """2 MB, then 2 + 5, then 5, then 5 + 1; and 3 MB that were there before."""
    held = floats(3)

    def step():
        first = floats(2)
        second = floats(5)
        del first
        third = floats(1)
        return second, third

    step()
    assert peak_memory(step, "cpu", [held]) == 10 * MB


def test_memory_inside_of_an_operation_counts():
    """logsumexp gives one number, but makes the exponentials of all 4 MB on its way."""
    x = floats(4)

    def step():
        return x.logsumexp(0)

    step()
    assert 4 * MB <= peak_memory(step, "cpu", []) < 9 * MB


def test_a_backward_pass_counts_its_gradients():
    """y = x * x: 4 MB of y; a gradient of y (expanded, 4 bytes), one of x and its parts."""
    x = floats(4).requires_grad_()

    def step():
        x.grad = None
        (x * x).sum().backward()

    step()
    x.grad = None
    peak = peak_memory(step, "cpu", [x])
    assert peak >= 4 * MB + 4 * MB + 4 * MB
    assert peak < 21 * MB


def test_shared_memory_counts_once():
    base = floats(1)
    assert resident_bytes([base, base[:10], base.view(2, -1), floats(2)]) == 3 * MB


def test_tensors_are_found_everywhere():
    module = nn.BatchNorm1d(3)  # weight, bias; running mean and variance, number of batches
    instances = Instances((2, 2))
    instances.gt_classes = torch.zeros(1)
    instances.gt_masks = BitMasks(torch.zeros(1, 2, 2))
    batch = [{"image": torch.zeros(3), "instances": instances, "height": 2}]
    assert len(tensors_of(module)) == 5
    assert len(tensors_of(batch)) == 3
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    assert len(tensors_of(optimizer)) == 2 * 3, "two moments and the step of both parameters"


@pytest.mark.cuda
def test_peak_on_a_gpu():
    held = floats(3).cuda()
    # The allocator hands out multiples of 512 bytes.
    peak = peak_memory(lambda: torch.zeros(512 * 1000, device="cuda"), "cuda", [held])
    assert peak == 3 * MB + 4 * 512 * 1000
