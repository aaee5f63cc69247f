import pytest
import torch
import torch.nn.functional as F

from eomt_d2.modeling import point_sampling
from eomt_d2.modeling.point_sampling import (
    sample_binary_masks,
    sample_many_channels,
    sample_points,
    uncertain_points,
)

# Pixel centres of a 2 x 2 map lie at 0.25 and 0.75; points are (x, y).
MAP = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
POINTS = torch.tensor(
    [
        [0.25, 0.25],  # the centre of the first pixel
        [0.75, 0.25],  # x goes right: the second pixel of the first row
        [0.50, 0.50],  # the mean of all four
        [0.00, 0.25],  # halfway between the first pixel and the zeros outside
        [1.00, 1.00],  # the outer corner: a quarter of the last pixel
    ]
)[None]


def test_sample_points_by_hand():
    sampled = sample_points(MAP, POINTS)
    assert sampled.tolist() == [[[1.0, 2.0, 2.5, 0.5, 1.0]]]


def test_sample_many_channels_by_hand():
    maps = torch.cat([MAP, 10 * MAP], dim=1)
    sampled = sample_many_channels(maps, POINTS)
    expected = torch.tensor([[1.0, 2.0, 2.5, 0.5, 1.0]])
    torch.testing.assert_close(sampled, torch.stack([expected, 10 * expected], dim=1))


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_many_channels_equal_grid_sample(memory, dtype):
    maps = torch.randn(3, 21, 7, 10).to(dtype).contiguous(memory_format=memory)
    # Also on the border, where corners lie outside, and next to it.
    points = torch.cat([torch.rand(3, 200, 2), torch.randint(0, 2, (3, 20, 2)).float()], dim=1)
    points[:, 200:210] = points[:, 200:210].clamp(1e-3, 1 - 1e-3)
    expected = F.grid_sample(maps.float(), 2 * points[:, :, None] - 1, align_corners=False)[..., 0]
    sampled = sample_many_channels(maps, points)
    assert sampled.dtype == torch.float32
    torch.testing.assert_close(sampled, expected, atol=1e-5, rtol=1e-5)


def test_sample_binary_masks_by_hand():
    sampled = sample_binary_masks(MAP[0] > 2, POINTS)
    # The lower row is True: [0, 0, 1/2, 0, 1/4].
    assert sampled.tolist() == [[0.0, 0.0, 0.5, 0.0, 0.25]]
    assert sampled.dtype == torch.float32


@pytest.mark.parametrize("chunks", [False, True])
def test_binary_masks_equal_grid_sample_of_their_float_copies(chunks):
    # 1000 x 1100 pixels: the 2^20 numbers of a chunk hold a single mask.
    size = (1000, 1100) if chunks else (9, 14)
    masks = torch.rand(4, *size) > 0.5
    indices = torch.tensor([3, 0, 0, 1, 2, 3])
    points = torch.rand(6, 50, 2)
    expected = F.grid_sample(
        masks[indices][:, None].float(), 2 * points[:, :, None] - 1, align_corners=False
    )[:, 0, :, 0]
    assert torch.equal(sample_binary_masks(masks, points, indices), expected)

    in_order = sample_binary_masks(masks, points[:4])
    assert torch.equal(in_order, sample_binary_masks(masks, points[:4], torch.arange(4)))


def test_no_masks():
    assert sample_binary_masks(torch.zeros(0, 4, 4) > 0, torch.rand(0, 7, 2)).shape == (0, 7)
    assert uncertain_points(torch.zeros(0, 4, 4), 8, 3.0, 0.75).shape == (0, 8, 2)


def test_uncertain_points_are_the_candidates_nearest_to_zero(monkeypatch):
    # A ramp: the logit is 16 x - 8 inside, so |logit| = 16 |x - 1/2|.
    logits = (torch.arange(16) - 7.5).expand(1, 16, 16)
    candidates = torch.full((1, 12, 2), 0.5)
    candidates[0, :, 0] = torch.tensor(
        [0.1, 0.52, 0.9, 0.47, 0.2, 0.8, 0.495, 0.3, 0.7, 0.25, 0.75, 0.85]
    )
    fresh = torch.full((1, 1, 2), 0.125)
    draws = iter([candidates, fresh])

    def rand(*size, device):
        drawn = next(draws)
        assert drawn.shape == size
        return drawn

    monkeypatch.setattr(point_sampling.torch, "rand", rand)
    # 4 points: 3 * 4 candidates, 3 of them kept, 1 fresh.
    points = uncertain_points(logits, 4, 3.0, 0.75)
    assert sorted(points[0, :3, 0].tolist()) == pytest.approx([0.47, 0.495, 0.52])
    assert points[0, 3].tolist() == [0.125, 0.125]


@pytest.mark.parametrize("share, uncertain", [(0.0, 0), (1.0, 16)])
def test_share_of_uncertain_points(share, uncertain):
    # The left half of the map is certain, the right half is not.
    logits = torch.cat([torch.full((1, 8, 8), 50.0), torch.zeros(1, 8, 8)], dim=2)
    points = uncertain_points(logits, 16, 20.0, share)
    if uncertain:
        assert (points[..., 0] > 0.49).all()
    else:
        assert (points[..., 0] < 0.49).any()


def test_gradient_flows_to_the_map_only():
    maps = torch.randn(2, 1, 4, 4, requires_grad=True)
    points = uncertain_points(maps[:, 0], 8, 3.0, 0.75)
    assert not points.requires_grad
    center = torch.full((2, 1, 2), 0.5)
    sample_points(maps, center).sum().backward()
    # The centre of a 4 x 4 map is the mean of its four middle pixels.
    expected = torch.zeros(4, 4)
    expected[1:3, 1:3] = 0.25
    assert torch.equal(maps.grad, expected.expand(2, 1, 4, 4))
