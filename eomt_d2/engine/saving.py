"""Saving checkpoints: periodically, and the best one by a metric."""

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from torch import nn

from eomt_d2.checkpoint import Checkpointer
from eomt_d2.checkpoint.numbering import numbered_name
from eomt_d2.errors import UserError

__all__ = ["BestCheckpoint", "PeriodicCheckpoint", "has_finite_weights"]

logger = logging.getLogger(__name__)


class PeriodicCheckpoint(HookBase):
    """Saves every ``period`` iterations as ``model_<iteration>.pth``, and ``model_final.pth``.

    While steps are skipped because losses or gradients are infinite or NaN, nothing is saved but
    the end, so that the last checkpoint is one from before.

    Args:
        checkpointer: writes the files.
        period: in iterations.
        keep: how many of the numbered files stay, the newest; 0: all.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, keep: int = 0):
        self._checkpointer = checkpointer
        self._period = period
        self._keep = keep

    def after_step(self) -> None:
        iteration = self.trainer.iter
        is_last = iteration + 1 == self.trainer.max_iter
        is_due = (iteration + 1) % self._period == 0 and not self.trainer.skipped_steps
        if not (is_due or is_last):
            return
        if not has_finite_weights(self._checkpointer.model):
            raise UserError(
                f"The weights are infinite or NaN after iteration {iteration}, so they are not "
                f"saved ({self.trainer.last_checkpoint_text()}); lower SOLVER.BASE_LR."
            )
        if is_due:
            name = numbered_name(iteration).removesuffix(".pth")
            self._checkpointer.save(name, iteration=iteration)
            if self._keep:
                self._checkpointer.prune(self._keep, iteration)
        if is_last:
            self._checkpointer.save("model_final", iteration=iteration)


class BestCheckpoint:
    """Keeps the weights of the evaluation with the highest value of a metric in ``model_best.pth``.

    ``model_best.json`` beside it says which value that is; a resumed training reads it there.

    Args:
        checkpointer: writes the files.
        metric: as it is logged, for example "panoptic_seg/PQ".
    """

    def __init__(self, checkpointer: Checkpointer, metric: str):
        self._checkpointer = checkpointer
        self._metric = metric
        self._best = -math.inf

    def resume(self) -> None:
        """Go on from the best value of an interrupted training."""
        note = self._checkpointer.read_text("model_best.json")
        best = json.loads(note) if note else {}
        if best.get("metric") == self._metric:
            self._best = best["value"]

    def update(self, results: Mapping[str, Any], iteration: int) -> None:
        """Save the model if it is the best until now.

        Args:
            results: of an evaluation on the main process, nested; elsewhere empty.
            iteration: after which it was.
        """
        values = flatten_results_dict(results)
        if not values:
            return
        if self._metric not in values:
            logger.warning(
                "TEST.BEST_METRIC is %r, which was not evaluated, so no model is the best; there "
                "are %s.",
                self._metric,
                ", ".join(values),
            )
            return
        value = float(values[self._metric])
        # A comparison with NaN is False.
        if value > self._best:
            self._best = value
            self._checkpointer.save_weights("model_best", iteration=iteration)
            note = {"metric": self._metric, "value": value, "iteration": iteration}
            self._checkpointer.write_text("model_best.json", json.dumps(note))


@torch.no_grad()
def has_finite_weights(model: nn.Module) -> bool:
    """Whether no parameter holds an infinite or NaN value."""
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())
