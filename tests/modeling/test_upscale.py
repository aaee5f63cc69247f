"""Upscaling by hand, against its parts, and by size."""

import pytest
import torch
import torch.nn.functional as F

from eomt_d2.modeling.upscale import (
    ChannelLayerNorm,
    DownscaleBlock,
    UpscaleBlock,
    num_upscale_blocks,
)


def test_stride_four_from_the_patch_size():
    """SPEC: max(1, floor(log2(patch)) - 2) blocks; 14 and 16 pixels differ."""
    assert [num_upscale_blocks(p) for p in (4, 8, 14, 16, 32)] == [1, 1, 1, 2, 3]


def test_channel_layer_norm_by_hand():
    """Channels (1, 3) have mean 2 and variance 1: they become (-1, 1)."""
    norm = ChannelLayerNorm(2)
    x = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1).expand(1, 2, 2, 3)
    out = norm(x)
    assert out.shape == (1, 2, 2, 3)
    assert out[0, :, 1, 2].tolist() == pytest.approx([-1, 1], abs=1e-5)


def test_block_is_its_four_steps():
    """Each input pixel becomes 2 x 2 pixels, W^T x + b, whatever its neighbours; then GELU, a 3 x 3
    filter per channel and the norm."""
    block = UpscaleBlock(3)
    x = torch.randn(2, 3, 4, 5)
    with torch.no_grad():
        pixels = torch.einsum("bchw,cdij->bdhiwj", x, block.conv1.weight).reshape(2, 3, 8, 10)
        pixels = F.gelu(pixels + block.conv1.bias.view(-1, 1, 1))
        windows = F.unfold(pixels, 3, padding=1).view(2, 3, 9, 80)
        filtered = torch.einsum("bckn,ck->bcn", windows, block.conv2.weight.view(3, 9))
        normed = F.layer_norm(filtered.transpose(1, 2), (3,), eps=1e-6).transpose(1, 2)
        torch.testing.assert_close(block(x), normed.view(2, 3, 8, 10), atol=1e-5, rtol=1e-4)


def test_downscale_block_joins_two_by_two_pixels():
    """W x + b of the four pixels below each; then as the upscale block."""
    block = DownscaleBlock(3)
    x = torch.randn(2, 3, 4, 6)
    with torch.no_grad():
        fours = x.reshape(2, 3, 2, 2, 3, 2)  # rows and columns in pairs
        joined = torch.einsum("bchiwj,dcij->bdhw", fours, block.conv1.weight)
        joined = F.gelu(joined + block.conv1.bias.view(-1, 1, 1))
        expected = block.norm(block.conv2(joined))
        torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-4)
    assert expected.shape == (2, 3, 2, 3)


@pytest.mark.parametrize("block", [UpscaleBlock, DownscaleBlock])
def test_parameters_of_the_large_model(block):
    """SPEC-mask2former: 4,206,592 for one block of 1024 channels."""
    assert sum(p.numel() for p in block(1024).parameters()) == 4_206_592
