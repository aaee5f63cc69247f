"""Pixel decoders: precision, order, and what each is made of. Agreement with transformers is in
``test_mask2former.py``."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec

from eomt_d2.modeling.pixel_decoder import MSDeformAttnPixelDecoder, PixelProjection

SHAPE = {f"res{i}": ShapeSpec(channels=8 * i, stride=2**i) for i in (2, 3, 4, 5)}


def make_features(batch=2, side=64):
    return {
        name: torch.randn(batch, s.channels, side // s.stride, side // s.stride)
        for name, s in SHAPE.items()
    }


def make_decoder(**kwargs):
    maps = dict(mask_feature="res2", key_features=["res3", "res4", "res5"], dim=32)
    return MSDeformAttnPixelDecoder(SHAPE, num_layers=1, num_heads=4, ffn_dim=16, **maps, **kwargs)


def test_keys_come_from_coarse_to_fine():
    mask_features, keys = make_decoder()(make_features())
    assert mask_features.shape == (2, 32, 16, 16)
    assert [x.shape for x in keys] == [(2, 32, 2, 2), (2, 32, 4, 4), (2, 32, 8, 8)]


def test_float32_under_autocast():
    decoder, features = make_decoder(), make_features()
    half = {name: x.bfloat16() for name, x in features.items()}
    exact = {name: x.float() for name, x in half.items()}
    with torch.no_grad():
        expected = decoder(exact)
        with torch.autocast("cpu", torch.bfloat16):
            actual = decoder(half)
    assert actual[0].dtype == torch.float32
    assert torch.equal(actual[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(actual[1], expected[1], strict=True))


def test_the_finest_key_map_reaches_the_mask_features():
    """Upsampled and added to the lateral before the 3x3 convolution: without the lateral and with
    an identity for the rest, mask features are the rectified upsampled map."""
    decoder, features = make_decoder(), make_features(1)
    with torch.no_grad():
        decoder.lateral.norm.weight.zero_()
        decoder.output.weight.zero_()
        decoder.output.weight[:, :, 1, 1] = torch.eye(32)
        decoder.output.norm = torch.nn.Identity()
        decoder.mask_features.weight.copy_(torch.eye(32)[:, :, None, None])
        decoder.mask_features.bias.zero_()
        mask_features, keys = decoder(features)
    up = F.interpolate(keys[-1], scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(mask_features, up.relu(), atol=1e-5, rtol=1e-5)


def test_projection_alone_mixes_channels_pixel_by_pixel():
    projection = PixelProjection(SHAPE, mask_feature="res2", key_features=["res4", "res5"], dim=6)
    features = make_features()
    mask_features, keys = projection(features)
    assert [x.shape for x in keys] == [(2, 6, 2, 2), (2, 6, 4, 4)]
    weight, bias = projection.input_proj[1].weight[:, :, 0, 0], projection.input_proj[1].bias
    torch.testing.assert_close(keys[1][1, :, 2, 3], weight @ features["res4"][1, :, 2, 3] + bias)
    assert mask_features.shape == (2, 6, 16, 16)


@pytest.mark.parametrize("dim, parameters", [(1024, 6_101_440), (None, 6_035_904)])
def test_published_sizes(dim, parameters):
    """SPEC-mask2former: on maps of ViT-L, and of ResNet-50 (256 to 2048 channels)."""
    shape = {f"res{i}": ShapeSpec(channels=dim or 64 * 2**i, stride=2**i) for i in (2, 3, 4, 5)}
    with torch.device("meta"):
        decoder = MSDeformAttnPixelDecoder(
            shape, mask_feature="res2", key_features=["res3", "res4", "res5"]
        )
    assert sum(p.numel() for p in decoder.parameters()) == parameters
    assert sum(p.numel() for p in decoder.layers.parameters()) == 6 * 732_192
