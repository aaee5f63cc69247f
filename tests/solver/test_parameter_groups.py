"""Layer decay: literals for ViT-L at 1e-4 and 0.8 (SPEC of the recipe: 0.8^23, 0.8^3, ...)."""

import pytest
import torch
from torch import nn

from eomt_d2.modeling.backbone import ViT, ViTAdapter, ViTFeaturePyramid
from eomt_d2.modeling.backbone.presets import PRESETS
from eomt_d2.solver import layer_decay_factor, parameter_groups


class Segmenter(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.query_embed = nn.Embedding(3, 8)
        self.class_head = nn.Linear(8, 2)


def vit_segmenter(depth=24):
    return Segmenter(ViT(embed_dim=8, depth=depth, num_heads=1, patch_size=16, img_size=32))


def groups_by_name(model, **kwargs):
    settings = {"base_lr": 1e-4, "weight_decay": 0.05, "layer_decay": 0.8, **kwargs}
    return {group["name"]: group for group in parameter_groups(model, **settings)}


def test_learning_rates_of_vit_large():
    groups = groups_by_name(vit_segmenter())
    rates = {name: group["lr"] for name, group in groups.items()}
    assert rates["block_23"] == 1e-4
    assert rates["block_20"] == pytest.approx(5.12e-5)
    assert rates["block_0"] == pytest.approx(5.902958103587057e-07)
    assert rates["embeddings"] == rates["block_0"]
    assert rates["norm"] == rates["head"] == 1e-4


def test_query_blocks_at_the_full_rate_leave_the_others_where_they_were():
    groups = groups_by_name(vit_segmenter(), num_full_rate_blocks=4)
    rates = {name: group["lr"] for name, group in groups.items()}
    assert [rates[f"block_{i}"] for i in (20, 21, 22, 23)] == [1e-4] * 4
    assert rates["block_19"] == pytest.approx(4.096e-5)  # 0.8^4
    assert rates["block_0"] == pytest.approx(5.902958103587057e-07)


def test_every_parameter_is_in_one_group_and_decays():
    model = vit_segmenter(depth=3)
    groups = groups_by_name(model)
    assert list(groups) == ["embeddings", "block_0", "block_1", "block_2", "norm", "head"]
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters()}
    assert {group["weight_decay"] for group in groups.values()} == {0.05}


def test_members_and_roles():
    model = vit_segmenter(depth=2)
    groups = groups_by_name(model)

    def ids(parameters):
        return {id(p) for p in parameters}

    vit = model.backbone
    embeddings = [*vit.patch_embed.parameters(), vit.cls_token, vit.reg_token, vit.pos_embed]
    assert ids(groups["embeddings"]["params"]) == ids(embeddings)
    assert ids(groups["block_1"]["params"]) == ids(vit.blocks[1].parameters())
    assert ids(groups["norm"]["params"]) == ids(vit.norm.parameters())
    assert ids(groups["head"]["params"]) == ids(
        [*model.query_embed.parameters(), *model.class_head.parameters()]
    )
    roles = {name: group["role"] for name, group in groups.items()}
    assert roles.pop("head") == "head"
    assert set(roles.values()) == {"backbone"}


PATCHES = ["patch_embed.proj.weight", "patch_embed.proj.bias"]


@pytest.mark.parametrize(
    "preset, embeddings, tensors_per_block",
    [
        # 14: two norms, qkv, its projection, two LayerScales and two linear layers.
        ("vit_giant_patch14_reg4_dinov2", ["cls_token", "reg_token", "pos_embed"], 14),
        ("vit_large_patch16_dinov3", ["cls_token", "reg_token"], 15),  # two biases of q and v
        ("vit_large_patch16_224", ["cls_token", "pos_embed"], 12),  # no LayerScale
        ("deit3_base_patch16_384", ["cls_token", "pos_embed"], 14),
        # No LayerScale, two biases of q and v, three linear layers and a norm between them.
        ("eva02_large_patch14_448", ["cls_token", "pos_embed"], 17),
    ],
)
def test_layer_decay_of_presets(preset, embeddings, tensors_per_block):
    """Blocks hold all their parameters, whatever these are called, and embeddings the others."""
    arguments = dict(PRESETS[preset])
    arguments.pop("num_query_blocks")
    with torch.device("meta"):
        model = Segmenter(ViT(**arguments))
    depth = len(model.backbone.blocks)
    names = {id(p): name for name, p in model.backbone.named_parameters()}
    groups = groups_by_name(model)
    members = {
        name: [names[id(p)] for p in group["params"]]
        for name, group in groups.items()
        if name != "head"
    }
    assert sorted(members.pop("embeddings")) == sorted(PATCHES + embeddings)
    assert members.pop("norm") == ["norm.weight", "norm.bias"]
    assert list(members) == [f"block_{i}" for i in range(depth)]
    for i in range(depth):
        group = members[f"block_{i}"]
        assert len(group) == tensors_per_block
        assert all(name.startswith(f"blocks.{i}.") for name in group)
        assert groups[f"block_{i}"]["lr"] == pytest.approx(1e-4 * 0.8 ** (depth - 1 - i))
    assert groups["embeddings"]["lr"] == groups["block_0"]["lr"]


