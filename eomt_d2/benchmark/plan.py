"""What to measure: settings, the grid of points, and the config of a model at a point."""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import CfgNode

from eomt_d2.engine import load_config
from eomt_d2.engine.config_validation import is_mask_classification, validate_config
from eomt_d2.errors import UserError

__all__ = [
    "CUDA_GRAPH_MODES",
    "Model",
    "Point",
    "Settings",
    "at_point",
    "grid",
    "load_models",
    "precision_of",
    "uncompiled",
]

CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class Settings:
    """How everything is measured.

    Attributes:
        mode: "infer" or "train".
        device: "cpu" or "cuda".
        precision: "float32", "bfloat16" or "float16" (autocast); None is float32, but in training
            on a GPU what the config says.
        compile: "off", or a mode of ``torch.compile``.
        against_transformers: also measure each EoMT as transformers has it.
        repeats, warmup: turns that are measured, and calls of each model before.
        active_queries: in inference, queries that have found something.
        segments: in training, segments of an image.
        masked: in inference, with masked attention in all blocks, as before annealing.
    """

    mode: str = "infer"
    device: str = "cpu"
    precision: str | None = None
    compile: str = "off"
    against_transformers: bool = False
    repeats: int = 20
    warmup: int = 3
    active_queries: int = 20
    segments: int = 12
    masked: bool = False

    def check(self) -> None:
        """Raises:
        UserError: if a number is too small, or the device cannot do what is asked for.
        """
        for option, least in (
            ("repeats", 1),
            ("warmup", 1),
            ("active_queries", 0),
            ("segments", 1),
        ):
            value = getattr(self, option)
            if value < least:
                raise UserError(
                    f"--{option.replace('_', '-')} is {value}; it must be at least {least}."
                )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device is cuda, but PyTorch finds no GPU here; add --device cpu.")
        if self.device == "cpu" and self.precision == "float16":
            raise UserError("--precision float16 needs a GPU; use bfloat16 or float32 on a CPU.")
        if self.mode == "train" and self.masked:
            raise UserError("--masked belongs to --mode infer; a training begins masked anyway.")


class Point(NamedTuple):
    """One combination of the values that are varied; None leaves what the config says.

    Attributes:
        size: INPUT.IMAGE_SIZE, the side of the input in pixels.
        batch: images.
        queries: MODEL.MASK_FORMER.NUM_OBJECT_QUERIES.
        original_size: (height, width) of the results in pixels; None in training.
    """

    size: int | None = None
    batch: int = 1
    queries: int | None = None
    original_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Model:
    """One of the models that are compared.

    Attributes:
        name: for tables, unique.
        config_file: it was read from.
        cfg: its config, frozen, before a point changes it.
        transformers: the same network as transformers has it.
    """

    name: str
    config_file: str
    cfg: CfgNode
    transformers: bool = False


def grid(
    sizes: Sequence[int | None],
    batches: Sequence[int],
    queries: Sequence[int | None],
    original_sizes: Sequence[tuple[int, int] | None],
) -> list[Point]:
    """All combinations; the last varies fastest.

    Raises:
        UserError: if a value is not positive.
    """
    for option, values in (("sizes", sizes), ("batch", batches), ("queries", queries)):
        for value in values:
            if value is not None and value < 1:
                raise UserError(f"--{option} is {value}; it must be at least 1.")
    points = itertools.product(sizes, batches, queries, original_sizes)
    return list(dict.fromkeys(Point(*values) for values in points))


def load_models(
    config_files: Sequence[str], opts: Sequence[str], settings: Settings
) -> list[Model]:
    """Read the configs; transformers' EoMT comes after the one of its config.

    Raises:
        UserError: see :func:`~eomt_d2.engine.load_config`; or if a model does not classify masks.
    """
    models: list[Model] = []
    for path in config_files:
        cfg = load_config(argparse.Namespace(config_file=path, opts=_overrides(opts, settings)))
        if not is_mask_classification(cfg):
            raise UserError(
                f"MODEL.META_ARCHITECTURE of {path} is {cfg.MODEL.META_ARCHITECTURE}; only models "
                "that classify masks can be measured (EoMT, Mask2Former)."
            )
        if settings.against_transformers:
            cfg = _panoptic_alone(cfg, path, settings)
        name = _unique(Path(path).stem, [model.name for model in models])
        models.append(Model(name, path, cfg))
        if settings.against_transformers:
            models.append(Model(f"{name} (transformers)", path, cfg, transformers=True))
    return models


def at_point(cfg: CfgNode, point: Point) -> CfgNode:
    """The config with a point's size and number of queries, frozen.

    Raises:
        UserError: if they do not suit the other values.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if point.size is not None:
        source = cfg.INPUT
        source.IMAGE_SIZE = source.MIN_SIZE_TEST = point.size
        if source.TEST_MODE != "window":
            source.MAX_SIZE_TEST = point.size
    if point.queries is not None:
        cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = point.queries
    cfg.freeze()
    validate_config(cfg)
    return cfg


def uncompiled(cfg: CfgNode) -> CfgNode:
    """The config with MODEL.COMPILE off, frozen."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.COMPILE = "off"
    cfg.freeze()
    return cfg


def _overrides(opts: Sequence[str], settings: Settings) -> list[str]:
    if len(opts) % 2:
        return list(opts)  # a mistake, which load_config reports with what was typed alone
    chosen = ["MODEL.DEVICE", settings.device]
    if settings.compile != "off":
        chosen += ["MODEL.COMPILE", settings.compile]
    precision = settings.precision
    if precision is None and (settings.mode == "infer" or settings.device == "cpu"):
        precision = "float32"
    if precision is not None:
        chosen += ["SOLVER.AMP.ENABLED", str(precision != "float32")]
        if precision != "float32":
            chosen += ["SOLVER.AMP.PRECISION", precision]
    return [*opts, *chosen]


def precision_of(cfg: CfgNode) -> str:
    """What a config of :func:`load_models` is measured in: "float32", or what it is autocast to."""
    return cfg.SOLVER.AMP.PRECISION if cfg.SOLVER.AMP.ENABLED else "float32"


def _panoptic_alone(cfg: CfgNode, path: str, settings: Settings) -> CfgNode:
    """Without the results that transformers is not asked for."""
    if settings.mode == "infer" and not cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON:
        raise UserError(
            f"--against transformers compares panoptic results, which {path} does not make; add "
            "MODEL.MASK_FORMER.TEST.PANOPTIC_ON True or choose a panoptic config."
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = False
    cfg.freeze()
    return cfg


def _unique(name: str, taken: Sequence[str]) -> str:
    if name not in taken:
        return name
    return next(
        candidate
        for candidate in (f"{name} #{i}" for i in itertools.count(2))
        if candidate not in taken
    )
