"""One optimisation step: forward, backward, clipping, update; in one or several parts, with or
without mixed precision."""

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from eomt_d2.errors import UserError
from eomt_d2.solver.clipping import GradientClipper

__all__ = ["PRECISIONS", "TrainStep", "write_metrics"]

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TrainStep(SimpleTrainer):
    """Runs one iteration, as Detectron2's ``SimpleTrainer`` and ``AMPTrainer`` do, and clips.

    Gradients are clipped here and not inside the optimizer, because under loss scaling they must
    be unscaled first, and a fused optimizer would only unscale them inside its own ``step``.
    A step whose scaled gradients overflow leaves the parameters alone; to the schedules it is an
    iteration like any other.

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
    ):
        super().__init__(model, data_loader, optimizer)
        self._clip_gradients = clip_gradients
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._accumulation_steps = accumulation_steps
        self._autocast_dtype = PRECISIONS[precision]
        self._device_type = self._parameters[0].device.type
        # Disabled, it passes losses and gradients through unchanged.
        self.grad_scaler = torch.amp.GradScaler(self._device_type, enabled=precision == "float16")

    def run_step(self) -> None:
        """One iteration.

        Raises:
            FloatingPointError: on every rank, if a loss is infinite or NaN on any.
            UserError: if the batch cannot be cut into equal parts.
        """
        if not self.model.training:
            raise RuntimeError("The model was left in evaluation mode.")
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad(set_to_none=True)
        if self._accumulation_steps == 1:
            losses = self._backward(batch)
        else:
            losses = self._accumulate(_equal_parts(batch, self._accumulation_steps))
        self.grad_scaler.unscale_(self.optimizer)
        grad_norm = self._clip_gradients(self._parameters)
        write_metrics(losses, grad_norm, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

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


def write_metrics(losses: dict[str, Tensor], grad_norm: Tensor, data_time: float) -> None:
    """Put losses, averaged over ranks, their sum, the gradient norm and the loading time into the
    event storage.

    Detectron2's own version changed its arguments between releases and finds a bad loss on the
    main process only, which leaves the others waiting.

    Args:
        losses: scalars by name.
        grad_norm: scalar; the norm of all gradients before clipping.
        data_time: seconds this rank waited for its batch.

    Raises:
        FloatingPointError: on every rank, if any loss on any rank is infinite or NaN.
    """
    values = torch.stack([*(v.detach().float() for v in losses.values()), grad_norm.float()])
    *loss_values, norm = values.tolist()
    ranks = comm.all_gather((loss_values, data_time))
    means = {name: sum(rank[0][i] for rank in ranks) / len(ranks) for i, name in enumerate(losses)}
    storage = get_event_storage()
    if not all(math.isfinite(mean) for mean in means.values()):
        raise FloatingPointError(f"A loss is infinite or NaN at iteration {storage.iter}: {means}.")
    storage.put_scalars(total_loss=sum(means.values()), **means)
    storage.put_scalar("data_time", max(rank[1] for rank in ranks))
    # Infinite where fp16 gradients overflowed and the step is skipped.
    if math.isfinite(norm):
        storage.put_scalar("grad_norm", norm)