def test_model_without_vit_has_a_backbone_and_a_head():
    model = Segmenter(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)))
    groups = groups_by_name(model)
    assert {name: (g["role"], g["lr"]) for name, g in groups.items()} == {
        "backbone": ("backbone", 1e-4),
        "head": ("head", 1e-4),
    }
    assert len(groups["backbone"]["params"]) == 4
    assert len(groups["head"]["params"]) == 3


def test_new_modules_around_a_vit_are_new_parameters():
    backbone = nn.Module()
    backbone.vit = ViT(embed_dim=8, depth=2, num_heads=1, patch_size=16, img_size=32)
    backbone.adapter = nn.Linear(8, 8)
    groups = groups_by_name(Segmenter(backbone))
    assert {id(p) for p in backbone.adapter.parameters()} <= {
        id(p) for p in groups["head"]["params"]
    }
    assert groups["block_0"]["lr"] == pytest.approx(8e-5)


@pytest.mark.parametrize("kind", [ViTAdapter, ViTFeaturePyramid])
def test_in_the_baseline_only_the_vit_is_no_new_parameter(kind):
    vit = ViT(embed_dim=32, depth=4, num_heads=1, patch_size=16, img_size=32,
              final_norm=kind is ViTFeaturePyramid)  # fmt: skip
    model = Segmenter(kind(vit=vit))
    groups = groups_by_name(model)
    head = {id(p) for p in groups["head"]["params"]}
    assert head == {id(p) for p in model.parameters()} - {id(p) for p in vit.parameters()}
    assert groups["block_1"]["lr"] == pytest.approx(0.64e-4)
    assert ("norm" in groups) == (kind is ViTFeaturePyramid)


def test_frozen_parameters_are_left_out():
    model = vit_segmenter(depth=2)
    model.backbone.blocks[0].requires_grad_(False)
    assert "block_0" not in groups_by_name(model)


@pytest.mark.parametrize(
    "block, full, expected",
    [(11, 0, 1.0), (10, 0, 0.8), (9, 0, 0.64), (9, 3, 1.0), (8, 3, 0.512)],
)
def test_layer_decay_factor(block, full, expected):
    assert layer_decay_factor(block, 12, 0.8, full) == pytest.approx(expected)


class ConvNet(nn.Module):
    """A backbone with a normalisation, a head with one, an embedding and a plain parameter."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.norm = nn.GroupNorm(2, 4)
        self.query_feat = nn.Embedding(5, 4)
        self.level = nn.Parameter(torch.zeros(4))


def test_mask2former_s_own_groups():
    """Norms and embeddings do not decay, a parameter that is neither does; the backbone learns at a
    tenth of the rate (Mask2Former, section 4.1)."""
    model = ConvNet()
    groups = groups_by_name(
        model, backbone_multiplier=0.1, weight_decay_norm=0.0, weight_decay_embed=0.0
    )
    settings = {n: (len(g["params"]), g["lr"], g["weight_decay"]) for n, g in groups.items()}
    assert settings == {
        "backbone": (2, pytest.approx(1e-5), 0.05),
        "backbone_norms": (2, pytest.approx(1e-5), 0.0),
        "head": (1, 1e-4, 0.05),
        "head_embeddings": (1, 1e-4, 0.0),
        "head_norms": (2, 1e-4, 0.0),
    }
    assert groups["head"]["params"][0] is model.level
    assert {group["role"] for group in groups.values()} == {"backbone", "head"}


def test_the_backbone_s_factor_multiplies_layer_decay():
    groups = groups_by_name(vit_segmenter(), backbone_multiplier=0.1)
    assert groups["block_20"]["lr"] == pytest.approx(5.12e-6)
    assert groups["norm"]["lr"] == pytest.approx(1e-5)
    assert groups["head"]["lr"] == 1e-4
