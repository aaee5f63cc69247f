"""Resampling of position and patch embeddings; rotary embeddings."""

import math

import pytest
import timm.layers
import torch
import torch.nn.functional as F

from eomt_d2.modeling.backbone.pos_embed import (
    Rotary,
    apply_rotary,
    eva02_rotary_embedding,
    resample_patch_embedding,
    resample_position_embedding,
    rotary_embedding,
)


def test_position_embedding_resampled_like_an_image():
    pos_embed = torch.randn(1, 37 * 37, 8)
    image = pos_embed[0].T.reshape(1, 8, 37, 37)
    expected = F.interpolate(image, (40, 30), mode="bicubic", antialias=True)
    actual = resample_position_embedding(pos_embed, (37, 37), (40, 30))
    torch.testing.assert_close(actual[0].T.reshape(1, 8, 40, 30), expected)
    # Published DINOv2 weights need the antialias: without it the result is another one.
    without = F.interpolate(image, (40, 30), mode="bicubic")
    assert (expected - without).abs().max() > 0.1


def test_position_embedding_of_the_same_grid_is_untouched():
    pos_embed = torch.randn(1, 6, 4)
    assert resample_position_embedding(pos_embed, (2, 3), (2, 3)) is pos_embed
    with pytest.raises(ValueError, match="6 patches does not have the grid 3 x 3"):
        resample_position_embedding(pos_embed, (3, 3), (4, 4))


def test_patch_embedding_of_a_resized_patch_is_preserved():
    """The invariant of FlexiViT: <w', resize(x)> = <w, x> when patches grow, 14 to 16."""
    weight, patch = torch.randn(5, 3, 14, 14), torch.randn(2, 3, 14, 14)
    resized = F.interpolate(patch, (16, 16), mode="bicubic", antialias=True)
    expected = F.conv2d(patch, weight).flatten()
    actual = F.conv2d(resized, resample_patch_embedding(weight, 16)).flatten()
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-4)
    plain = F.interpolate(weight, (16, 16), mode="bicubic", antialias=True)
    assert (F.conv2d(resized, plain).flatten() - expected).abs().max() > 1


def test_rotary_angles_by_hand():
    """Grid 1 x 2, head dimension 8: y = 0, x = -1/2 and 1/2; periods 100^0 and 100^(1/2)."""
    cos, sin, interleaved = rotary_embedding((1, 2), 8)
    assert not interleaved
    x = 2 * math.pi * 0.5
    angles = torch.tensor([[0, 0, -x, -x / 10] * 2, [0, 0, x, x / 10] * 2])
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin(), atol=1e-6, rtol=0)
    halved = rotary_embedding((1, 2), 8, scale=0.5).sin
    torch.testing.assert_close(halved, (angles / 2).sin(), atol=1e-6, rtol=0)


def test_eva02_rotary_angles_by_hand():
    """Grid 1 x 2, head dimension 8: y = 0, x = 0 and 16/2; periods 10000^0 and 10000^(1/2)."""
    cos, sin, interleaved = eva02_rotary_embedding((1, 2), 8)
    assert interleaved
    angles = torch.tensor([[0.0] * 8, [0, 0, 0, 0, 8, 8, 0.08, 0.08]])
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())
    halved = eva02_rotary_embedding((1, 2), 8, scale=0.5).sin
    torch.testing.assert_close(halved, (angles / 2).sin())


@pytest.mark.parametrize("grid", [(16, 16), (40, 30)])
def test_eva02_rotary_equals_timm(grid):
    oracle = timm.layers.RotaryEmbeddingCat(
        64, in_pixels=False, feat_shape=grid, ref_feat_shape=(16, 16)
    )
    sin, cos = oracle.get_embed().chunk(2, dim=-1)
    rotary = eva02_rotary_embedding(grid, 64)
    torch.testing.assert_close(rotary.cos, cos, atol=1e-5, rtol=0)
    torch.testing.assert_close(rotary.sin, sin, atol=1e-5, rtol=0)


@pytest.mark.parametrize("interleaved, expected", [(False, [-3, 2, 1, 4]), (True, [-2, 1, 3, 4])])
def test_a_quarter_turn_of_the_first_pair(interleaved, expected):
    """(a, b) becomes (-b, a); channel 0 is paired with channel 2 or with channel 1."""
    pair = torch.tensor([1.0, 1, 0, 0] if interleaved else [1.0, 0, 1, 0])[None]
    x = torch.tensor([1.0, 2, 3, 4]).reshape(1, 1, 1, 4)
    turned = apply_rotary(x, Rotary(cos=1 - pair, sin=pair, interleaved=interleaved))
    assert turned.flatten().tolist() == expected


ROTARIES = pytest.mark.parametrize("embedding", [rotary_embedding, eva02_rotary_embedding])


@ROTARIES
def test_rotary_turns_patches_only_and_keeps_lengths(embedding):
    x = torch.randn(1, 2, 7, 8)
    out = apply_rotary(x, embedding((2, 2), 8))
    assert torch.equal(out[:, :, :3], x[:, :, :3])
    assert not torch.allclose(out[:, :, 4:], x[:, :, 4:])
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))


@ROTARIES
def test_rotary_scores_depend_on_the_distance_only(embedding):
    """q_i . k_j after rotation is the same for all pairs of patches with equal offsets."""
    q, k = torch.randn(8), torch.randn(8)
    rotary = embedding((4, 4), 8)
    q, k = (apply_rotary(t.expand(1, 1, 16, 8), rotary)[0, 0] for t in (q, k))
    scores = (q @ k.T).reshape(4, 4, 4, 4)
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[2, 1, 3, 3])


@ROTARIES
def test_rotary_needs_a_quarter_of_the_channels_per_axis_and_function(embedding):
    with pytest.raises(ValueError, match="head dimension divisible by 4, not 6"):
        embedding((2, 2), 6)
