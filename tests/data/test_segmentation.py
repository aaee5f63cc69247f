"""Run lengths and polygons, good, wrong and hostile."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from eomt_d2.data.segmentation import compressed_run_lengths, encoded_mask
from eomt_d2.errors import UserError


def mask_of(segmentation, height, width):
    return mask_util.decode(encoded_mask(segmentation, height, width, "a.jpg")).astype(bool)


@pytest.mark.parametrize("height, width", [(1, 1), (4, 5), (37, 61), (480, 640)])
@pytest.mark.parametrize("density", [0, 0.02, 0.5, 1])
def test_run_lengths_are_those_that_pycocotools_encoded(height, width, density):
    mask = np.random.default_rng(0).random((height, width)) < density
    counts = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    runs = compressed_run_lengths(counts)
    # Column by column, beginning with the number of zeros.
    values = np.repeat(np.arange(len(runs)) % 2, runs)
    np.testing.assert_array_equal(values.reshape(width, height).T, mask)
    np.testing.assert_array_equal(compressed_run_lengths(counts.decode()), runs)


def test_run_lengths_by_hand():
    # 48 + 5 = "5"; 40 = 8 + 32 * 1 is "X1" (48 + 8 + 32, 48 + 1); the fourth is 5 less than 7: -5 =
    # 27 - 32, a last digit of 27 has the sign bit 16: 48 + 27 = "K".
    assert compressed_run_lengths("5").tolist() == [5]
    assert compressed_run_lengths("5X1").tolist() == [5, 40]
    assert compressed_run_lengths("174K").tolist() == [1, 7, 4, 2]


@pytest.mark.parametrize("text", ["o", "1o", "\x7f", " ", "é", "oooooooo1"])
def test_no_run_lengths(text):
    with pytest.raises(ValueError):
        compressed_run_lengths(text)


def test_three_forms_of_one_mask():
    expected = np.zeros((6, 8), bool)
    expected[1:4, 1:5] = True
    polygon = [[1, 1, 5, 1, 5, 4, 1, 4]]
    # Column 0 and the first of column 1 are 7 zeros, then 3 ones and 3 zeros four times.
    runs = {"size": [6, 8], "counts": [7, 3, 3, 3, 3, 3, 3, 3, 20]}
    for segmentation in (polygon, runs, encoded_mask(runs, 6, 8, "a.jpg")):
        np.testing.assert_array_equal(mask_of(segmentation, 6, 8), expected)


def test_polygons_may_overshoot_the_image():
    assert mask_of([[-3.5, -2, 11, -2, 11, 9, -3.5, 9]], 6, 8).all()
    assert not mask_of([[20, 1, 25, 1, 25, 4]], 6, 8).any()


@pytest.mark.parametrize(
    "segmentation, sentence",
    [
        (None, "no usable segmentation"),
        ([], "no usable segmentation"),
        ("text", "no usable segmentation"),
        (5, "no usable segmentation"),
        ([5, 5, 5, 5, 5, 5], "no usable segmentation"),
        ([[1, 1, 2, 2]], "no usable segmentation"),
        ([[1, 1, 2, 2, 3]], "no usable segmentation"),
        (["abcdef"], "no usable segmentation"),
        ([[1, 1, 2, 2, 3, None]], "no finite number"),
        ([[1, 1, 2, 2, 3, [4]]], "no finite number"),
        ([[1, 1, 2, 2, 3, {"x": 4}]], "no finite number"),
        ([[1, 1, 2, 2, 3, 10**400]], "no finite number"),
        ([[float("inf"), float("-inf"), 2, 2, 3, 3]], "no finite number"),
        ([[1, 1, 2, 2, -1e300, 3]], "reaches from -1e.300 to 3, far outside"),
        ([[0, 0, 40, 0] * 600_000], "outline of 4.* pixels, more than the 10000000"),
        ({}, "has no usable size"),
        ({"size": "68", "counts": "1"}, "has no usable size"),
        ({"size": [6, 8.0], "counts": [48]}, "has no usable size"),
        ({"size": [6, 8, 1], "counts": [48]}, "has no usable size"),
        ({"size": [8, 6], "counts": [48]}, "is for an image of 6x8 pixels, but"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, "is for an image of 1000000000x"),
        ({"size": [6, 8]}, "do not add up"),
        ({"size": [6, 8], "counts": None}, "do not add up"),
        ({"size": [6, 8], "counts": []}, "do not add up"),
        ({"size": [6, 8], "counts": [[48]]}, "do not add up"),
        ({"size": [6, 8], "counts": [47.5, 0.5]}, "do not add up"),
        ({"size": [6, 8], "counts": ["48"]}, "do not add up"),
        ({"size": [6, 8], "counts": [10**30]}, "do not add up"),
        ({"size": [6, 8], "counts": [2**63 - 1, 49]}, "do not add up"),
        ({"size": [6, 8], "counts": [96, -48]}, "do not add up"),
        # What makes pycocotools read, and write, beyond its memory.
        ({"size": [6, 8], "counts": ""}, "do not add up"),
        ({"size": [6, 8], "counts": "0"}, "do not add up"),
        ({"size": [6, 8], "counts": b"ooooo"}, "do not add up"),
        ({"size": [6, 8], "counts": "`1" * 1000}, "do not add up"),
        ({"size": [6, 8], "counts": "K`1"}, "do not add up"),
    ],
)
def test_one_sentence(segmentation, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        encoded_mask(segmentation, 6, 8, "a.jpg")
    message = str(caught.value)
    assert "a.jpg" in message and len(message) < 300 and len(message.splitlines()) == 1
