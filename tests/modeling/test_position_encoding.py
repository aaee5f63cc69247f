"""The sine position encoding, by hand."""

import math

import pytest
import torch

from eomt_d2.modeling.position_encoding import sine_position_encoding


def test_by_hand():
    """A map of 2 x 3 pixels, 8 features: two frequencies per axis, 1 and 1 / 10000^(4 / 8)."""
    encoding = sine_position_encoding((2, 3), 8, torch.device("cpu"))
    assert encoding.shape == (6, 8)
    y, x = 2 * math.pi * 1 / 2, 2 * math.pi * 3 / 3  # pixel (row 0, column 2)
    expected = [
        math.sin(y), math.cos(y), math.sin(y / 100), math.cos(y / 100),
        math.sin(x), math.cos(x), math.sin(x / 100), math.cos(x / 100),
    ]  # fmt: skip
    assert encoding[2].tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(encoding[2, :4], encoding[0, :4]), "one row has one y"
    assert torch.equal(encoding[2, 4:], encoding[5, 4:]), "one column has one x"


def test_features_come_in_fours():
    with pytest.raises(ValueError, match="multiple of 4 features, not 6"):
        sine_position_encoding((2, 2), 6, torch.device("cpu"))
