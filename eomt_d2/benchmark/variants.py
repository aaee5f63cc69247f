"""Another way to compute a network's prediction, beside the plain one: cost, time and quality."""

import argparse
import logging
import statistics
from collections.abc import Callable, Mapping
from types import MethodType

import torch
from detectron2.config import CfgNode
from torch import Tensor

from eomt_d2.analysis import count_macs
from eomt_d2.checkpoint import Checkpointer
from eomt_d2.engine import Trainer, set_up
from eomt_d2.modeling import MaskClassificationModel
from eomt_d2.modeling.structures import MaskPrediction

from .timing import TOTAL, by_turns

__all__ = ["compare_costs", "compare_quality", "load_finished_model"]

PLAIN = "plain"

Predict = Callable[[Tensor], list[MaskPrediction]]

_HEADLINES = (("panoptic_seg", "PQ"), ("segm", "AP"), ("sem_seg", "mIoU"))


def load_finished_model(
    config_file: str, opts: list[str], *, with_weights: bool
) -> tuple[CfgNode, MaskClassificationModel]:
    """Build a config's model as it is after training, in evaluation mode.

    Args:
        config_file: of a model that classifies masks.
        opts: config keys and values.
        with_weights: load MODEL.WEIGHTS; otherwise the weights are random and masked attention,
            which training would have annealed away, is off.

    Raises:
        UserError: as :func:`~eomt_d2.engine.set_up` and the checkpointer raise it.
    """
    cfg = set_up(argparse.Namespace(config_file=config_file, opts=opts, eval_only=True))
    model = Trainer.build_model(cfg).eval()
    annealing = getattr(model, "mask_annealing", None)
    if with_weights:
        Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    elif annealing is not None:
        annealing.set_probs([0.0] * annealing.num_blocks)
    return cfg, model


def compare_costs(
    model: MaskClassificationModel, variants: Mapping[str, Predict], repeats: int
) -> str:
    """Time the plain network and its variants by turns on one random image.

    Args:
        model: in evaluation mode; its ``predict`` is the plain network.
        variants: by name; each takes normalised images (1, 3, S, S), S being ``image_size``.
        repeats: turns that are measured, after two that are not.

    Returns:
        A Markdown table: GMAC, median milliseconds, times as fast as the plain network (median
        over the turns), and the largest difference of a mask logit over the largest plain one.
    """
    side = model.image_size
    images = torch.randn(1, 3, side, side, device=model.device)
    predicts = {PLAIN: model.predict, **variants}
    with torch.no_grad():
        macs = {
            n: sum(count_macs(model, lambda p=p: p(images)).values()) for n, p in predicts.items()
        }
        masks = {name: predict(images)[-1].mask_logits for name, predict in predicts.items()}
        steps = {
            name: lambda _, predict=predict: predict(images) for name, predict in predicts.items()
        }
        times = by_turns(steps, model.device.type, repeats, warmup=2)
    seconds = {name: [turn[TOTAL] for turn in turns] for name, turns in times.items()}
    lines = [
        "| network | GMAC | ms | times as fast | difference of mask logits |",
        "|---|---|---|---|---|",
    ]
    for name in predicts:
        ratios = [a / b for a, b in zip(seconds[PLAIN], seconds[name], strict=True)]
        difference = (masks[name] - masks[PLAIN]).abs().max() / masks[PLAIN].abs().max()
        lines.append(
            f"| {name} | {macs[name] / 1e9:.1f} | {statistics.median(seconds[name]) * 1e3:.1f} | "
            f"{statistics.median(ratios):.2f} | {difference:.2g} |"
        )
    return "\n".join(lines)


def compare_quality(
    cfg: CfgNode, model: MaskClassificationModel, variants: Mapping[str, Predict]
) -> str:
    """Evaluate a trained model and its variants on DATASETS.TEST, with a single data set in it.

    Returns:
        A Markdown table of PQ, AP and mIoU, as far as the data set and the model have them.
    """
    plain, results = model.predict, {}
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        for name, predict in {PLAIN: plain, **variants}.items():
            model.predict = MethodType(lambda self, images, predict=predict: predict(images), model)
            results[name] = Trainer.test(cfg, model)
    finally:
        model.compile_predict(model.compile_mode)  # as it was
        logging.disable(level)
    metrics = [(task, metric) for task, metric in _HEADLINES if task in results[PLAIN]]
    lines = [
        "| network | " + " | ".join(metric for _, metric in metrics) + " |",
        "|---" * (len(metrics) + 1) + "|",
    ]
    for name, result in results.items():
        values = " | ".join(f"{result[task][metric]:.1f}" for task, metric in metrics)
        lines.append(f"| {name} | {values} |")
    return "\n".join(lines)
