"""Our EoMT in other projects: round trips are exact, and transformers computes the same."""

import pytest
import torch
from transformers import EomtDinov3ForUniversalSegmentation, EomtForUniversalSegmentation

from eomt_d2.checkpoint.sources import rename_to_ours
from eomt_d2.checkpoint.targets import (
    to_official,
    to_transformers,
    transformers_config,
    write_transformers_folder,
)
from eomt_d2.errors import UserError

from .foreign import CLASSES, DIM, SIZE, official_eomt, our_eomt, perturb, transformers_eomt

KINDS = ["dinov2", "giant", "dinov3"]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_official_to_ours_to_official(kind):
    official = {
        f"network.{name}": tensor
        for name, tensor in official_eomt(kind).items()
        if not name.startswith(("criterion.", "encoder.pixel_"))  # settings, not weights
    }
    assert_same(to_official(rename_to_ours(official)[0]), official)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_to_ours_to_transformers(kind):
    oracle = transformers_eomt(kind).state_dict()
    assert_same(to_transformers(rename_to_ours(oracle)[0]), dict(oracle))


@pytest.mark.parametrize("kind", KINDS)
def test_from_pretrained_reads_our_folder(kind, tmp_path):
    model = perturb(our_eomt(kind))
    model.mask_annealing.set_probs([0.0, 0.0])
    names = ["cat", "dog", "sky", "sea", "sand"]
    config = transformers_config(model, names, {0, 1})
    write_transformers_folder(str(tmp_path), to_transformers(model.state_dict()), config)
    architecture = (
        EomtDinov3ForUniversalSegmentation if kind == "dinov3" else EomtForUniversalSegmentation
    )
    oracle, info = architecture.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert oracle.config.id2label[2] == "sky"
    assert oracle.config.architectures == [architecture.__name__]
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected, (actual,) = oracle.eval()(images), model.predict(images)
    torch.testing.assert_close(
        actual.mask_logits, expected.masks_queries_logits, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        actual.class_logits, expected.class_queries_logits, atol=1e-4, rtol=1e-4
    )
    assert oracle.criterion.empty_weight.tolist() == pytest.approx([1.0] * CLASSES + [0.1])


def test_classes_without_names_are_numbered():
    config = transformers_config(our_eomt("dinov2"), [], frozenset())
    assert config["id2label"] == {str(i): f"LABEL_{i}" for i in range(CLASSES)}


def test_a_network_that_the_others_do_not_have():
    weights = our_eomt("dinov2").state_dict()
    weights["backbone.blocks.0.mlp.norm.weight"] = torch.ones(DIM)
    with pytest.raises(UserError, match="EoMT has no place for backbone.blocks.0.mlp.norm"):
        to_transformers(weights)


def test_a_vit_without_registers():
    weights = our_eomt("dinov2").state_dict()
    del weights["backbone.reg_token"]
    with pytest.raises(UserError, match="needs register tokens and LayerScale"):
        to_transformers(weights)


def test_the_gated_width_of_transformers():
    model = our_eomt("giant")
    assert transformers_config(model, [], frozenset())["mlp_ratio"] == 4
    # The published giant: 4 * 1536 * 2 / 3 = 4096.
    from eomt_d2.checkpoint.targets import _mlp_ratio

    assert _mlp_ratio(1536, 8192, gated=True) == 4
    with pytest.raises(UserError, match="no gated network of width 100"):
        _mlp_ratio(32, 200, gated=True)
