import numpy as np
import pytest

from eomt_d2.data.color_jitter import apply_color_jitter, draw_color_jitter


def pixels(*colours):
    return np.array([colours], np.uint8)


@pytest.mark.parametrize(
    "operation, before, after",
    [
        # Multiplies, truncates and saturates.
        (("brightness", 1.1), [(100, 250, 0)], [(110, 255, 0)]),
        (("brightness", 0.9), [(101, 255, 0)], [(90, 229, 0)]),
        # Grey means of 100 and 200 are 100 and 200 (the weights .2989 .587 .114 sum to .9999, so
        # the mean is a little below 150): halfway to it is 124.9 and 174.9.
        (("contrast", 0.5), [(100, 100, 100), (200, 200, 200)], [(124,) * 3, (174,) * 3]),
        (("contrast", 1.5), [(100, 100, 100), (200, 200, 200)], [(75,) * 3, (225,) * 3]),
        # The grey of (200, 0, 0) is .2989 * 200 = 59.8.
        (("saturation", 0.5), [(200, 0, 0)], [(129, 29, 29)]),
        (("saturation", 1.5), [(100, 0, 0)], [(135, 0, 0)]),
        # 18 degrees from red towards yellow is 18/60 = 0.3 of green; a third of a turn is green.
        (("hue", 18 / 360), [(255, 0, 0)], [(255, 76, 0)]),
        (("hue", -18 / 360), [(255, 0, 0)], [(255, 0, 76)]),
        (("hue", 1 / 3), [(255, 0, 0)], [(0, 255, 0)]),
        (("hue", 0.05), [(80, 80, 80)], [(80, 80, 80)]),
    ],
)
def test_single_operations(operation, before, after):
    image = pixels(*before)
    result = apply_color_jitter(image, [operation])
    assert result.dtype == np.uint8 and result.flags.c_contiguous
    # One level either way: implementations truncate or round intermediate greys.
    np.testing.assert_allclose(result.astype(int), pixels(*after).astype(int), atol=1)
    np.testing.assert_array_equal(image, pixels(*before))


def test_operations_apply_in_the_given_order():
    image = pixels((200, 100, 0))
    brighter_then_hue = apply_color_jitter(image, [("brightness", 1.5), ("hue", 1 / 3)])
    # (255, 150, 0) turned by a third; without saturation first, red would not reach 255.
    np.testing.assert_allclose(brighter_then_hue[0, 0].astype(int), (0, 255, 150), atol=1)


def test_nothing_drawn_changes_nothing():
    image = np.random.randint(0, 255, (5, 7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(apply_color_jitter(image, []), image)


def test_draws_follow_the_recipe():
    rng = np.random.default_rng(0)
    drawn = [draw_color_jitter(rng) for _ in range(4000)]
    amounts = {name: [] for name in ("brightness", "contrast", "saturation", "hue")}
    for name, amount in (operation for operations in drawn for operation in operations):
        amounts[name].append(amount)
    ranges = {
        "brightness": (1 - 32 / 255, 1 + 32 / 255),
        "contrast": (0.5, 1.5),
        "saturation": (0.5, 1.5),
        "hue": (-0.05, 0.05),
    }
    for name, (low, high) in ranges.items():
        # Probability 0.5: standard deviation 32 around 2000.
        assert 1850 < len(amounts[name]) < 2150
        margin = (high - low) / 100
        assert low <= min(amounts[name]) < low + margin
        assert high - margin < max(amounts[name]) <= high

    full = [tuple(name for name, _ in operations) for operations in drawn if len(operations) == 4]
    orders = {
        ("brightness", "contrast", "saturation", "hue"),
        ("brightness", "saturation", "hue", "contrast"),
    }
    # 1/16 of the draws have all four, half of them in each order: 125 +- 11.
    assert set(full) == orders
    assert all(80 < full.count(order) < 170 for order in orders)
