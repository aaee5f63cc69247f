from eomt_d2.checkpoint.wording import shape_text, summary


def test_shapes():
    assert shape_text((3, 16)) == "3x16"
    assert shape_text(()) == "a scalar"


def test_a_module_stands_for_all_of_its_tensors():
    model = ["a.0.weight", "a.0.bias", "a.1.weight", "b.weight", "b.bias", "scale"]
    assert summary(["a.0.weight", "a.0.bias", "b.bias", "scale"], model) == "a.0, b.bias, scale"
    assert summary(model, model) == "a, b, scale"
    assert summary(["new.x", "b.gain"], model) == "b.gain, new"
