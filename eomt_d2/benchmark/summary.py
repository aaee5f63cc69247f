"""From measured times to what a report says about a model."""

from collections.abc import Mapping, Sequence
from typing import Any

from .spread import paired_ratios, quantiles

__all__ = ["Summary", "summarize"]

Turns = Sequence[Mapping[str, float]]
Summary = dict[str, Any]
"""Plain values that JSON can hold."""


def summarize(
    turns: Turns,
    first: Turns | None,
    *,
    images: int,
    flops: float,
    phase: str,
    matmul_rate: float,
) -> Summary:
    """Quantiles, ratios and rates of one model at one point.

    Args:
        turns: its times by phase in each measured turn, in seconds.
        first: those of the first model in the same turns; None for the first model itself.
        images: that a step takes.
        flops: floating-point operations of a step, twice its multiply-accumulates.
        phase: which phase does them.
        matmul_rate: FLOP/s that the machine reaches in a matrix product.

    Returns:
        ``images``; ``seconds``, the times by phase; ``times``, their quantiles;
        ``images_per_second`` by phase, at the median; ``ratios`` by phase, the quantiles of its
        time over the first model's in the same turn, or None; ``flops_per_second`` at the phase's
        median, and ``matmul_share``, its ratio to ``matmul_rate``.
    """
    seconds = {name: [turn[name] for turn in turns] for name in turns[0]}
    times = {name: quantiles(values) for name, values in seconds.items()}
    ratios = None
    if first is not None:
        ratios = {
            name: paired_ratios(values, [turn[name] for turn in first])._asdict()
            for name, values in seconds.items()
            if name in first[0]
        }
    rate = flops / times[phase].median
    return {
        "images": images,
        "seconds": seconds,
        "times": {name: spread._asdict() for name, spread in times.items()},
        "images_per_second": {name: images / spread.median for name, spread in times.items()},
        "ratios": ratios,
        "flops_per_second": rate,
        "matmul_share": rate / matmul_rate,
    }
