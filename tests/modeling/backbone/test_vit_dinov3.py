"""DINOv3's ViT against timm and transformers, and its random rescale of coordinates."""

import math

import pytest
import timm
import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from eomt_d2.modeling.backbone.pos_embed import rotary_embedding
from eomt_d2.modeling.backbone.presets import PRESETS
from eomt_d2.modeling.backbone.vit import ViT
from tests.modeling.backbone.weights import perturb, renamed_from_timm

DIM, DEPTH, HEADS = 48, 3, 3
PRESET = dict(PRESETS["vit_small_patch16_dinov3"])
PRESET.pop("num_query_blocks")
SIZES = pytest.mark.parametrize("size", [(64, 64), (48, 80), (256, 32)])


@pytest.fixture(scope="module")
def timm_pair():
    """At full size; LayerScale and all biases are as large as other weights."""
    oracle = perturb(timm.create_model("vit_small_patch16_dinov3_qkvb", num_classes=0)).eval()
    model = ViT(**PRESET).eval()
    model.load_state_dict(renamed_from_timm(oracle.state_dict()))
    return oracle, model


@SIZES
@torch.no_grad()
def test_equals_timm(timm_pair, size):
    oracle, model = timm_pair
    images = torch.randn(2, 3, *size)
    expected = oracle.forward_features(images)[:, 5:].transpose(1, 2)
    assert expected.std() > 0.1
    actual = model(images)["vit"].flatten(2)
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_timm_without_biases_is_the_network_with_zeros():
    oracle = timm.create_model("vit_small_patch16_dinov3", depth=1, num_classes=0).eval()
    weights = renamed_from_timm(perturb(oracle).state_dict())
    weights |= {f"blocks.0.attn.{x}_bias": torch.zeros(384) for x in "qv"}
    model = ViT(**{**PRESET, "depth": 1}).eval()
    model.load_state_dict(weights)
    images = torch.randn(1, 3, 48, 64)
    expected = oracle.forward_features(images)[:, 5:].transpose(1, 2)
    torch.testing.assert_close(model(images)["vit"].flatten(2), expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def transformers_pair():
    """A small network; both rescale coordinates by up to 2 in training."""
    config = DINOv3ViTConfig(
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * DIM,
        num_register_tokens=4,
        image_size=64,
    )
    assert (config.layer_norm_eps, config.pos_embed_rescale) == (1e-5, 2.0)
    oracle = perturb(DINOv3ViTModel(config))
    state = oracle.state_dict()
    state.pop("embeddings.mask_token")
    renamed = {
        "cls_token": state.pop("embeddings.cls_token"),
        "reg_token": state.pop("embeddings.register_tokens"),
    }
    for leaf in ("weight", "bias"):
        renamed[f"patch_embed.proj.{leaf}"] = state.pop(f"embeddings.patch_embeddings.{leaf}")
        renamed[f"norm.{leaf}"] = state.pop(f"norm.{leaf}")
    for i in range(DEPTH):
        ours, theirs = f"blocks.{i}", f"model.layer.{i}"
        thirds = [state.pop(f"{theirs}.attention.{x}_proj.weight") for x in "qkv"]
        renamed[f"{ours}.attn.qkv.weight"] = torch.cat(thirds)
        for x in "qv":
            renamed[f"{ours}.attn.{x}_bias"] = state.pop(f"{theirs}.attention.{x}_proj.bias")
        for k in (1, 2):
            scale = state.pop(f"{theirs}.layer_scale{k}.lambda1")
            renamed[f"{ours}.ls{k}.gamma"] = scale
        for leaf in ("weight", "bias"):
            for a, b in {
                "norm1": "norm1",
                "attn.proj": "attention.o_proj",
                "norm2": "norm2",
                "mlp.fc1": "mlp.up_proj",
                "mlp.fc2": "mlp.down_proj",
            }.items():
                renamed[f"{ours}.{a}.{leaf}"] = state.pop(f"{theirs}.{b}.{leaf}")
    assert not state
    model = ViT(**{**PRESET, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS})
    model.load_state_dict(renamed)
    return oracle, model


def transformers_features(oracle, images):
    return oracle(images).last_hidden_state[:, 5:].transpose(1, 2)


@SIZES
@torch.no_grad()
def test_equals_transformers(transformers_pair, size):
    oracle, model = (m.eval() for m in transformers_pair)
    images = torch.randn(2, 3, *size)
    expected = transformers_features(oracle, images)
    assert expected.std() > 0.1
    torch.testing.assert_close(model(images)["vit"].flatten(2), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_training_equals_transformers_for_the_same_random_state(transformers_pair):
    oracle, model = transformers_pair
    images = torch.randn(2, 3, 64, 96)
    evaluated = transformers_features(oracle.eval(), images)
    for seed in range(3):
        torch.manual_seed(seed)
        expected = transformers_features(oracle.train(), images)
        torch.manual_seed(seed)
        actual = model.train()(images)["vit"].flatten(2)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(expected, evaluated, atol=1e-2)


def test_rescale_is_one_log_uniform_factor_per_forward():
    """exp(U(-ln 2, ln 2)), for both axes and all images of a batch; none in evaluation."""
    model = ViT(embed_dim=24, depth=1, num_heads=3, position="rotary", rotary_rescale=2.0)
    images = torch.randn(3, 3, 48, 80)
    for seed in range(5):
        torch.manual_seed(seed)
        rotary = model.train().embed(images)[1]
        torch.manual_seed(seed)
        factor = torch.empty(1).uniform_(-math.log(2), math.log(2)).exp()
        assert 0.5 <= factor <= 2
        expected = rotary_embedding((3, 5), 8, scale=factor)
        assert rotary.cos.shape == (15, 8), "the same for every image"
        torch.testing.assert_close(rotary.cos, expected.cos, atol=1e-5, rtol=0)
        torch.testing.assert_close(rotary.sin, expected.sin, atol=1e-5, rtol=0)
    assert torch.equal(model.eval().embed(images)[1].sin, rotary_embedding((3, 5), 8).sin)


@torch.no_grad()
def test_rescale_does_not_depend_on_the_batch(transformers_pair):
    model, images = transformers_pair[1].train(), torch.randn(2, 3, 48, 64)
    features = []
    for batch in (images, images[:1], images[1:]):
        torch.manual_seed(4)
        features.append(model(batch)["vit"])
    torch.testing.assert_close(features[0], torch.cat(features[1:]), atol=1e-5, rtol=1e-5)
