"""A benchmark's results as pictures: phases as bars, and curves over what was varied."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .tables import milliseconds, phase_title, point_title

__all__ = ["Axis", "plot_bars", "plot_curves", "varied"]

Report = Mapping[str, Any]
_STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
_PHASE_COLOURS = ("#9aa5b1", "#2b6cb0", "#dd6b20", "#6b46c1")
_MODEL_COLOURS = ("#2b6cb0", "#dd6b20", "#2f855a", "#6b46c1", "#b83280", "#718096")


class Axis(NamedTuple):
    """What curves are drawn over.

    Attributes:
        key: of a point; also in the file's name.
        label: for the x axis.
    """

    key: str
    label: str


_AXES = (
    Axis("size", "side of the input, pixels"),
    Axis("queries", "queries"),
    Axis("batch", "batch, images"),
    Axis("original_size", "original image, megapixels"),
)


def varied(report: Report) -> list[Axis]:
    """The axes that the report's points have more than one value on."""
    points = [result["point"] for result in report["results"]]
    return [axis for axis in _AXES if len({_hashable(p[axis.key]) for p in points}) > 1]


def plot_bars(report: Report, output: str) -> None:
    """One bar per point and model, its phases one after the other, p10 to p90 of all as a line.

    Args:
        report: see :func:`~eomt_d2.benchmark.report.new_report`.
        output: PNG to write.
    """
    results = [r for r in report["results"] if any("times" in m for m in r["models"])]
    bars = sum(len(result["models"]) for result in results)
    with matplotlib.rc_context(_STYLE):
        height = 1.3 + 0.34 * bars + 0.45 * len(results)
        figure = Figure(figsize=(9, height), layout="constrained")
        axes = figure.subplots()
        position, ticks, labels = 0.0, [], []
        longest = max((_p90(m) for r in results for m in r["models"]), default=0)
        for result in results:
            axes.text(0, position - 0.2, point_title(result["point"]), weight="bold", va="bottom")
            position += 0.45
            for model in result["models"]:
                ticks.append(position)
                labels.append(model["name"])
                _bar(axes, model, position, longest)
                position += 1
            position += 0.55
        axes.set_yticks(ticks, labels)
        axes.set_ylim(position - 0.6, -0.9)
        axes.set_xlim(0, longest * 1.18 or 1)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.set_xlabel(
            "ms, median; line: p10 to p90 of the whole; in brackets: ratio to the first"
        )
        phases = _phases(results)
        handles = [matplotlib.patches.Patch(color=_phase_colour(p, phases)) for p in phases]
        figure.legend(handles, phases, loc="outside upper center", ncols=len(phases), frameon=False)
        figure.savefig(output, dpi=120)


def plot_curves(report: Report, axis: Axis, output: str) -> None:
    """Times, arithmetic and memory over one axis, at the first value of every other axis.

    Beside the measured times: what they would be if they grew as the multiply-accumulates do.

    Args:
        report: see :func:`~eomt_d2.benchmark.report.new_report`.
        axis: one of :func:`varied`.
        output: PNG to write.
    """
    mode = report["settings"]["mode"]
    results = _along(report["results"], axis)
    names = list(dict.fromkeys(m["name"] for r in results for m in r["models"]))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(13, 5.2), layout="constrained")
        times, arithmetic, memory = figure.subplots(1, 3)
        for name, colour in zip(names, _MODEL_COLOURS * len(names), strict=False):
            curve = [
                (_x(r["point"], axis), m)
                for r in results
                for m in r["models"]
                if m["name"] == name and not m["failure"]
            ]
            if curve:
                _draw_times(times, curve, name, colour, mode)
                if "transformers" != curve[0][1]["implementation"]:
                    _draw_arithmetic(arithmetic, curve, name, colour, above=name == names[0])
                _draw_memory(memory, curve, name, colour)
        times.set(title="time of a batch", ylabel="ms")
        arithmetic.set(title=_ARITHMETIC[mode], ylabel="GMACs per image")
        memory.set(title="peak memory of tensors", ylabel="MiB")
        for axes in (times, arithmetic, memory):
            axes.set(xlabel=axis.label)
            axes.margins(y=0.12)
            axes.autoscale()
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(
                    fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16)
                )
        figure.suptitle(point_title(results[0]["point"], without=axis.key))
        figure.savefig(output, dpi=120)


