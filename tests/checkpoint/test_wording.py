from eomt_d2.checkpoint.wording import shape_text, summary


def test_shapes():
    assert shape_text((3, 16)) == "3x16"
    assert shape_text(()) == "a scalar"


def test_names_with_what_they_share():
    names = ["b.weight", "a.0.weight", "b.bias", "scale"]
    assert summary(names) == "a.0.weight, b.{bias, weight}, scale"
