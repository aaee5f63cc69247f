"""The curves of a training run, from the metrics.json that Detectron2 writes."""

import json
import os
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from eomt_d2.errors import UserError

__all__ = ["plot_training", "read_scalars"]

_LOSSES = {"loss_ce": "class", "loss_mask": "mask (BCE)", "loss_dice": "dice"}


def read_scalars(metrics_file: str | os.PathLike[str]) -> dict[str, list[tuple[int, float]]]:
    """(iteration, value) pairs of every scalar in a metrics.json, one JSON object per line.

    Detectron2 appends to this file when a run is resumed or started again in the same folder; what
    the later run repeats replaces what the earlier one wrote.

    Raises:
        UserError: if the file is missing or holds something else.
    """
    path = Path(metrics_file)
    if not path.is_file():
        raise UserError(f"There is no {path}; give the OUTPUT_DIR of a training run.")
    scalars: dict[str, list[tuple[int, float]]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record = json.loads(line)
            iteration = record.pop("iteration")
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"Line {number} of {path} is no record of a training run.") from error
        for name, value in record.items():
            points = scalars.setdefault(name, [])
            while points and points[-1][0] >= iteration:
                points.pop()
            points.append((iteration, value))
    return scalars


def plot_training(metrics_file: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Draw losses, learning rates, masking probabilities and PQ over the iterations.

    Args:
        metrics_file: metrics.json of a run's OUTPUT_DIR.
        output: PNG to write.
    """
    scalars = read_scalars(metrics_file)
    figure = Figure(figsize=(11, 7), layout="constrained")
    (losses, quality), (rates, masking) = figure.subplots(2, 2, sharex=True)
    for key, label in _LOSSES.items():
        _draw(losses, scalars.get(key), label)
    losses.set(title="weighted losses of the final prediction", ylabel="loss", yscale="log")
    for key in ("PQ", "PQ_th", "PQ_st"):
        _draw(quality, scalars.get(f"panoptic_seg/{key}"), key, marker="o")
    quality.set(title="panoptic quality on held-out images", ylabel="PQ", ylim=(0, 100))
    for key in sorted(scalars):
        if key.startswith("lr/"):
            _draw(rates, scalars[key], key.removeprefix("lr/"))
        elif key.startswith("mask_annealing/"):
            _draw(masking, scalars[key], key.removeprefix("mask_annealing/"))
    rates.set(title="learning rate", xlabel="iteration")
    masking.set(title="probability that a query is masked", xlabel="iteration", ylim=(-0.05, 1.05))
    for axes in (losses, quality, rates, masking):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"font.size": 9}):
        figure.savefig(output, dpi=110)


def _draw(axes, points: list[tuple[int, float]] | None, label: str, **style) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)
