"""The kernels against the reference, on the GPU or in Triton's interpreter on the CPU.

``test_ms_deform_attn_triton.py`` runs this file; it is not collected by itself.
"""

import os

import pytest
import torch

from eomt_d2.modeling.ops import ms_deform_attn_reference
from eomt_d2.modeling.ops.ms_deform_attn_triton import ms_deform_attn_triton
from tests.modeling.ops.test_ms_deform_attn import make_inputs

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

# Batch, shapes of the levels, queries, heads, channels per head, points. Sizes that are no powers
# of two, one query more than a block, one channel; the interpreter is slow.
CASES = {
    "odd": (2, [(3, 5), (2, 2)], 5, 1, 6, 2),
    "two blocks of queries": (1, [(4, 3)], 33, 1, 32, 1),
    "heads and one channel": (1, [(1, 1), (2, 3)], 3, 2, 1, 1),
    "as in the pixel decoder": (1, [(1, 1), (2, 2), (4, 4)], 21, 1, 32, 4),
}


def run(function, inputs, grad):
    """The output and the three gradients."""
    value, shapes, *others = inputs
    leaves = [x.detach().requires_grad_() for x in (value, *others)]
    out = function(leaves[0], shapes, *leaves[1:])
    out.backward(grad)
    return [out.detach(), *(x.grad for x in leaves)]


def kernel(value, shapes, locations, weights):
    return ms_deform_attn_triton(value, [n for s in shapes for n in s], locations, weights)


def assert_kernel_equals_reference(value, shapes, locations, weights, **tolerance):
    grad = torch.randn(*locations.shape[:2], value.shape[2:].numel()).to(value)
    inputs = value, shapes, locations, weights
    expected, actual = (run(f, inputs, grad) for f in (ms_deform_attn_reference, kernel))
    for name, a, b in zip(
        ("output", "value", "locations", "weights"), actual, expected, strict=True
    ):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert b.abs().max() > 0.05
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("case", CASES)
def test_float32(case):
    batch, shapes, *sizes = CASES[case]
    value, locations, weights = (
        x.to(DEVICE) for x in make_inputs(batch, shapes, *sizes, torch.float32)
    )
    assert_kernel_equals_reference(value, shapes, locations, weights, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Values and weights in half precision, as under autocast; sums agree up to one rounding."""
    batch, shapes, *sizes = CASES["odd"]
    value, locations, weights = (
        x.to(DEVICE) for x in make_inputs(batch, shapes, *sizes, torch.float32)
    )
    assert_kernel_equals_reference(
        value.to(dtype), shapes, locations, weights.to(dtype),
        rtol=2 * torch.finfo(dtype).eps, atol=1e-4,
    )  # fmt: skip


def test_views_and_expanded_gradients():
    shapes = [(2, 3)]
    value, locations, weights = make_inputs(2, shapes, 3, 1, 5, 1, torch.float32)
    value = value.transpose(1, 2).contiguous().transpose(1, 2).to(DEVICE)
    locations = locations.flip(-1).transpose(0, 1).contiguous().transpose(0, 1).to(DEVICE)
    weights = weights.to(DEVICE)
    grad = torch.ones(1, device=DEVICE).expand(2, 3, 5)
    inputs = value, shapes, locations, weights
    for a, b in zip(
        run(kernel, inputs, grad), run(ms_deform_attn_reference, inputs, grad), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_far_locations_give_zero_and_no_gradient():
    value, _, weights = (x.to(DEVICE) for x in make_inputs(1, [(2, 2)], 2, 1, 4, 1, torch.float32))
    locations = torch.tensor([[1e30, 0.5], [0.5, -1e30]], device=DEVICE).view(1, 2, 1, 1, 1, 2)
    out, *gradients = run(
        kernel, (value, [(2, 2)], locations, weights), torch.ones(1, 2, 4, device=DEVICE)
    )
    for tensor in (out, *gradients):
        assert torch.equal(tensor, torch.zeros_like(tensor))


def test_operator_is_complete():
    """PyTorch's own checks of what torch.compile relies on: schema, fake tensors, autograd."""
    value, locations, weights = (
        x.to(DEVICE).requires_grad_() for x in make_inputs(1, [(1, 2)], 2, 1, 2, 1, torch.float32)
    )
    torch.library.opcheck(
        torch.ops.eomt_d2.ms_deform_attn,
        (value, [1, 2], locations, weights),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_compiled_without_graph_break():
    value, locations, weights = (
        x.to(DEVICE) for x in make_inputs(1, [(2, 2)], 3, 1, 2, 1, torch.float32)
    )
    compiled = torch.compile(kernel, backend="aot_eager", fullgraph=True)
    inputs, grad = (value, [(2, 2)], locations, weights), torch.ones(1, 3, 2, device=DEVICE)
    for a, b in zip(run(compiled, inputs, grad), run(kernel, inputs, grad), strict=True):
        torch.testing.assert_close(a, b)


def test_no_queries_and_no_images():
    for batch, queries in ((1, 0), (0, 3)):
        value, locations, weights = make_inputs(batch, [(2, 2)], queries, 1, 2, 1, torch.float32)
        inputs = value.to(DEVICE), [(2, 2)], locations.to(DEVICE), weights.to(DEVICE)
        out, grad_value, *_ = run(kernel, inputs, torch.ones(batch, queries, 2, device=DEVICE))
        assert out.shape == (batch, queries, 2)
        assert not grad_value.any()
