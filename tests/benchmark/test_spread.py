import pytest

from eomt_d2.benchmark.spread import paired_ratios, quantiles


def test_quantiles_between_the_values():
    """Of 0, 10, ..., 100 in any order."""
    assert quantiles([100, 0, 50, 10, 40, 20, 30, 90, 60, 80, 70]) == (50, 10, 90)


def test_quantiles_stay_inside_the_values():
    """Of two values: a tenth of the way from one to the other."""
    assert quantiles([1.0, 2.0]) == pytest.approx((1.5, 1.1, 1.9))


def test_one_value_is_all():
    assert quantiles([3.0]) == (3.0, 3.0, 3.0)


def test_ratios_are_those_of_one_turn():
    """The machine is twice as slow in the second turn; the ratio does not see it."""
    assert paired_ratios([3.0, 6.0, 3.0], [2.0, 4.0, 2.0]) == (1.5, 1.5, 1.5)


def test_ratios_of_different_turns_are_not_allowed():
    with pytest.raises(ValueError):
        paired_ratios([1.0, 2.0], [1.0])
