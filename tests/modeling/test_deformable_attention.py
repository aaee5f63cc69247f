"""Deformable attention as a module: where it looks at first, and what it reads there."""

import pytest
import torch

from eomt_d2.modeling.deformable_attention import MSDeformAttn, pixel_centers


def test_pixel_centers_by_hand():
    """One row of two pixels, then one column of two: (x, y)."""
    centers = pixel_centers([(1, 2), (2, 1)], torch.device("cpu"))
    assert centers.tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]


def test_fresh_weights_look_at_a_ring():
    """Eight heads: right, down right, down, ... ; point p at p pixels (largest coordinate)."""
    attention = MSDeformAttn(16, num_heads=8, num_levels=2, num_points=3)
    assert not attention.sampling_offsets.weight.any()
    offsets = attention.sampling_offsets.bias.detach().view(8, 2, 3, 2)
    assert torch.equal(offsets[:, 0], offsets[:, 1]), "alike on every level"
    ring = torch.tensor([[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]])
    for p in range(3):
        torch.testing.assert_close(offsets[:, 0, p], (p + 1.0) * ring, atol=1e-5, rtol=0)


def test_fresh_weights_average_the_ring():
    """One head that looks 1 and 2 pixels to the right of pixel 1, in a row of 4: (c + d) / 2."""
    attention = MSDeformAttn(2, num_heads=1, num_levels=1, num_points=2)
    with torch.no_grad():
        attention.value_proj.weight.copy_(torch.eye(2))
        attention.output_proj.weight.copy_(torch.eye(2))
    source = torch.tensor([[1.0, 10], [2, 20], [4, 40], [8, 80]])[None]
    center = pixel_centers([(1, 4)], source.device)[1:2]
    out = attention(torch.randn(1, 1, 2), center, source, [(1, 4)])
    torch.testing.assert_close(out, torch.tensor([[[6.0, 60.0]]]))


def test_every_parameter_gets_a_gradient():
    attention = MSDeformAttn(8, num_heads=2, num_levels=2, value_ratio=0.5)
    shapes = [(3, 4), (2, 2)]
    out = attention(
        torch.randn(2, 5, 8), torch.rand(5, 2), torch.randn(2, 16, 8, requires_grad=True), shapes
    )
    out.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in attention.parameters())


def test_locations_are_float32_under_autocast():
    """A map 3000 pixels wide: a location in bfloat16 would be off by several pixels."""
    attention = MSDeformAttn(2, num_heads=1, num_levels=1, num_points=1)
    width = 3000
    with torch.no_grad():
        attention.value_proj.weight.copy_(torch.eye(2))
        attention.output_proj.weight.copy_(torch.eye(2))
        attention.sampling_offsets.bias.zero_()
    source = torch.zeros(1, width, 2)
    source[:, 2000] = 1
    centers = pixel_centers([(1, width)], source.device)[1999:2002]
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(torch.zeros(1, 3, 2), centers, source, [(1, width)])
    torch.testing.assert_close(out[0, :, 0].float(), torch.tensor([0.0, 1, 0]), atol=0.01, rtol=0)


def test_heads_that_do_not_divide_the_values():
    with pytest.raises(ValueError, match="6 value channels cannot have 4 heads"):
        MSDeformAttn(12, num_heads=4, num_levels=1, value_ratio=0.5)
