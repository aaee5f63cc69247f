import pytest
import torch

from eomt_d2.modeling.windows import merge_windows, window_positions


@pytest.mark.parametrize(
    "height, width, window, expected",
    [
        (512, 512, 512, [(0, 0)]),
        # ceil(683 / 512) = 2 windows, overlap 341, step 512 - 341 = 171.
        (512, 683, 512, [(0, 0), (0, 171)]),
        (512, 1024, 512, [(0, 0), (0, 512)]),
        # 3 windows, overlap 3 * 512 - 1300 = 236, step 512 - 118 = 394.
        (512, 1300, 512, [(0, 0), (0, 394), (0, 788)]),
        (1300, 512, 512, [(0, 0), (394, 0), (788, 0)]),
        # 4 windows, overlap 448, step 512 - 149.33 = 362.67: starts 362.67 and 725.33 are cut.
        (512, 1600, 512, [(0, 0), (0, 362), (0, 725), (0, 1088)]),
        # Cityscapes.
        (1024, 2048, 1024, [(0, 0), (0, 1024)]),
    ],
)
def test_window_positions(height, width, window, expected):
    assert window_positions(height, width, window) == expected


def test_last_window_ends_at_the_border():
    # 8 windows, step 640 - 639 / 7: the product 7 * step rounds to just below 3841.
    positions = window_positions(640, 4481, 640)
    assert positions[-1] == (0, 3841)
    assert int(7 * (640 - 639 / 7)) == 3840


@pytest.mark.parametrize("long", range(64, 64 * 12, 13))
def test_windows_cover_every_pixel(long):
    covered = torch.zeros(long, dtype=torch.bool)
    for left in (position[1] for position in window_positions(64, long, 64)):
        assert 0 <= left <= long - 64
        covered[left : left + 64] = True
    assert covered.all()


def test_short_side_must_be_the_window():
    with pytest.raises(ValueError, match="500 x 700 image must equal the window of 512"):
        window_positions(500, 700, 512)


def test_merge_averages_where_windows_overlap():
    windows = [torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[4.0, 6.0]]])]
    merged = merge_windows(iter(windows), [(0, 0), (0, 1)], (1, 3))
    # The middle pixel is seen twice: (2 + 4) / 2.
    assert merged.tolist() == [[[1.0, 3.0, 6.0]]]


def test_merge_down_the_height():
    windows = [torch.full((2, 2, 2), 1.0), torch.full((2, 2, 2), 5.0)]
    merged = merge_windows(windows, [(0, 0), (1, 0)], (3, 2))
    assert merged[1].tolist() == [[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]]


def test_merge_rejects_another_number_of_windows():
    with pytest.raises(ValueError, match="argument 2"):
        merge_windows([torch.zeros(1, 2, 2)], [(0, 0), (0, 1)], (2, 3))
