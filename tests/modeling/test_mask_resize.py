import pytest
import torch
import torch.nn.functional as F

from eomt_d2.modeling.mask_resize import (
    MaskGeometry,
    mask_logit_bands,
    resize_rows,
    row_bands,
)

GEOMETRIES = [
    # A landscape enlarged and a portrait reduced, each padded to a square.
    MaskGeometry((64, 64), (48, 64), (97, 131)),
    MaskGeometry((64, 64), (64, 40), (30, 20)),
    # Only the first, only the second, and none of the resizes changes the height.
    MaskGeometry((64, 64), (33, 64), (33, 64)),
    MaskGeometry((16, 16), (16, 12), (50, 12)),
    MaskGeometry((16, 16), (16, 16), (16, 16)),
    MaskGeometry((64, 48), (1, 48), (3, 5)),
]


def resize_mask_logits(logits, geometry):
    """The whole as one band."""
    ((rows, resized),) = mask_logit_bands(logits, geometry, max_numel=2**40)
    assert rows == slice(0, geometry.output_size[0])
    return resized


def interpolate(maps, size):
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_two_resizes_equal_interpolate(geometry):
    logits = torch.randn(3, 16, 16) * 10
    height, width = geometry.image_size
    padded = interpolate(logits, geometry.input_size)
    expected = interpolate(padded[:, :height, :width], geometry.output_size)
    # torch rounds source positions to float32, so values of size 10 differ in the last digits.
    torch.testing.assert_close(resize_mask_logits(logits, geometry), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("max_numel", [1, 300, 1000])
def test_bands_equal_the_whole_bit_for_bit(geometry, max_numel):
    logits = torch.randn(3, 16, 16)
    whole = resize_mask_logits(logits, geometry)
    bands = list(mask_logit_bands(logits, geometry, max_numel))
    assert [rows.start for rows, _ in bands[1:]] == [rows.stop for rows, _ in bands[:-1]]
    assert torch.equal(torch.cat([band for _, band in bands], dim=1), whole)


def test_rows_of_a_hand_made_column():
    # Source positions of 4 rows made from 2: -0.25 (held at 0), 0.25, 0.75, 1.25 (held at 1).
    column = torch.tensor([0.0, 8.0]).view(1, 2, 1)
    assert resize_rows(column, (4, 1), slice(0, 4)).flatten().tolist() == [0.0, 2.0, 6.0, 8.0]
    assert resize_rows(column, (4, 1), slice(2, 3)).flatten().tolist() == [6.0]


def test_row_bands():
    assert row_bands(5, 10, max_numel=20) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    # A row that is too long is a band of its own; no masks at all make one band.
    assert row_bands(2, 1000, max_numel=20) == [slice(0, 1), slice(1, 2)]
    assert row_bands(2, 0, max_numel=20) == [slice(0, 2)]


@pytest.mark.parametrize("num_queries", [1, 50, 170])
@pytest.mark.parametrize("output_size", [(4000, 6000), (100, 150)])
def test_band_size_does_not_depend_on_the_number_of_queries(num_queries, output_size):
    geometry = MaskGeometry((640, 640), (427, 640), output_size)
    rows, band = next(mask_logit_bands(torch.randn(num_queries, 160, 160), geometry))
    assert band.numel() <= 2**20
    # The same rows at the scale of the network's input.
    input_rows = (rows.stop - rows.start) * 427 / output_size[0]
    assert num_queries * input_rows * 640 <= 2**20


def test_no_queries():
    geometry = MaskGeometry((8, 8), (8, 6), (5, 7))
    assert resize_mask_logits(torch.zeros(0, 2, 2), geometry).shape == (0, 5, 7)


def test_half_precision_infinities_stay_ordered():
    # 0.5 * inf - 0.5 * inf would be NaN, which argmax takes for the largest value.
    logits = torch.tensor([[[float("inf"), -float("inf")]]], dtype=torch.float16)
    resized = resize_mask_logits(logits, MaskGeometry((1, 4), (1, 4), (1, 4)))
    assert resized.dtype == torch.float32
    assert (resized.sigmoid() == torch.tensor([1.0, 1.0, 0.0, 0.0])).all()
