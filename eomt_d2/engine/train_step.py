"""One optimisation step: forward, backward, clipping, update; in one or several parts, with or
without mixed precision."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from eomt_d2.data.seeding import Stream, seed_globals
from eomt_d2.errors import UserError
from eomt_d2.solver.clipping import GradientClipper

from .step_report import NonFiniteError, StepReport, gather_reports, write_metrics

__all__ = ["PRECISIONS", "TrainStep"]

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TrainStep(SimpleTrainer):
    """Runs one iteration, as Detectron2's ``SimpleTrainer`` and ``AMPTrainer`` do, and clips.

    Gradients are clipped here and not inside the optimizer, because under loss scaling they must
    be unscaled first, and a fused optimizer would only unscale them inside its own ``step``.
    A step whose loss or gradient is infinite or NaN, as that of scaled gradients sometimes is,
    leaves the parameters alone; to the schedules it is an iteration like any other. Too many such
    steps in a row end the training.

    With a seed, the random numbers of an iteration depend on the seed, the iteration and the rank
    only, so neither evaluations in between nor an interruption change them.

    With accumulation a batch runs through the model in equal parts, and their gradients add up. A
    model that has a method ``loss_normalizers(batch)`` (see
    :meth:`~eomt_d2.modeling.mask_classification.MaskClassificationModel.loss_normalizers`) is asked
    once for those of the whole batch and gets them as ``model(part, normalizers)``, so losses and
    gradients are those of the whole batch. Any other model's losses count as means over a part's
    images, and the mean over the parts is taken.

    Args:
        model: returns a dict of scalar losses in training mode.
        data_loader: endless iterable of batches, each all that this process has of one effective
            batch.
        optimizer: over the model's parameters.
        clip_gradients: see :func:`~eomt_d2.solver.clipping.build_gradient_clipper`.
        precision: "float32"; "bfloat16" (autocast); "float16" (autocast and loss scaling, CUDA
            only).
        accumulation_steps: parts that a batch is cut into.
        max_skipped_steps: how many steps in a row may be skipped, at least 1.
        received_signal: the signal that asked this process to end, or 0; read in every iteration.

    Attributes:
        seed: of the training; None: nothing is seeded.
        agreed_signal: the signal, or 0, that all processes know of after an iteration.
        is_updating: whether parameters and optimizer may be between two states.
        skipped_steps: the number of steps in a row that were skipped until now.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict]],
        optimizer: torch.optim.Optimizer,
        *,
        clip_gradients: GradientClipper,
        precision: str = "float32",
        accumulation_steps: int = 1,
        max_skipped_steps: int = 20,
        received_signal: Callable[[], int] = int,
    ):
        # Detectron2 0.6 would start the loader's workers here, before it is known where the
        # training starts.
        super().__init__(model, (), optimizer)
        self.data_loader = data_loader
        self._batches: Iterator[list[dict]] | None = None
        self._clip_gradients = clip_gradients
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._accumulation_steps = accumulation_steps
        self._max_skipped_steps = max_skipped_steps
        self.skipped_steps = 0
        self._received_signal = received_signal
        self.seed: int | None = None
        self.agreed_signal = 0
        self.is_updating = False
        self._autocast_dtype = PRECISIONS[precision]
        self._device_type = self._parameters[0].device.type
        # Disabled, it passes losses and gradients through unchanged.
        self.grad_scaler = torch.amp.GradScaler(self._device_type, enabled=precision == "float16")

    def run_step(self) -> None:
        """One iteration.

        Raises:
            NonFiniteError: on every rank, after too many skipped steps in a row.
            UserError: if the batch cannot be cut into equal parts.
        """
        if not self.model.training:
            raise RuntimeError("The model was left in evaluation mode.")
        start = time.perf_counter()
        if self._batches is None:
            self._batches = iter(self.data_loader)
        batch = next(self._batches)
        data_time = time.perf_counter() - start

        # After the loading, which draws too if there are no workers.
        if self.seed is not None:
            seed_globals(Stream.ITERATION, self.seed, self.iter, comm.get_rank())
        self.optimizer.zero_grad(set_to_none=True)
        if self._accumulation_steps == 1:
            losses = self._backward(batch)
        else:
            losses = self._accumulate(_equal_parts(batch, self._accumulation_steps))
        self.grad_scaler.unscale_(self.optimizer)
        grad_norm = self._clip_gradients(self._parameters)

        reports = gather_reports(losses, grad_norm, data_time, self._received_signal())
        self.agreed_signal = max(report.signal for report in reports)
        write_metrics(list(losses), reports)
        is_finite = all(report.is_finite for report in reports)
        self.is_updating = True
        if is_finite:
            self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self.is_updating = False
        if is_finite:
            self.skipped_steps = 0
        else:
            self._note_skipped_step(reports, batch)

    def end_workers(self) -> None:
        """End the loader's processes, before they end by themselves and that is an error."""
        self._batches = None

    def _note_skipped_step(self, reports: Sequence[StepReport], batch: list[dict]) -> None:
        self.skipped_steps += 1
        is_last = self.skipped_steps >= self._max_skipped_steps
        loss_is_finite = all(report.loss_is_finite for report in reports)
        # Loss scaling looks for the largest scale without overflow, so those are nothing to tell.
        is_expected = self.grad_scaler.is_enabled() and loss_is_finite
        if not is_last and (is_expected or self.skipped_steps > 1):
            return
        # All ranks come here together, because all have the same reports.
        files = [str(sample.get("file_name", "an image without a file")) for sample in batch]
        by_rank = comm.all_gather(files)
        bad = [
            file
            for report, files in zip(reports, by_rank, strict=True)
            if loss_is_finite or not report.loss_is_finite
            for file in files
        ]
        what = "gradient" if loss_is_finite else "loss"
        if is_last:
            raise NonFiniteError(what, self.iter, self.skipped_steps, bad)
        logger.warning(
            "The %s is infinite or NaN at iteration %d, whose update is skipped; its images: %s.",
            what,
            self.iter,
            ", ".join(bad),
        )

    def _backward(self, *inputs: Any, weight: float = 1.0) -> dict[str, Tensor]:
        """Add the gradient of the weighted losses of some inputs; give these losses, detached."""
        with torch.autocast(
            self._device_type,
            dtype=self._autocast_dtype,
            enabled=self._autocast_dtype != torch.float32,
        ):
            losses = {name: loss * weight for name, loss in self.model(*inputs).items()}
            total = sum(losses.values())
        self.grad_scaler.scale(total).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _accumulate(self, parts: Sequence[list[dict]]) -> dict[str, Tensor]:
        """Add the gradients of all parts of a batch; give the losses of the whole batch."""
        distributed = isinstance(self.model, DistributedDataParallel)
        model = self.model.module if distributed else self.model
        if hasattr(model, "loss_normalizers"):
            common, weight = [model.loss_normalizers([x for part in parts for x in part])], 1.0
        else:
            common, weight = [], 1 / len(parts)

        losses: dict[str, Tensor] = {}
        for part in parts:
            # Gradients are summed up locally; only those of the last part start the exchange
            # between processes.
            waits = distributed and part is not parts[-1]
            with self.model.no_sync() if waits else nullcontext():
                for name, loss in self._backward(part, *common, weight=weight).items():
                    losses[name] = losses[name] + loss if name in losses else loss
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Iteration, optimizer and loss scaling."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`. The scale starts anew if it was saved without scaling."""
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _equal_parts(batch: list[dict], count: int) -> list[list[dict]]:
    size, rest = divmod(len(batch), count)
    if rest or not size:
        raise UserError(
            f"A process has {len(batch)} images of each batch, which SOLVER.ACCUMULATION_STEPS "
            f"{count} does not divide; change it or SOLVER.IMS_PER_BATCH."
        )
    return [batch[start : start + size] for start in range(0, len(batch), size)]
