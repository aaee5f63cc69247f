import pytest
import torch
from torch import nn

from eomt_d2.checkpoint.fitting import check_vits, fit_to_model
from eomt_d2.errors import UserError
from eomt_d2.modeling import ViT

from .foreign import our_eomt


class Wrapped(nn.Module):
    """A backbone around a ViT, as an adapter is."""

    def __init__(self):
        super().__init__()
        vit = ViT(embed_dim=32, depth=3, num_heads=4, img_size=64)
        self.backbone = nn.ModuleDict({"vit": vit, "neck": nn.Linear(2, 2)})


def test_a_vit_alone_goes_where_the_model_has_its_own():
    weights = ViT(embed_dim=32, depth=3, num_heads=4, img_size=64).state_dict()
    for model, prefix in ((our_eomt("dinov2"), "backbone."), (Wrapped(), "backbone.vit.")):
        fitted, changes = fit_to_model(weights, model)
        assert fitted.keys() == {prefix + name for name in weights}
        assert changes == []
        check_vits(fitted, model)


def test_the_vit_of_a_plain_model_goes_into_an_adapter():
    weights = our_eomt("dinov2").state_dict()
    weights["backbone.neck.bias"] = torch.ones(2)
    fitted, _ = fit_to_model(weights, Wrapped())
    assert "backbone.vit.blocks.2.attn.qkv.weight" in fitted
    assert "backbone.neck.bias" in fitted, "not of a ViT"
    assert "class_head.bias" in fitted
    check_vits(fitted, Wrapped())


def test_another_image_size_and_number_of_queries():
    source, model = our_eomt("dinov2"), our_eomt("dinov2", image_size=96, num_queries=3)
    fitted, changes = fit_to_model(source.state_dict(), model, new_task=True)
    assert changes == [
        "backbone.pos_embed: resampled from 4x4 to 6x6 patches",
        "query_embed.weight: 7 queries in the file, 3 in the model; the first ones are used",
    ]
    model.load_state_dict(fitted, strict=True)
    fitted, changes = fit_to_model(source.state_dict(), model)
    assert len(changes) == 1, "no new task: queries are those of the training"
    assert fitted["query_embed.weight"].shape == (7, 32)


def test_a_model_without_vit_is_left_alone():
    weights = {"backbone.stem.weight": torch.ones(1)}
    assert fit_to_model(weights, nn.Linear(1, 1)) == (weights, [])


def test_differences_are_refused():
    model = our_eomt("dinov3")
    weights = model.state_dict()
    weights["mask_annealing.probs"] = torch.tensor([-1.0, -1.0])
    with pytest.raises(UserError, match="run tools/convert_checkpoint.py with --base"):
        fit_to_model(weights, model)


def test_a_half_loaded_backbone_is_refused():
    weights = our_eomt("dinov2").state_dict()
    del weights["backbone.norm.bias"]
    weights["backbone.cls_token"] = torch.zeros(1, 1, 8)
    with pytest.raises(
        UserError, match="cls_token is 1x1x8 instead of 1x1x32; .*norm.bias is miss"
    ):
        check_vits(weights, our_eomt("dinov2"))


def test_weights_of_another_kind_of_vit_are_refused():
    weights = our_eomt("dinov2").state_dict()
    weights["backbone.blocks.1.attn.sink"] = torch.zeros(1)
    with pytest.raises(UserError, match="ViT of the config: backbone.blocks.1.attn.sink is in the"):
        check_vits(weights, our_eomt("dinov2"))
    # An adapter has no use for the last norm.
    model = Wrapped()
    weights, _ = fit_to_model(our_eomt("dinov2").backbone.state_dict(), model)
    model.backbone["vit"].norm = nn.Identity()
    check_vits(weights, model)
