"""Every preset against timm's architecture of the same name."""

import pytest
import timm
import timm.layers
import torch
import torch.nn.functional as F

from eomt_d2.checkpoint.vit_weights import fit_vit_weights
from eomt_d2.modeling.backbone.presets import PRESETS
from eomt_d2.modeling.backbone.vit import ViT
from tests.modeling.backbone.weights import perturb, renamed_from_timm, without_class_position

# Patch size, image side, and whether timm's position embedding has an entry for the class token.
DINOV2, DINOV3 = (14, 518, False), (16, 256, False)
AUGREG, DEIT3, EVA02 = (16, 224, True), (16, 384, False), (14, 448, True)
NEW = {
    "vit_base_patch16_224": AUGREG,
    "vit_large_patch16_224": AUGREG,
    "deit3_base_patch16_384": DEIT3,
    "deit3_large_patch16_384": DEIT3,
    "eva02_base_patch14_448": EVA02,
    "eva02_large_patch14_448": EVA02,
}
# For comparing values quickly; shapes are compared at full size.
NARROW = dict(embed_dim=128, num_heads=2, depth=2)
ALL = {name: DINOV2 if "dinov2" in name else NEW.get(name, DINOV3) for name in PRESETS}


def our_vit(name, patch_size, img_size, **kwargs):
    preset = {**PRESETS[name], **kwargs}
    preset.pop("num_query_blocks")
    return ViT(**preset, patch_size=patch_size, img_size=img_size).eval()


def timm_features(oracle, images):
    """(1, C, N) patch tokens after the final norm, which EVA-02 has before its classifier."""
    tokens = oracle.fc_norm(oracle.forward_features(images))
    return tokens[:, oracle.num_prefix_tokens :].transpose(1, 2)


@pytest.mark.parametrize("name", ALL)
def test_names_shapes_and_number_of_parameters(name):
    patch_size, img_size, class_position = ALL[name]
    with torch.device("meta"):
        # The DINOv3 architectures come with and without biases of queries and values; ours has
        # them, and zeros are the same network.
        oracle = timm.create_model(name + "_qkvb" * ("dinov3" in name), num_classes=0)
        model = our_vit(name, patch_size, img_size)
    expected = renamed_from_timm(oracle.state_dict())
    if class_position:
        expected = without_class_position(expected)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert shapes == {key: tuple(tensor.shape) for key, tensor in expected.items()}
    parameters = sum(p.numel() for p in oracle.parameters())
    width = model.embed_dim
    assert sum(p.numel() for p in model.parameters()) == parameters - class_position * width


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_dinov3_without_biases_lacks_only_those_of_queries_and_values(size):
    names = [f"vit_{size}_patch16_dinov3{x}" for x in ("", "_qkvb")]
    with torch.device("meta"):
        plain, biased = (timm.create_model(x, num_classes=0).state_dict() for x in names)
    depth = 24 if size == "large" else 12
    assert set(plain) < set(biased)
    assert set(biased) - set(plain) == {
        f"blocks.{i}.attn.{x}_bias" for i in range(depth) for x in "qv"
    }


@pytest.mark.parametrize("shape", ["native", "other"])
@pytest.mark.parametrize("name", NEW)
@torch.no_grad()
def test_values_equal_timm(name, shape):
    """At the native size and at a non-square one, whose positions are resampled: bicubic,
    antialiased."""
    patch_size, img_size, class_position = NEW[name]
    native = timm.create_model(name, num_classes=0, **NARROW).eval()
    weights = renamed_from_timm(perturb(native).state_dict())
    if class_position:
        weights = without_class_position(weights)
    model = our_vit(name, patch_size, img_size, **NARROW)
    model.load_state_dict(weights)

    oracle, size = native, (img_size, img_size)
    if shape == "other":
        grid = (10, 15)
        size = tuple(patch_size * n for n in grid)
        oracle = timm.create_model(name, num_classes=0, img_size=size, **NARROW).eval()
        position = native.pos_embed[:, class_position:].transpose(1, 2)
        position = position.unflatten(2, (img_size // patch_size, -1))
        position = F.interpolate(position, grid, mode="bicubic", antialias=True)
        position = position.flatten(2).transpose(1, 2)
        position = torch.cat((native.pos_embed[:, :class_position], position), dim=1)
        oracle.load_state_dict({**native.state_dict(), "pos_embed": position})
    images = torch.randn(1, 3, *size)
    expected = timm_features(oracle, images)
    assert expected.std() > 0.1
    actual = model(images)["vit"].flatten(2)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_eva02_of_patch_14_becomes_patch_16():
    """As a network of timm's with patches of 16 pixels and its own resampling of the weights."""
    name = "eva02_base_patch14_448"
    source = perturb(timm.create_model(name, num_classes=0, **NARROW)).state_dict()
    weights = renamed_from_timm(source)
    model = our_vit(name, patch_size=16, img_size=192, **NARROW)
    assert len(fit_vit_weights(weights, model)) == 3
    model.load_state_dict(weights)

    settings = dict(num_classes=0, patch_size=16, img_size=192)
    oracle = timm.create_model(name, **settings, **NARROW).eval()
    position = timm.layers.resample_abs_pos_embed(
        source["pos_embed"], [12, 12], num_prefix_tokens=1, antialias=True
    )
    patches = timm.layers.resample_patch_embed(source["patch_embed.proj.weight"], [16, 16])
    resampled = {"pos_embed": position, "patch_embed.proj.weight": patches}
    oracle.load_state_dict({**source, **resampled})
    images = torch.randn(1, 3, 192, 192)
    expected = timm_features(oracle, images)
    torch.testing.assert_close(model(images)["vit"].flatten(2), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", NEW)
def test_every_parameter_learns(name):
    model = perturb(our_vit(name, patch_size=16, img_size=32, **NARROW)).train()
    features = model(torch.randn(1, 3, 32, 48))["vit"]
    (features * torch.randn_like(features)).sum().backward()
    still = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_query_blocks_are_the_published_ones():
    """EoMT (arXiv 2503.19108), section 4.1: 3 for S and B, 4 for L, 5 for g."""
    published = {"small": 3, "base": 3, "large": 4, "giant": 5}
    for name, preset in PRESETS.items():
        size = next(size for size in published if f"_{size}_" in name)
        assert preset["num_query_blocks"] == published[size], name
