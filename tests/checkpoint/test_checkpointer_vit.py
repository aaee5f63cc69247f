"""The checkpointer and the ViT inside a model: whole or not at all."""

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from eomt_d2.checkpoint import Checkpointer
from eomt_d2.errors import UserError
from eomt_d2.modeling.backbone import ViT, ViTAdapter

from .segmenter import Segmenter, assert_equal, saved


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_timm_weights_of_a_vit_alone(tmp_path, kind, log):
    oracle = VisionTransformer(
        img_size=70, patch_size=14, embed_dim=16, depth=2, num_heads=2, reg_tokens=4,
        no_embed_class=True, init_values=1.0, num_classes=10,
    )  # fmt: skip
    path = str(tmp_path / f"vit.{kind}")
    (save_file if kind == "safetensors" else torch.save)(oracle.state_dict(), path)
    model = Segmenter()
    head = model.class_head.weight.clone()
    Checkpointer(model).load(path)
    fc1 = "blocks.1.mlp.fc1.weight"
    assert_equal({fc1: model.backbone.state_dict()[fc1]}, {fc1: oracle.state_dict()[fc1]})
    assert torch.equal(model.class_head.weight, head)
    assert log[1:] == [
        "INFO The weights are those of a ViT of timm.",
        "INFO backbone.pos_embed: resampled from 5x5 to 4x4 patches.",
        "INFO backbone.patch_embed.proj.weight: resampled from 14 to 16 pixels.",
        "INFO Loaded 35 of the model's 38 tensors.",
        "WARNING Not in the file, so they start anew: class_head, mask_annealing.",
    ]


def test_weights_of_a_vit_alone_go_into_the_vit_of_an_adapter(tmp_path, log):
    """Whose final norm does not exist; everything else of the ViT must be there."""
    sizes = dict(embed_dim=32, depth=4, num_heads=2, patch_size=16, img_size=64)
    source, model = ViT(**sizes), Segmenter()
    model.backbone = ViTAdapter(vit=ViT(**sizes, final_norm=False))
    path = saved(tmp_path, source.state_dict())
    Checkpointer(model).load(path)
    loaded = model.backbone.vit.state_dict()
    assert_equal(loaded, {k: v for k, v in source.state_dict().items() if k in loaded})
    assert log[-1] == ("WARNING Not in the model, so not used: backbone.vit.norm.")


def test_a_missing_backbone_tensor_is_an_error(tmp_path):
    weights = Segmenter().state_dict()
    del weights["backbone.blocks.1.ls2.gamma"], weights["backbone.norm.bias"]
    with pytest.raises(
        UserError,
        match="do not fit the ViT of the config: backbone.blocks.1.ls2.gamma is missing; "
        "backbone.norm.bias is missing",
    ):
        Checkpointer(Segmenter()).load(saved(tmp_path, weights))


def test_a_misshapen_backbone_tensor_is_an_error(tmp_path):
    weights = Segmenter().state_dict()
    weights["backbone.reg_token"] = torch.zeros(1, 2, 16)
    with pytest.raises(UserError, match="backbone.reg_token is 1x2x16 instead of 1x4x16"):
        Checkpointer(Segmenter()).load(saved(tmp_path, weights))


@pytest.mark.parametrize(
    ("name", "tensor", "shapes"),
    [
        ("cls_token", None, "cls_token is missing"),
        ("patch_embed.proj.weight", torch.zeros(16, 768), "16x768 instead of 16x3x16x16"),
        ("patch_embed.proj.weight", torch.zeros(()), "a scalar instead of 16x3x16x16"),
        ("pos_embed", torch.zeros(17), "17 instead of 1x16x16"),
        ("pos_embed", torch.zeros(1, 17, 8), "1x17x8 instead of 1x16x16"),
    ],
)
def test_nothing_is_resampled_that_is_not_of_a_vit(tmp_path, name, tensor, shapes):
    weights = Segmenter().state_dict()
    weights["backbone.pos_embed"] = torch.zeros(1, 17, 16)
    weights[f"backbone.{name}"] = tensor
    weights = {key: value for key, value in weights.items() if value is not None}
    with pytest.raises(UserError, match=shapes):
        Checkpointer(Segmenter()).load(saved(tmp_path, weights))


def test_weights_of_something_else_are_an_error(tmp_path):
    path = saved(tmp_path, nn.Linear(2, 2).state_dict())
    with pytest.raises(UserError, match=r"backbone.cls_token is missing; .* and \d+ more; give"):
        Checkpointer(Segmenter()).load(path)
