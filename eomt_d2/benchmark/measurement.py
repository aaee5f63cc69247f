"""Measure several models by turns at one point of the grid."""

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from eomt_d2.errors import UserError

from .building import build_step
from .costs import network_costs
from .machine import MatrixProduct
from .memory import peak_memory, tensors_of
from .plan import CUDA_GRAPH_MODES, Model, Point, Settings, at_point, precision_of
from .steps import InferenceStep, TrainingStep
from .summary import summarize
from .timing import TOTAL, Stopwatch, by_turns, timed
from .transformers_eomt import agreeing_pixels

__all__ = ["OUT_OF_MEMORY", "Result", "check", "is_out_of_memory", "measure"]

Result = dict[str, Any]
"""Plain values that JSON can hold."""

OUT_OF_MEMORY = "out of memory"
_MATRIX_PRODUCT = "matrix product"
# The backward pass multiplies each matrix twice, for the gradients of both factors.
_TRAINING_FACTOR = 3


def check(models: Sequence[Model], points: Sequence[Point], settings: Settings) -> None:
    """Find mistakes before anything is measured: sizes, queries, what a network cannot do.

    Raises:
        UserError: with the first one.
    """
    settings.check()
    ours = [model for model in models if not model.transformers]
    for size, queries in dict.fromkeys((point.size, point.queries) for point in points):
        for model in ours:
            cfg = at_point(model.cfg, Point(size=size, queries=queries))
            _check_active_queries(cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES, model, settings)
            side = cfg.INPUT.IMAGE_SIZE
            training = settings.mode == "train"
            network_costs(cfg, side, side, masked=settings.masked, training=training)


