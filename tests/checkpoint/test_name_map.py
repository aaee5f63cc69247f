import pytest
import torch

from eomt_d2.checkpoint.name_map import read_by_rules, rule, write_by_rules

RULES = [
    rule(("l.*.q.*", "l.*.k.*"), "b.*.qk.*"),
    rule("l.*.q.bias", "b.*.q_bias"),
    rule("pos", "pos_embed", batch_dim=True),
    rule("deep.**", "flat.**"),
]
WEIGHTS = {
    "l.0.q.weight": torch.tensor([[1.0], [2.0]]),
    "l.0.k.weight": torch.tensor([[3.0], [4.0]]),
    "l.0.q.bias": torch.tensor([5.0, 6.0]),
    "pos": torch.ones(4, 2),
    "deep.a.b.c": torch.tensor(7.0),
    "other": torch.tensor(8.0),
}


def test_names_are_joined_renamed_and_left():
    ours, rest = read_by_rules(WEIGHTS, RULES)
    assert ours["b.0.qk.weight"].tolist() == [[1], [2], [3], [4]]
    assert ours["b.0.q_bias"].tolist() == [5, 6], "a bias of the keys is missing, so the next rule"
    assert ours["pos_embed"].shape == (1, 4, 2)
    assert set(ours) == {"b.0.qk.weight", "b.0.q_bias", "pos_embed", "flat.a.b.c"}
    assert set(rest) == {"other"}


def test_writing_is_the_inverse():
    ours, _ = read_by_rules(WEIGHTS, RULES)
    theirs, rest = write_by_rules(ours, RULES)
    assert rest == {}
    assert set(theirs) == set(WEIGHTS) - {"other"}
    for name, tensor in theirs.items():
        assert torch.equal(tensor, WEIGHTS[name]), name


def test_a_part_can_be_dropped():
    rules = [rule("bias", ("q_bias", None, "v_bias"))]
    ours, _ = read_by_rules({"bias": torch.arange(6)}, rules)
    assert {name: tensor.tolist() for name, tensor in ours.items()} == {
        "q_bias": [0, 1],
        "v_bias": [4, 5],
    }


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({"bias": torch.arange(7)}, "7 rows cannot be split into 3"),
        ({"x": torch.ones(1), "y": torch.ones(1)}, "Two tensors would be called z"),
        ({"q": torch.ones(2, 3), "k": torch.ones(2, 4)}, "cannot be joined"),
        ({"q": torch.tensor(1), "k": torch.tensor(1)}, "cannot be joined"),
    ],
)
def test_tensors_that_the_rules_cannot_take(weights, problem):
    rules = [
        rule("bias", ("q_bias", None, "v_bias")),
        rule("x", "z"),
        rule("y", "z"),
        rule(("q", "k"), "qk"),
    ]
    with pytest.raises(ValueError, match=problem):
        read_by_rules(weights, rules)