_ARITHMETIC = {"infer": "arithmetic of the network", "train": "arithmetic of the forward pass"}

Curve = Sequence[tuple[float, Mapping[str, Any]]]
"""x and what was measured of one model there."""


def _along(results: Sequence[Report], axis: Axis) -> list[Report]:
    """The points that share the first point's values on all other axes, in order of the axis."""
    first = results[0]["point"]
    chosen = [
        result
        for result in results
        if all(result["point"][key] == first[key] for key in first if key != axis.key)
    ]
    return sorted(chosen, key=lambda result: _x(result["point"], axis))


def _x(point: Mapping[str, Any], axis: Axis) -> float:
    value = point[axis.key]
    return value[0] * value[1] / 1e6 if axis.key == "original_size" else value


def _draw_times(axes: Axes, curve: Curve, name: str, colour: str, mode: str) -> None:
    x = [x for x, _ in curve]
    phases = {"infer": {"network": "-", "total": "--"}, "train": {"total": "-"}}[mode]
    for phase, line in phases.items():
        median, low, high = (
            [1e3 * model["times"][phase][key] for _, model in curve]
            for key in ("median", "p10", "p90")
        )
        label = f"{name}, {phase_title(phase, mode)}"
        axes.plot(x, median, line, marker="o", markersize=3.5, color=colour, label=label)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    phase = next(iter(phases))
    work = [model["macs"] * model["images"] for _, model in curve]
    start = 1e3 * curve[0][1]["times"][phase]["median"]
    grown = [start * macs / work[0] for macs in work]
    axes.plot(x, grown, ":", color=colour, label=f"{name}, if it grew as its GMACs")


def _draw_arithmetic(axes: Axes, curve: Curve, name: str, colour: str, above: bool) -> None:
    x = [x for x, _ in curve]
    for key, line, what in (
        ("macs", "-", "all"),
        ("attention_macs", "--", "products of the ViT's attention"),
    ):
        values = [model[key] / 1e9 for _, model in curve]
        axes.plot(
            x, values, line, marker="o", markersize=3.5, color=colour, label=f"{name}, {what}"
        )
    for where, model in curve:
        share = 100 * model["attention_macs"] / model["macs"]
        axes.annotate(
            f"{share:.0f} %",
            (where, model["attention_macs"] / 1e9),
            (0, 5 if above else -5),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=7,
            color=colour,
        )


def _draw_memory(axes: Axes, curve: Curve, name: str, colour: str) -> None:
    points = [(x, m["peak_bytes"] / 2**20) for x, m in curve if m["peak_bytes"] is not None]
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, color=colour, label=name)


def _bar(axes: Axes, model: Mapping[str, Any], position: float, longest: float) -> None:
    if model["failure"]:
        axes.text(longest * 0.005, position, model["failure"], va="center", style="italic")
        return
    start, times = 0.0, model["times"]
    for phase, spread in times.items():
        if phase == "total":
            continue
        width = 1e3 * spread["median"]
        colour = _phase_colour(phase, list(times))
        axes.barh(position, width, 0.72, left=start, color=colour)
        start += width
    total = {key: 1e3 * value for key, value in times["total"].items()}
    axes.plot([total["p10"], total["p90"]], [position, position], color="black", linewidth=1.2)
    words = milliseconds(times["total"]["median"])
    if model["ratios"]:
        words += f" ({model['ratios']['total']['median']:.2f} x)"
    end = max(start, total["p90"]) + 0.01 * longest
    axes.text(end, position, words, va="center", fontsize=8)


def _p90(model: Mapping[str, Any]) -> float:
    return 0.0 if model["failure"] else 1e3 * model["times"]["total"]["p90"]


def _phases(results: Sequence[Report]) -> list[str]:
    phases = (p for r in results for m in r["models"] if not m["failure"] for p in m["times"])
    return [phase for phase in dict.fromkeys(phases) if phase != "total"]


def _phase_colour(phase: str, phases: Sequence[str]) -> str:
    return _PHASE_COLOURS[list(phases).index(phase) % len(_PHASE_COLOURS)]


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
