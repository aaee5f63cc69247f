"""The files of a benchmark: JSON, Markdown and pictures, written as results come in."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

from eomt_d2.checkpoint.atomic_file import AtomicFile
from eomt_d2.errors import UserError

from .machine import describe_machine
from .plan import Settings
from .plots import plot_bars, plot_curves, varied
from .tables import markdown

__all__ = ["make_folder", "new_report", "write_pictures", "write_report"]

Report = dict[str, Any]


def new_report(settings: Settings, command: Sequence[str]) -> Report:
    """A report without results: ``machine``, ``settings``, ``results``, an empty list."""
    return {
        "machine": describe_machine(settings.device, command),
        "settings": dataclasses.asdict(settings),
        "results": [],
    }


def make_folder(folder: str) -> None:
    """Make sure that results can be written, before they are measured.

    Raises:
        UserError: if the folder cannot be made or written to.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with AtomicFile(os.path.join(folder, "benchmark.json")) as file:
            file.write(b"{}\n")
    except OSError as error:
        raise UserError(
            f"--output {folder} cannot be written to ({error.strerror}); choose another folder."
        ) from error


def write_report(report: Report, folder: str) -> None:
    """Write ``benchmark.json`` and ``benchmark.md`` of what has been measured so far."""
    for name, text in (
        ("benchmark.json", json.dumps(report, indent=1)),
        ("benchmark.md", markdown(report)),
    ):
        with AtomicFile(os.path.join(folder, name)) as file:
            file.write(text.encode())


def write_pictures(report: Report, folder: str) -> list[str]:
    """Write ``benchmark.png``, and ``curve_<what>.png`` for each thing that was varied.

    Returns:
        The paths of the pictures; none if nothing was measured.
    """
    measured = [
        result
        for result in report["results"]
        if any(not model["failure"] for model in result["models"])
    ]
    if not measured:
        return []
    report = {**report, "results": measured}
    paths = [os.path.join(folder, "benchmark.png")]
    plot_bars(report, paths[0])
    for axis in varied(report):
        paths.append(os.path.join(folder, f"curve_{axis.key}.png"))
        plot_curves(report, axis, paths[-1])
    return paths
