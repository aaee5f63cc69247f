import torch

from eomt_d2.checkpoint.heads import anew, fit_queries

NAME = "query_embed.weight"


def fit(old, new):
    weights = {NAME: old, "class_head.weight": torch.ones(3, 2)}
    return fit_queries(weights, {NAME: new, "class_head.weight": torch.ones(5, 2)}), weights


def test_the_first_of_too_many_queries_are_used():
    lines, weights = fit(torch.arange(8.0).reshape(4, 2), torch.zeros(3, 2))
    assert weights[NAME].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert lines == [
        "query_embed.weight: 4 queries in the file, 3 in the model; the first ones are used"
    ]
    assert weights["class_head.weight"].shape == (3, 2), "no queries"


def test_too_few_queries_are_repeated():
    lines, weights = fit(torch.arange(4.0).reshape(2, 2), torch.zeros(5, 2))
    assert weights[NAME][:, 0].tolist() == [0, 2, 0, 2, 0]
    assert lines == ["query_embed.weight: 2 queries in the file, 5 in the model; they are repeated"]


def test_queries_that_fit_or_never_can_stay():
    for old in (torch.ones(3, 2), torch.ones(3, 4), torch.ones(0, 2)):
        lines, weights = fit(old, torch.zeros(3, 2))
        assert lines == []
        assert weights[NAME] is old


def test_what_starts_anew_is_said_once_per_head():
    misshapen = [
        ("decoder.class_head.bias", (134,), (151,)),
        ("decoder.class_head.weight", (134, 256), (151, 256)),
        ("mask_head.0.weight", (2, 3), (4, 5)),
        ("scale", (), (2,)),
    ]
    assert anew(misshapen) == [
        "decoder.class_head starts anew: 133 classes in the file, 150 in the model",
        "mask_head.0.weight starts anew: it is 2x3 in the file and 4x5 in the model",
        "scale starts anew: it is a scalar in the file and 2 in the model",
    ]
