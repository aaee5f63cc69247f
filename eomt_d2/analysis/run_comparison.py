"""Several networks, each trained with several seeds: mean and spread of their metrics."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TypedDict

from tabulate import tabulate

__all__ = ["Spread", "compare_runs", "comparison_table"]


class Spread(TypedDict):
    """One metric over the trainings of a network.

    ``deviation`` is the sample standard deviation (of n - 1); None for a single training.
    """

    mean: float
    deviation: float | None
    values: list[float]


def compare_runs(
    runs: Mapping[str, Sequence[Mapping[str, float]]], metrics: Sequence[str]
) -> dict[str, dict[str, Spread]]:
    """Gather some metrics of the runs of several networks.

    Args:
        runs: the metrics of each run by network, at least one run each.
        metrics: which of these metrics.

    Returns:
        Spreads by network and metric, ready for JSON.
    """
    return {
        network: {metric: _spread([run[metric] for run in of_network]) for metric in metrics}
        for network, of_network in runs.items()
    }


def _spread(values: list[float]) -> Spread:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), deviation=deviation, values=values)


def comparison_table(
    comparison: Mapping[str, Mapping[str, Spread]], formats: Mapping[str, str]
) -> str:
    """Lay out one row per network, "mean ± deviation" in each column.

    Args:
        comparison: see :func:`compare_runs`.
        formats: of the numbers, by metric, for instance ``{"PQ": "{:.1f}"}``. The deviation is
            left out where there is none or the values do not differ.

    Returns:
        A Markdown table.
    """
    rows = [
        [network, *(_cell(spreads[metric], form) for metric, form in formats.items())]
        for network, spreads in comparison.items()
    ]
    return tabulate(
        rows,
        headers=["network", *(metric.replace("_", " ") for metric in formats)],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["left"] + ["right"] * len(formats),
    )


def _cell(spread: Spread, form: str) -> str:
    mean = form.format(spread["mean"])
    return f"{mean} ± {form.format(spread['deviation'])}" if spread["deviation"] else mean
