import pytest
import torch
import torch.nn.functional as F

from eomt_d2.modeling.mask_resize import finite, resize_rows, row_bands, source_rows


@pytest.mark.parametrize("source, size", [((16, 16), (37, 50)), ((48, 64), (20, 30)),
                                          ((16, 12), (16, 31)), ((9, 12), (40, 12))])  # fmt: skip
def test_rows_equal_interpolate_and_do_not_depend_on_their_band(source, size):
    maps = torch.randn(3, *source) * 10
    expected = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
    whole = resize_rows(maps, size, slice(0, size[0]))
    # torch rounds source positions to float32, so values of size 10 differ in the last digits.
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-4)
    for rows in row_bands(size[0], 1, max_numel=7):
        assert torch.equal(resize_rows(maps, size, rows), whole[:, rows])
        needed = source_rows(source[0], size[0], rows)
        cut = dict(source_height=source[0], source_start=needed.start)
        assert torch.equal(resize_rows(maps[:, needed], size, rows, **cut), whole[:, rows])


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


def test_half_precision_infinities_stay_ordered():
    # 0.5 * inf - 0.5 * inf would be NaN, which argmax takes for the largest value.
    logits = finite(torch.tensor([[[float("inf"), -float("inf")]]], dtype=torch.float16))
    resized = resize_rows(logits, (1, 4), slice(0, 1))
    assert resized.dtype == torch.float32
    assert (resized.sigmoid() == torch.tensor([1.0, 1.0, 0.0, 0.0])).all()
