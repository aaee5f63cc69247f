"""Faults as a table of text."""

import os
import shutil
import textwrap
from collections.abc import Sequence

from eomt_d2.data.datasets.faults import Fault

__all__ = ["faults_table"]

_HEADINGS = ("", "file", "what is wrong", "what to do")


def faults_table(faults: Sequence[Fault], width: int | None = None) -> str:
    """One row per fault: severity, file, what is wrong, what to do.

    Args:
        width: of the table, in characters; None: the terminal's, at least 100.
    """
    rows = [_HEADINGS, *(_row(fault) for fault in faults)]
    width = width or max(100, shutil.get_terminal_size((140, 24)).columns)
    free = width - len("warning") - 3 * len("  ")
    file_width = min(max(len(row[1]) for row in rows), free // 3)
    advice_width = min(max(len(row[3]) for row in rows), free // 4)
    widths = (len("warning"), file_width, free - file_width - advice_width, advice_width)
    lines = []
    for number, row in enumerate(rows):
        cells = [textwrap.wrap(cell, size) or [""] for cell, size in zip(row, widths, strict=True)]
        for i in range(max(map(len, cells))):
            parts = (cell[i] if i < len(cell) else "" for cell in cells)
            line = "  ".join(part.ljust(size) for part, size in zip(parts, widths, strict=True))
            lines.append(line.rstrip())
        if number == 0:
            lines.append("  ".join("-" * size for size in widths))
    return "\n".join(lines)


def _row(fault: Fault) -> tuple[str, str, str, str]:
    # A message says what to do after its last semicolon; the file has a column of its own.
    reason, _, advice = fault.message.rpartition("; ")
    if not reason:
        reason, advice = advice, ""
    reason = reason.replace(fault.file, os.path.basename(fault.file) or fault.file)
    return fault.severity, fault.file, reason, advice.rstrip(".")
