"""Per-class results as text tables for the log."""

import math
from collections.abc import Iterable, Sequence

from tabulate import tabulate

__all__ = ["class_table"]


def class_table(rows: Iterable[Sequence[str | float]], columns: Sequence[str]) -> str:
    """Lay out one row per class.

    Args:
        rows: class name and then one number in [0, 100] per column; NaN means that the class does
            not occur and is shown as "-".
        columns: names of the numbers.

    Returns:
        A Markdown table.
    """
    shown = [
        [name, *("-" if math.isnan(value) else f"{value:.2f}" for value in values)]
        for name, *values in rows
    ]
    return tabulate(
        shown,
        headers=["class", *columns],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["left"] + ["right"] * len(columns),
    )
