"""One optimisation step: forward, backward, clipping, update, with or without mixed precision."""

import math
import time
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from eomt_d2.solver.clipping import GradientClipper

__all__ = ["PRECISIONS", "TrainStep", "write_metrics"]

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TrainStep(SimpleTrainer):
    """Runs one iteration, as Detectron2's ``SimpleTrainer`` and ``AMPTrainer`` do, and clips.

    Gradients are clipped here and not inside the optimizer, because under loss scaling they must
    be unscaled first, and a fused optimizer would only unscale them inside its own ``step``.
    A step whose scaled gradients overflow leaves the parameters alone; to the schedules it is an
    iteration like any other.

    Args:
        model: returns a dict of scalar losses in training mode.
        data_loader: endless iterable of batches.
        optimizer: over the model's parameters.
        clip_gradients: see :func:`~eomt_d2.solver.clipping.build_gradient_clipper`.
        precision: "float32"; "bfloat16" (autocast); "float16" (autocast and loss scaling, CUDA
            only).
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict]],
        optimizer: torch.optim.Optimizer,
        *,
        clip_gradients: GradientClipper,
        precision: str = "float32",
    ):
        super().__init__(model, data_loader, optimizer)
        self._clip_gradients = clip_gradients
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._autocast_dtype = PRECISIONS[precision]
        self._device_type = self._parameters[0].device.type
        # Disabled, it passes losses and gradients through unchanged.
        self.grad_scaler = torch.amp.GradScaler(self._device_type, enabled=precision == "float16")

    def run_step(self) -> None:
        """One iteration.

        Raises:
            FloatingPointError: on every rank, if a loss is infinite or NaN on any.
        """
        if not self.model.training:
            raise RuntimeError("The model was left in evaluation mode.")
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        with torch.autocast(
            self._device_type,
            dtype=self._autocast_dtype,
            enabled=self._autocast_dtype != torch.float32,
        ):
            losses = self.model(batch)
            total = sum(losses.values())

        self.optimizer.zero_grad(set_to_none=True)
        self.grad_scaler.scale(total).backward()
        self.grad_scaler.unscale_(self.optimizer)
        grad_norm = self._clip_gradients(self._parameters)
        write_metrics(losses, grad_norm, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Iteration, optimizer and loss scaling."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`. The scale starts anew if it was saved without scaling."""
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


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
