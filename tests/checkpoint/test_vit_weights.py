"""Against timm: its networks, its names, its resampling."""

import timm.layers
import torch
from timm.models.vision_transformer import VisionTransformer

from eomt_d2.checkpoint.vit_weights import fit_vit_weights
from eomt_d2.modeling.backbone import ViT


def timm_vit(**kwargs):
    settings = {
        "img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2,
        "init_values": 0.1, "num_classes": 0, "global_pool": "", **kwargs,
    }  # fmt: skip
    model = VisionTransformer(**settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def our_vit(**kwargs):
    settings = {
        "embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 16, "img_size": 64, **kwargs,
    }  # fmt: skip
    return ViT(**settings).eval()


def test_nothing_changes_where_everything_fits():
    oracle, vit = timm_vit(reg_tokens=4, no_embed_class=True), our_vit()
    weights = oracle.state_dict()
    assert fit_vit_weights(weights, vit) == []
    vit.load_state_dict(weights)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours = vit(images)["vit"].flatten(2).transpose(1, 2)
        torch.testing.assert_close(ours, oracle(images)[:, 5:], rtol=1e-4, atol=1e-4)


def test_the_position_of_the_class_token_moves_into_it():
    oracle, vit = timm_vit(), our_vit(num_registers=0)
    weights = oracle.state_dict()
    assert weights["pos_embed"].shape == (1, 17, 32)
    changes = fit_vit_weights(weights, vit)
    assert changes == ["pos_embed: the class token's position was added to the class token"]
    vit.load_state_dict(weights)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours = vit(images)["vit"].flatten(2).transpose(1, 2)
        torch.testing.assert_close(ours, oracle(images)[:, 1:], rtol=1e-4, atol=1e-4)


def test_patch_14_at_70_pixels_becomes_patch_16_at_96():
    prefix = "backbone."
    oracle = timm_vit(img_size=70, patch_size=14, reg_tokens=4, no_embed_class=True)
    source = oracle.state_dict(prefix=prefix)
    weights = dict(source)
    changes = fit_vit_weights(weights, our_vit(img_size=96), prefix)
    assert changes == [
        "backbone.pos_embed: resampled from 5x5 to 6x6 patches",
        "backbone.patch_embed.proj.weight: resampled from 14 to 16 pixels",
    ]
    torch.testing.assert_close(
        weights["backbone.pos_embed"],
        timm.layers.resample_abs_pos_embed(
            source["backbone.pos_embed"], [6, 6], num_prefix_tokens=0, antialias=True
        ),
    )
    torch.testing.assert_close(
        weights["backbone.patch_embed.proj.weight"],
        timm.layers.resample_patch_embed(source["backbone.patch_embed.proj.weight"], [16, 16]),
        rtol=1e-4,
        atol=1e-4,
    )
    unchanged = set(source) - {"backbone.pos_embed", "backbone.patch_embed.proj.weight"}
    assert all(weights[name] is source[name] for name in unchanged)
