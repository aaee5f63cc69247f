"""Median and spread of repeated measurements."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Quantiles", "paired_ratios", "quantiles"]


class Quantiles(NamedTuple):
    """Of a set of numbers: a tenth of them is below ``p10``, a tenth above ``p90``."""

    median: float
    p10: float
    p90: float


def quantiles(values: Sequence[float]) -> Quantiles:
    """Median, 10th and 90th percentile, interpolated between the values; one value is all three."""
    if len(values) == 1:
        return Quantiles(values[0], values[0], values[0])
    low, *_, high = statistics.quantiles(values, n=10, method="inclusive")
    return Quantiles(statistics.median(values), low, high)


def paired_ratios(values: Sequence[float], base: Sequence[float]) -> Quantiles:
    """Quantiles of ``values[i] / base[i]``, where both were measured in the same turn i."""
    return quantiles([value / first for value, first in zip(values, base, strict=True)])
