"""Every known project's weights load into our networks, which then compute the same."""

import pytest
import timm
import torch
from safetensors.torch import load_file
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from eomt_d2.checkpoint.sources import detect_source, rename_to_ours, without_wrappers
from eomt_d2.errors import UserError
from eomt_d2.modeling import ViT
from eomt_d2.modeling.backbone.presets import PRESETS

from .foreign import (
    BLOCKS,
    DEPTH,
    DIM,
    HEADS,
    SIZE,
    official_eomt,
    our_eomt,
    perturb,
    transformers_eomt,
)


def our_vit(**kwargs) -> ViT:
    args = dict(embed_dim=DIM, depth=DEPTH, num_heads=HEADS, img_size=SIZE, patch_size=16)
    return ViT(**{**args, **kwargs}).eval()


def features(vit: ViT, images):
    with torch.no_grad():
        return vit(images)["vit"].flatten(2).transpose(1, 2)


@pytest.mark.parametrize("kind", ["dinov2", "giant", "dinov3"])
def test_eomt_of_transformers(kind, tmp_path):
    oracle, model = transformers_eomt(kind), our_eomt(kind)
    oracle.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert detect_source(set(weights)) == "transformers"
    renamed, title = rename_to_ours(weights)
    assert title == "an EoMT of transformers"
    model.load_state_dict(renamed, strict=True)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = oracle(images)
        predictions = model.predict(images)
    assert len(predictions) == 1, "a finished model runs unmasked by itself"
    masks, classes = predictions[0]
    assert expected.masks_queries_logits.std() > 0.1
    torch.testing.assert_close(masks, expected.masks_queries_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(classes, expected.class_queries_logits, atol=1e-4, rtol=1e-4)


def test_the_giant_of_transformers_4():
    """Packed: weights_in holds gate and up, weights_out is down."""
    oracle, model = transformers_eomt("giant"), our_eomt("giant")
    weights = dict(oracle.state_dict())
    for i in range(DEPTH):
        for leaf in ("weight", "bias"):
            halves = [weights.pop(f"layers.{i}.mlp.{x}_proj.{leaf}") for x in ("gate", "up")]
            weights[f"layers.{i}.mlp.weights_in.{leaf}"] = torch.cat(halves)
            down = weights.pop(f"layers.{i}.mlp.down_proj.{leaf}")
            weights[f"layers.{i}.mlp.weights_out.{leaf}"] = down
    model.load_state_dict(rename_to_ours(weights)[0], strict=True)
    images = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = oracle(images).masks_queries_logits
        torch.testing.assert_close(
            model.predict(images)[-1].mask_logits, expected, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("kind", ["dinov2", "giant", "dinov3"])
@pytest.mark.parametrize("wrapper", ["", "network.", "network._orig_mod."])
def test_official_eomt(kind, wrapper):
    official, model = official_eomt(kind), our_eomt(kind)
    renamed, title = rename_to_ours({wrapper + name: t for name, t in official.items()})
    assert title == "an official EoMT"
    model.load_state_dict(renamed, strict=True)
    assert model.mask_annealing.active == (False,) * BLOCKS
    assert torch.equal(model.query_embed.weight, official["q.weight"])
    assert torch.equal(model.upscale[1].norm.weight, official["upscale.1.norm.weight"])
    block = "encoder.backbone.blocks.1"
    if kind == "dinov3":
        thirds = [official[f"{block}.attention.{x}_proj.weight"] for x in "qkv"]
        assert torch.equal(model.backbone.blocks[1].attn.qkv.weight, torch.cat(thirds))
        bias = official[f"{block}.attention.v_proj.bias"]
        assert torch.equal(model.backbone.blocks[1].attn.v_bias, bias)
    else:
        qkv = official[f"{block}.attn.qkv.weight"]
        assert torch.equal(model.backbone.blocks[1].attn.qkv.weight, qkv)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("version", [4, 5])
def test_dinov2_of_transformers(gated, version):
    config = Dinov2WithRegistersConfig(
        hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=SIZE,
        patch_size=16, use_swiglu_ffn=gated,
    )  # fmt: skip
    oracle = perturb(Dinov2WithRegistersModel(config))
    model = our_vit(**(dict(ffn="swiglu", mlp_ratio=88 / 32) if gated else {}))
    weights = oracle.state_dict()
    if version == 4:
        weights = as_in_version_4(weights)
    renamed, title = rename_to_ours(weights)
    assert title == "a ViT of transformers"
    # The position of the class token is added to it, as in fit_vit_weights.
    position = renamed["pos_embed"]
    renamed["cls_token"] = renamed["cls_token"] + position[:, :1]
    renamed["pos_embed"] = position[:, 1:]
    model.load_state_dict(renamed, strict=True)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = oracle(images).last_hidden_state[:, 5:]
    torch.testing.assert_close(features(model, images), expected, atol=1e-4, rtol=1e-4)


def as_in_version_4(weights):
    """Attention inside of attention, and the packed gated network."""
    older = {}
    for name, tensor in weights.items():
        for new, old in (
            ("attention.q_proj", "attention.attention.query"),
            ("attention.k_proj", "attention.attention.key"),
            ("attention.v_proj", "attention.attention.value"),
            ("attention.o_proj", "attention.output.dense"),
            ("mlp.down_proj", "mlp.weights_out"),
        ):
            name = name.replace(new, old)
        older[name] = tensor
    for name in [name for name in older if "mlp.gate_proj" in name]:
        halves = [older.pop(name), older.pop(name.replace("gate_proj", "up_proj"))]
        older[name.replace("gate_proj", "weights_in")] = torch.cat(halves)
    return older


@pytest.mark.parametrize("prefix", ["layer.", "model.layer."])
def test_dinov3_of_transformers(prefix):
    config = DINOv3ViTConfig(
        hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=SIZE,
        intermediate_size=4 * DIM, num_register_tokens=4,
    )  # fmt: skip
    oracle = perturb(DINOv3ViTModel(config))
    model = our_vit(position="rotary", key_bias=False, norm_eps=1e-5)
    weights = {n.replace("model.layer.", prefix): t for n, t in oracle.state_dict().items()}
    renamed, title = rename_to_ours(weights)
    assert title == "a ViT of transformers"
    model.load_state_dict(renamed, strict=True)
    images = torch.randn(2, 3, SIZE, 2 * SIZE)
    with torch.no_grad():
        expected = oracle(images).last_hidden_state[:, 5:]
    torch.testing.assert_close(features(model, images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", ["vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"])
def test_dinov3_of_timm(variant):
    oracle = perturb(timm.create_model(variant, depth=DEPTH, num_classes=0))
    model = our_vit(embed_dim=384, num_heads=6, position="rotary", key_bias=False, norm_eps=1e-5)
    renamed, title = rename_to_ours(oracle.state_dict())
    assert title == "a ViT of timm"
    model.load_state_dict(renamed, strict=True)
    images = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = oracle.forward_features(images)[:, 5:]
    torch.testing.assert_close(features(model, images), expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "architecture", ["vit_base_patch16_224", "deit3_base_patch16_384", "eva02_base_patch14_448"]
)
@pytest.mark.parametrize("in_eomt", [False, True])
def test_the_other_presets_of_timm(architecture, in_eomt):
    """Classifiers as timm publishes them, and the same backbone inside an official EoMT."""
    with torch.device("meta"):
        oracle = timm.create_model(architecture, depth=2)
        preset = {**PRESETS[architecture], "depth": 2}
        preset.pop("num_query_blocks")
        patch = oracle.patch_embed.patch_size[0]
        model = ViT(**preset, patch_size=patch, img_size=oracle.patch_embed.img_size[0])
    weights = oracle.state_dict()
    prefix = ""
    if in_eomt:
        prefix = "backbone."
        weights = {f"encoder.{prefix}{n}": t for n, t in weights.items() if n[:5] != "head."}
    renamed, title = rename_to_ours(weights)
    assert title == ("an official EoMT" if in_eomt else "a ViT of timm")
    wanted = {prefix + name: tensor.shape for name, tensor in model.state_dict().items()}
    # The class token's position is in the file where there is one; fit_vit_weights moves it.
    position = renamed[f"{prefix}pos_embed"]
    has_class = position.shape[1] > wanted[f"{prefix}pos_embed"][1]
    renamed[f"{prefix}pos_embed"] = position[:, int(has_class) :]
    assert {name: tensor.shape for name, tensor in renamed.items()} == wanted


def vit_weights(**kwargs):
    """A ViT of ours whose names are timm's: what the authors' files call otherwise is renamed."""
    return our_vit(**kwargs).state_dict()


def test_dinov2_of_its_authors():
    """Names of the hub's dinov2_vitg14_reg: register_tokens, mask_token, mlp.w12 and w3."""
    ours = vit_weights(ffn="swiglu", mlp_ratio=88 / 32)
    hub = {"mask_token": torch.zeros(1, DIM)}
    for name, tensor in ours.items():
        name = name.replace("reg_token", "register_tokens")
        hub[name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")] = tensor
    renamed, title = rename_to_ours(hub)
    assert title == "DINOv2's ViT"
    assert renamed.keys() == ours.keys()
    assert all(torch.equal(renamed[name], ours[name]) for name in ours)


def test_dinov3_of_its_authors():
    """Names of the hub's dinov3_vitl16; the part of qkv.bias for the keys may hold anything."""
    ours = vit_weights(position="rotary", key_bias=False)
    for i in range(DEPTH):
        ours[f"blocks.{i}.attn.q_bias"] = torch.randn(DIM)
        ours[f"blocks.{i}.attn.v_bias"] = torch.randn(DIM)
    hub = {"mask_token": torch.zeros(1, DIM), "rope_embed.periods": torch.ones(2)}
    for name, tensor in ours.items():
        if name.endswith("attn.q_bias"):
            block = name.removesuffix("q_bias")
            unused = torch.full((DIM,), torch.nan)
            hub[f"{block}qkv.bias"] = torch.cat((tensor, unused, ours[f"{block}v_bias"]))
            hub[f"{block}qkv.bias_mask"] = torch.cat((torch.ones(DIM), 0 * tensor, torch.ones(DIM)))
        elif not name.endswith("attn.v_bias"):
            hub[name.replace("reg_token", "storage_tokens")] = tensor
    renamed, title = rename_to_ours(hub)
    assert title == "DINOv3's ViT"
    assert renamed.keys() == ours.keys()
    assert all(torch.equal(renamed[name], ours[name]) for name in ours)


def test_wrappers_come_off_wherever_they_are():
    names = {"module._orig_mod.a.b": 1, "module.network.c": 2, "module.d._orig_mod.e": 3}
    assert without_wrappers(names) == {"a.b": 1, "c": 2, "d.e": 3}


def test_a_source_that_is_not_the_one_named():
    weights = transformers_eomt("dinov2").state_dict()
    with pytest.raises(UserError, match="not those of an official EoMT: they look like an EoMT of"):
        rename_to_ours(weights, "eomt")
    with pytest.raises(UserError, match="look like something unknown, with names such as a.b"):
        rename_to_ours({"a.b": torch.ones(1)}, "timm")


def test_right_names_with_wrong_shapes_are_one_sentence():
    weights = transformers_eomt("dinov2").state_dict()
    weights["layers.0.attention.q_proj.weight"] = torch.ones(3, 5)
    with pytest.raises(UserError, match="names of an EoMT of transformers, but: Tensors of shapes"):
        rename_to_ours(weights)


def test_unknown_names_stay():
    weights = {"stem.conv1.weight": torch.ones(1)}
    assert rename_to_ours(weights) == (weights, "a model with names of its own")
