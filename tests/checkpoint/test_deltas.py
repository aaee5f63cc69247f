import pytest
import torch

from eomt_d2.checkpoint.deltas import add_base, is_delta
from eomt_d2.errors import UserError

BASE = {"norm.weight": torch.tensor([1.0, 2.0]), "cls_token": torch.tensor([3.0])}
DELTA = {
    "backbone.norm.weight": torch.tensor([0.5, -0.5]),
    "backbone.cls_token": torch.tensor([0.25]),
    "class_head.bias": torch.tensor([7.0]),
    "mask_annealing.probs": torch.tensor([-1.0, -0.75]),
}


def test_backbone_head_and_probabilities():
    weights = add_base(DELTA, BASE)
    assert weights["backbone.norm.weight"].tolist() == [1.5, 1.5]
    assert weights["backbone.cls_token"].tolist() == [3.25]
    assert weights["class_head.bias"].tolist() == [7], "its difference is from zero"
    assert weights["mask_annealing.probs"].tolist() == [0, 0.25], "theirs is from one"
    assert DELTA["mask_annealing.probs"].tolist() == [-1, -0.75]


def test_half_precision_is_added_in_full():
    half = torch.bfloat16
    base = {name: tensor.to(half) for name, tensor in BASE.items()}
    # In bfloat16 1 + 1/512 would be 1.
    delta = {**DELTA, "backbone.norm.weight": torch.full((2,), 1 / 512, dtype=half)}
    for one, other in ((delta, BASE), (delta, base), (DELTA, base)):
        assert add_base(one, other)["backbone.norm.weight"].dtype == torch.float32
    assert add_base(delta, base)["backbone.norm.weight"].tolist() == [1 + 1 / 512, 2 + 1 / 512]


@pytest.mark.parametrize(
    ("probs", "expected"), [([-1.0, -1.0], True), ([0.0, 0.0], False), ([1.0, 0.5], False)]
)
def test_probabilities_tell_a_difference(probs, expected):
    assert is_delta({"mask_annealing.probs": torch.tensor(probs)}) == expected
    assert not is_delta({})


@pytest.mark.parametrize(
    ("base", "problem"),
    [
        ({"norm.weight": torch.ones(2)}, "the base lacks backbone.cls_token"),
        ({**BASE, "pos_embed": torch.ones(1)}, "the difference lacks backbone.pos_embed"),
        (
            {**BASE, "cls_token": torch.ones(2)},
            r"backbone.cls_token is \(2,\) in the base and \(1,",
        ),
    ],
)
def test_another_base(base, problem):
    with pytest.raises(UserError, match=f"The base does not fit the difference: .*{problem}"):
        add_base(DELTA, base)
