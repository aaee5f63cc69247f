import pytest

from eomt_d2.checkpoint.numbering import iteration_of, numbered_name, numbered_names


@pytest.mark.parametrize(
    "iteration, name", [(0, "model_0000000.pth"), (12345678, "model_12345678.pth")]
)
def test_names_are_detectron2s(iteration, name):
    assert numbered_name(iteration) == name
    assert iteration_of(name) == iteration


@pytest.mark.parametrize(
    "name", ["model_final.pth", "model_best.pth", "model_0000001.pth.7.tmp", "my_model_0000001.pth"]
)
def test_other_names_have_no_iteration(name):
    assert iteration_of(name) is None


def test_the_oldest_comes_first():
    names = ["model_10000000.pth", "last_checkpoint", "model_9999999.pth", "model_final.pth"]
    assert numbered_names(names) == ["model_9999999.pth", "model_10000000.pth"]