def measure(models: Sequence[Model], point: Point, settings: Settings) -> Result:
    """Build all models, warm them up, and time them by turns.

    A model that does not fit into memory says so, and the others are measured without it.

    Args:
        models: the first one is what the others are compared with.
        point: where.
        settings: how.

    Returns:
        ``point``; ``matmul``, the precision, side and rate (``flops_per_second``) of a large matrix
        product; ``models``, for each its name and either ``failure``, or what
        :func:`~eomt_d2.benchmark.summary.summarize` says and

        * ``input``: (N, 3, H, W), what the network is given; N may be windows;
        * ``parameters``; ``macs`` and ``attention_macs``, those of one image, see
          :class:`~eomt_d2.benchmark.costs.Costs`; in training those of the forward pass;
        * ``peak_bytes``: see :func:`~eomt_d2.benchmark.memory.peak_memory`; None if not measured;
        * ``agreement``: of transformers' network with ours (None for others), see
          :func:`~eomt_d2.benchmark.transformers_eomt.compare_networks`, and in inference
          ``pixels``, see :func:`~eomt_d2.benchmark.transformers_eomt.agreeing_pixels`.

    Raises:
        UserError: if a model refuses a value, or transformers' network is another one.
    """
    results = {model.name: _identity(model) for model in models}
    steps = _warm_steps(models, point, settings, results)
    precision = precision_of(models[0].cfg)
    product = MatrixProduct(settings.device, precision)
    times = _times({**steps, _MATRIX_PRODUCT: product}, settings)
    rate = _rate(product, times)
    for model in models:
        result = results[model.name]
        if model.name not in steps:
            continue
        if not times:
            result["failure"] = OUT_OF_MEMORY
            continue
        first = None if model is models[0] else times.get(models[0].name)
        result |= _costs_and_times(model, point, settings, steps[model.name], times, first, rate)
    return {
        "point": point._asdict(),
        "matmul": {"precision": precision, "side": product.side, "flops_per_second": rate},
        "models": list(results.values()),
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch or Python ran out of memory, on a GPU or a CPU."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    # The words of PyTorch's allocator on a CPU.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _identity(model: Model) -> Result:
    return {
        "name": model.name,
        "config": model.config_file,
        "implementation": "transformers" if model.transformers else "eomt_d2",
        "failure": None,
        "agreement": None,
    }


def _warm_steps(
    models: Sequence[Model], point: Point, settings: Settings, results: Mapping[str, Result]
) -> dict[str, Any]:
    """What can be measured, after it has run; peaks, agreements and failures go to ``results``."""
    steps: dict[str, Any] = {}
    before = None
    for model in models:
        try:
            before = _warm_step(model, point, settings, results[model.name], before)
            steps[model.name] = before
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            results[model.name]["failure"] = OUT_OF_MEMORY
            before = None
        _collect(settings)
    return steps


def _warm_step(
    model: Model, point: Point, settings: Settings, result: Result, before: Any
) -> InferenceStep | TrainingStep:
    """``before`` is the step of the model that comes before this one, of transformers' ours."""
    step, agreement = build_step(model, point, settings)
    for _ in range(settings.warmup):
        timed(step, settings.device)
    result["peak_bytes"] = _peak_bytes(step, settings)
    if agreement is not None:
        result["agreement"] = agreement._asdict()
        if isinstance(step, InferenceStep) and before is not None:
            watch = Stopwatch(settings.device)
            result["agreement"]["pixels"] = agreeing_pixels(before(watch), step(watch))
    return step


def _peak_bytes(step: InferenceStep | TrainingStep, settings: Settings) -> int | None:
    if settings.device == "cuda" and settings.compile in CUDA_GRAPH_MODES:
        return None  # CUDA graphs keep memory that the allocator does not count
    resident = tensors_of(step.model) + tensors_of(step.inputs)
    if isinstance(step, TrainingStep):
        resident += tensors_of(step.optimizer)
        for parameter in step.model.parameters():
            parameter.grad = None
    return peak_memory(lambda: step(Stopwatch(settings.device)), settings.device, resident)


def _times(steps: Mapping, settings: Settings) -> dict[str, list[dict[str, float]]]:
    try:
        return by_turns(steps, settings.device, settings.repeats, warmup=1)
    except (RuntimeError, MemoryError) as error:
        # Each fitted by itself, but not beside the others; which of them it is does not matter.
        if not is_out_of_memory(error):
            raise
        return {}


def _rate(product: MatrixProduct, times: Mapping[str, list[dict[str, float]]]) -> float | None:
    if not times:
        return None
    own = sorted(turn[TOTAL] for turn in times[_MATRIX_PRODUCT])
    return product.flops / own[len(own) // 2]


def _costs_and_times(
    model: Model, point: Point, settings: Settings, step: Any, times: Any, first: Any, rate: Any
) -> Result:
    cfg = at_point(model.cfg, point)
    training = settings.mode == "train"
    side = cfg.INPUT.IMAGE_SIZE
    shape = (point.batch, 3, side, side) if training else tuple(step.network_input)
    costs = network_costs(cfg, *shape[2:], masked=settings.masked, training=training)
    macs = costs.macs * shape[0] // point.batch
    factor = 2 * (_TRAINING_FACTOR if training else 1)
    return {
        "input": list(shape),
        "masked": costs.masked,
        "parameters": costs.parameters,
        "macs": macs,
        "attention_macs": costs.attention_macs * shape[0] // point.batch,
        **summarize(
            times[model.name],
            first,
            images=point.batch,
            flops=factor * macs * point.batch,
            phase=TOTAL if training else "network",
            matmul_rate=rate,
        ),
    }


def _check_active_queries(queries: int, model: Model, settings: Settings) -> None:
    if settings.mode == "infer" and settings.active_queries > queries:
        raise UserError(
            f"--active-queries is {settings.active_queries}, but {model.name} has {queries} "
            "queries; lower it."
        )


def _collect(settings: Settings) -> None:
    """Give back the memory of what failed, or was needed for building alone."""
    gc.collect()
    if settings.device == "cuda":
        torch.cuda.empty_cache()
