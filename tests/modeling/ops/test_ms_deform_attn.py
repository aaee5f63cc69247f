"""The reference of deformable attention against loops over single pixels, and by hand."""

import itertools
import math

import pytest
import torch

from eomt_d2.modeling.ops import ms_deform_attn, ms_deform_attn_reference


def make_inputs(batch, shapes, queries, heads, dim, points, dtype=torch.double):
    tokens = sum(h * w for h, w in shapes)
    size = (batch, queries, heads, len(shapes), points)
    value = torch.randn(batch, tokens, heads, dim, dtype=dtype)
    # A quarter of the range lies outside of the maps.
    locations = torch.rand(*size, 2, dtype=dtype) * 1.4 - 0.2
    weights = torch.randn(*size, dtype=dtype)
    return value, locations, weights


def pixel_by_pixel(value, shapes, locations, weights):
    """Equation 3 of the paper: a pixel counts as far as it is nearer than one pixel, per axis."""
    batch, queries, heads, levels, points, _ = locations.shape
    dim = value.shape[-1]
    out = torch.zeros(batch, queries, heads * dim, dtype=value.dtype)
    for b, q, h, p in itertools.product(*map(range, (batch, queries, heads, points))):
        start = 0
        for level, (height, width) in enumerate(shapes):
            x = locations[b, q, h, level, p, 0] * width - 0.5
            y = locations[b, q, h, level, p, 1] * height - 0.5
            for i, j in itertools.product(range(height), range(width)):
                share = max(0, 1 - abs(x - j)) * max(0, 1 - abs(y - i))
                pixel = value[b, start + i * width + j, h]
                weight = weights[b, q, h, level, p]
                out[b, q, h * dim : (h + 1) * dim] += weight * share * pixel
            start += height * width
    return out


@pytest.mark.parametrize("shapes", [[(3, 4)], [(1, 1), (2, 5), (4, 3)]])
def test_equals_a_loop_over_pixels(shapes):
    inputs = make_inputs(2, shapes, 3, 2, 3, 2)
    value, locations, weights = inputs
    expected = pixel_by_pixel(value, shapes, locations, weights)
    assert expected.std() > 0.1
    torch.testing.assert_close(ms_deform_attn(value, shapes, locations, weights), expected)


def test_by_hand():
    """One row of pixels 1, 2, 4. Locations: the centre of the second; half way to the third; half
    a pixel outside of the last, where half of it is left; far outside."""
    value = torch.tensor([1.0, 2, 4]).view(1, 3, 1, 1)
    x = torch.tensor([0.5, 2 / 3, 1.0, 7.0])
    locations = torch.stack((x, torch.full_like(x, 0.5)), -1).view(1, 4, 1, 1, 1, 2)
    out = ms_deform_attn(value, [(1, 3)], locations, torch.full((1, 4, 1, 1, 1), 2.0))
    assert out.flatten().tolist() == pytest.approx([4, 6, 4, 0], abs=1e-5)


def test_gradients():
    value, locations, weights = make_inputs(1, [(2, 3), (3, 2)], 2, 2, 2, 2)
    inputs = tuple(x.requires_grad_() for x in (value, locations, weights))
    assert torch.autograd.gradcheck(
        lambda v, x, w: ms_deform_attn_reference(v, [(2, 3), (3, 2)], x, w), inputs
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_float32(dtype):
    """The result is the one in float64 of the same numbers, rounded once."""
    value, locations, weights = make_inputs(2, [(4, 4)], 5, 2, 8, 4, torch.float32)
    value, weights = value.to(dtype), weights.to(dtype)
    out = ms_deform_attn(value, [(4, 4)], locations, weights)
    expected = ms_deform_attn(value.double(), [(4, 4)], locations.double(), weights.double())
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_views_are_fine():
    value, locations, weights = make_inputs(2, [(3, 3)], 4, 2, 3, 2)
    views = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (value, locations, weights)]
    assert not any(x.is_contiguous() for x in views)
    expected = ms_deform_attn(value, [(3, 3)], locations, weights)
    torch.testing.assert_close(ms_deform_attn(views[0], [(3, 3)], *views[1:]), expected)


def test_shapes_that_do_not_fit_are_refused():
    value, locations, weights = make_inputs(1, [(3, 3)], 4, 2, 3, 2)
    with pytest.raises(ValueError, match=r"levels \[\(3, 4\)\].* do not fit each other"):
        ms_deform_attn(value, [(3, 4)], locations, weights)
    with pytest.raises(ValueError, match="do not fit each other"):
        ms_deform_attn(value, [(3, 3)], locations, weights[..., :1])


def test_a_nan_is_not_lost():
    value, locations, weights = make_inputs(1, [(3, 3)], 1, 1, 2, 1)
    value[:], locations[:] = math.nan, 0.5
    assert ms_deform_attn(value, [(3, 3)], locations, weights).isnan().all()
