"""A benchmark's results as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from .transformers_eomt import TOLERANCE

__all__ = ["markdown", "milliseconds", "phase_title", "point_title"]

_NONE = "-"


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report as one Markdown document.

    Args:
        report: see :func:`~eomt_d2.benchmark.report.new_report`.
    """
    settings, machine = report["settings"], report["machine"]
    parts = [f"# Benchmark: {_MODES[settings['mode']]}"]
    known = {name: value for name, value in machine.items() if value is not None}
    parts.append("\n".join(f"- {name}: {_code(name, value)}" for name, value in known.items()))
    parts.append(_how(settings))
    for result in report["results"]:
        parts += _point_section(result, settings["mode"])
    return "\n\n".join(parts) + "\n"


_MODES = {"infer": "inference", "train": "training"}


def phase_title(phase: str, mode: str) -> str:
    """What a phase is called: all phases together are "end to end" or a "step"."""
    return phase if phase != "total" else {"infer": "end to end", "train": "step"}[mode]


def point_title(point: Mapping[str, Any], without: str = "") -> str:
    """A point in words; what the configs decide, and the key ``without``, is left out."""
    words = {
        "size": "{} pixels",
        "batch": "batch {}",
        "queries": "{} queries",
        "original_size": "original {0[0]} x {0[1]}",
    }
    return ", ".join(
        form.format(point[key])
        for key, form in words.items()
        if key != without and point[key] is not None
    )


def _how(settings: Mapping[str, Any]) -> str:
    sentences = [
        f"{settings['repeats']} turns of all models one after the other, after "
        f"{settings['warmup']} calls of each; compile {settings['compile']}.",
        "GMACs are counted per image (a GMAC is 10^9 multiply-accumulates); FLOP/s are twice "
        "that, and their share is that of the rate of one large matrix product, measured in the "
        "same turns.",
    ]
    if settings["mode"] == "infer":
        sentences.append(
            f"{settings['active_queries']} queries are sure of a class and own a region, in a "
            "made-up scene that takes the place of every network's predictions. "
            "preparation: padding and normalisation of uint8 images on the device; network: "
            "predict; post-processing: to results of the original size; end to end: all of it."
        )
    else:
        sentences.append(
            f"{settings['segments']} segments per image; GMACs are those of the forward pass with "
            "masked attention and all predictions, FLOP/s three times that for forward and "
            "backward. loss: matching included; optimizer: clipping, update and metrics."
        )
    where = {
        "cuda": "as PyTorch's allocator counts them",
        "cpu": "as PyTorch's profiler lists their allocations (not the libraries' own memory)",
    }[settings["device"]]
    sentences.append(
        f"Peak memory: the tensors of one model's step with its weights, {where}."
        " Ratios: time over the first model's in the same turn."
    )
    return "\n".join(sentences)


def _point_section(result: Mapping[str, Any], mode: str) -> list[str]:
    rate, precision = result["matmul"]["flops_per_second"], result["matmul"]["precision"]
    side = result["matmul"]["side"]
    unit, scale = ("TFLOP/s", 1e12) if (rate or 0) > 1e12 else ("GFLOP/s", 1e9)
    product = _NONE if rate is None else f"{rate / scale:.3g} {unit}"
    parts = [
        f"## {point_title(result['point'])}",
        f"{precision}; matrix product of {side} x {side}: {product}",
        _table(
            [_cost_row(model, scale) for model in result["models"]],
            ["model", "input", "parameters, M", "GMACs", "of attention", "images/s", unit,
             "of matmul", "peak memory, MiB"],
        ),
    ]  # fmt: skip
    rows = [row for model in result["models"] for row in _time_rows(model, mode)]
    if rows:
        columns = ["model", "phase", "ms, median", "p10", "p90", "ratio, median", "p10", "p90"]
        parts.append(_table(rows, columns, left=2))
    for model in result["models"]:
        if model.get("agreement"):
            parts.append(_agreement(model["name"], model["agreement"]))
    return parts


def _agreement(name: str, agreement: Mapping[str, float]) -> str:
    words = (
        f"{name}: in float32, mask logits differ from ours by at most "
        f"{agreement['mask_logits']:.1e} of the largest, class logits by "
        f"{agreement['class_logits']:.1e} (allowed: {TOLERANCE:.0e})"
    )
    if "pixels" in agreement:
        words += f"; {100 * agreement['pixels']:.2f} % of the pixels of the result have our class"
    return words + "."


def _cost_row(model: Mapping[str, Any], scale: float) -> list[str]:
    if model["failure"]:
        return [model["name"], model["failure"], *[_NONE] * 7]
    macs, peak = model["macs"], model["peak_bytes"]
    return [
        model["name"],
        " x ".join(map(str, model["input"])),
        f"{model['parameters'] / 1e6:.1f}",
        f"{macs / 1e9:.4g}",
        f"{100 * model['attention_macs'] / macs:.1f} %",
        f"{model['images_per_second']['total']:.4g}",
        f"{model['flops_per_second'] / scale:.3g}",
        f"{100 * model['matmul_share']:.0f} %",
        "not measured" if peak is None else f"{peak / 2**20:.0f}",
    ]


def _time_rows(model: Mapping[str, Any], mode: str) -> list[list[str]]:
    if model["failure"]:
        return []
    rows = []
    for phase, times in model["times"].items():
        row = [model["name"], phase_title(phase, mode)]
        row += [milliseconds(times[key]) for key in ("median", "p10", "p90")]
        ratio = (model["ratios"] or {}).get(phase)
        keys = ("median", "p10", "p90")
        rows.append([*row, *(f"{ratio[key]:.2f}" if ratio else _NONE for key in keys)])
    return rows


def milliseconds(seconds: float) -> str:
    """Four digits, without an exponent."""
    return f"{1e3 * seconds:.4g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def _code(name: str, value: object) -> str:
    return f"`{value}`" if name in ("command", "commit") else str(value)


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str], left: int = 1) -> str:
    align = ["left"] * left + ["right"] * (len(headers) - left)
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=align)
