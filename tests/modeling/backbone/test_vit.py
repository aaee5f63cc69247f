"""The ViT against timm's DINOv2 with registers, and what holds for any ViT."""

import pytest
import timm
import torch
import torch.nn.functional as F

from eomt_d2.config import add_eomt_config
from eomt_d2.modeling.backbone.presets import PRESETS
from eomt_d2.modeling.backbone.vit import ViT
from tests.modeling.backbone.weights import perturb


def tiny(**kwargs):
    args = dict(embed_dim=48, depth=3, num_heads=3, patch_size=8, img_size=32)
    return perturb(ViT(**{**args, **kwargs})).eval()


@pytest.mark.parametrize("size", [(224, 224), (112, 168)])
def test_equals_timm_dinov2(size):
    oracle = timm.create_model(
        "vit_small_patch14_reg4_dinov2", img_size=size, num_classes=0, dynamic_img_size=False
    )
    perturb(oracle).eval()
    preset = {k: v for k, v in PRESETS["vit_small_patch14_reg4_dinov2"].items()}
    preset.pop("num_query_blocks")
    model = ViT(**preset, patch_size=14, img_size=224).eval()
    state = oracle.state_dict()
    if size != (224, 224):
        # The oracle's embedding is for its own grid: give ours one that resamples to it exactly.
        model = ViT(**preset, patch_size=14, img_size=14 * 4).eval()
        generator = torch.Generator().manual_seed(0)
        native = torch.randn(1, 16, 384, generator=generator)
        maps = native.transpose(1, 2).reshape(1, 384, 4, 4)
        maps = F.interpolate(maps, (size[0] // 14, size[1] // 14), mode="bicubic", antialias=True)
        with torch.no_grad():
            oracle.pos_embed.copy_(maps.flatten(2).transpose(1, 2))
        state = {**oracle.state_dict(), "pos_embed": native}
    model.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = oracle.forward_features(images)[:, 5:].transpose(1, 2)
        actual = model(images)["vit"].flatten(2)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


def test_swiglu_equals_timm():
    """timm's packed GluMlp with SiLU on the first half is the giant model's network."""
    from eomt_d2.modeling.backbone.vit_block import SwiGLU

    oracle = timm.layers.GluMlp(24, 64, act_layer=torch.nn.SiLU, gate_last=False)
    model = SwiGLU(24, 32)
    model.load_state_dict(oracle.state_dict())
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(model(x), oracle(x))


def test_feature_map_and_shape_spec():
    model = tiny()
    out = model(torch.zeros(2, 3, 32, 48))["vit"]
    assert out.shape == (2, 48, 4, 6)
    spec = model.output_shape()["vit"]
    assert (spec.channels, spec.stride, model.size_divisibility) == (48, 8, 8)


@torch.no_grad()
def test_the_final_norm_can_be_left_out():
    whole, headless = tiny(), tiny(final_norm=False)
    missing = headless.load_state_dict(whole.state_dict(), strict=False)
    assert missing.unexpected_keys == ["norm.weight", "norm.bias"]
    assert missing.missing_keys == []
    images = torch.randn(1, 3, 32, 32)
    tokens = headless(images)["vit"].flatten(2).transpose(1, 2)
    expected = whole(images)["vit"].flatten(2).transpose(1, 2)
    torch.testing.assert_close(whole.norm(tokens), expected)


@torch.no_grad()
def test_batch_equals_single():
    model, images = tiny(), torch.randn(3, 3, 32, 24)
    singles = torch.cat([model(image[None])["vit"] for image in images])
    torch.testing.assert_close(model(images)["vit"], singles, atol=1e-5, rtol=1e-5)


def test_position_cache_follows_the_weights():
    model, images = tiny(), torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        before = model(images)["vit"]
        state = dict(model.state_dict())
        # Not a constant, which every LayerNorm would take away again.
        state["pos_embed"] = state["pos_embed"] + torch.randn(1, 16, 48)
        model.load_state_dict(state)
        after = model(images)["vit"]
    assert not torch.allclose(before, after, atol=0.1)
    with torch.enable_grad():
        torch.testing.assert_close(model(images)["vit"], after)


def test_activation_checkpointing_changes_nothing():
    plain, saving = tiny(), tiny(activation_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 32, 32)
    for model in (plain, saving):
        model.train()
        model(images)["vit"].square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_drop_path_rates_rise_linearly_and_keep_the_mean():
    model = ViT(embed_dim=12, depth=3, num_heads=1, patch_size=8, img_size=16, drop_path_rate=0.4)
    assert [block.drop_path.rate for block in model.blocks] == [0, 0.2, 0.4]
    drop = model.blocks[2].drop_path.train()
    values = drop(torch.ones(4000, 3, 2))
    assert values.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert values.mean() == pytest.approx(1, abs=0.05)
    assert (values == values[:, :1, :1]).all(), "a branch is dropped for a whole image"
    assert torch.equal(drop.eval()(values), values)


def test_wrong_sizes_are_explained():
    with pytest.raises(ValueError, match="33 x 32 pixels cannot be cut into patches of 8"):
        tiny()(torch.zeros(1, 3, 33, 32))
    with pytest.raises(ValueError, match="no multiple of 5 heads"):
        tiny(num_heads=5)


def test_presets_are_overridden_by_explicit_sizes():
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone

    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "ViT"
    cfg.MODEL.VIT.NAME = "vit_small_patch14_reg4_dinov2"
    cfg.MODEL.VIT.DEPTH = 2
    cfg.INPUT.IMAGE_SIZE = 64
    model = build_backbone(cfg)
    assert len(model.blocks) == 2
    assert model.embed_dim == 384
    assert model.pos_embed.shape == (1, 16, 384)
    cfg.MODEL.VIT.NAME = "vit_smal"
    with pytest.raises(ValueError, match="'vit_smal' is not a known preset"):
        build_backbone(cfg)
    cfg.MODEL.VIT.NAME = ""
    with pytest.raises(ValueError, match="MODEL.VIT.EMBED_DIM, MODEL.VIT.NUM_HEADS must be given"):
        build_backbone(cfg)
