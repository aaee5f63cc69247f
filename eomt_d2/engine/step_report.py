"""What all processes tell each other about an iteration, in one exchange."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor

__all__ = ["NonFiniteError", "StepReport", "gather_reports", "write_metrics"]


class NonFiniteError(FloatingPointError):
    """Loss or gradient were infinite or NaN for too many iterations in a row.

    Args:
        what: "loss" or "gradient".
        iteration: the last of them.
        count: how many.
        files: images of that iteration's batch, of the ranks where it happened.
    """

    def __init__(self, what: str, iteration: int, count: int, files: Sequence[str]):
        super().__init__(
            f"The {what} was infinite or NaN in {count} iterations in a row, up to iteration "
            f"{iteration} with the images {', '.join(files)}"
        )


class StepReport(NamedTuple):
    """One rank's account of an iteration.

    Attributes:
        losses: values, in the order of their names.
        grad_norm: the norm of all gradients before clipping.
        data_time: seconds that the rank waited for its batch.
        signal: number of the signal that asked it to end, or 0.
    """

    losses: tuple[float, ...]
    grad_norm: float
    data_time: float
    signal: int = 0

    @property
    def loss_is_finite(self) -> bool:
        return all(math.isfinite(loss) for loss in self.losses)

    @property
    def is_finite(self) -> bool:
        """Whether losses and gradient are, so that the parameters may be updated."""
        return self.loss_is_finite and math.isfinite(self.grad_norm)


def gather_reports(
    losses: Mapping[str, Tensor], grad_norm: Tensor, data_time: float, signal: int = 0
) -> list[StepReport]:
    """The reports of all ranks, on every rank.

    Args:
        losses: scalars by name, in the same order on every rank.
        grad_norm, data_time, signal: see :class:`StepReport`; the first is a scalar tensor.
    """
    # One transfer from the device for all of them.
    values = torch.stack([*(v.detach().float() for v in losses.values()), grad_norm.float()])
    *loss_values, norm = values.tolist()
    return comm.all_gather(StepReport(tuple(loss_values), norm, data_time, signal))


def write_metrics(names: Sequence[str], reports: Sequence[StepReport]) -> None:
    """Put losses, averaged over ranks, their sum, the gradient norm and the loading time into the
    event storage; nothing that is infinite or NaN.

    Detectron2's own version changed its arguments between releases and finds a bad loss on the
    main process only, which leaves the others waiting.

    Args:
        names: of the losses.
        reports: of all ranks.
    """
    storage = get_event_storage()
    if all(report.loss_is_finite for report in reports):
        columns = zip(*(report.losses for report in reports), strict=True)
        means = {
            name: sum(column) / len(column) for name, column in zip(names, columns, strict=True)
        }
        storage.put_scalars(total_loss=sum(means.values()), **means)
    storage.put_scalar("data_time", max(report.data_time for report in reports))
    # The gradient is the same on all ranks, and infinite where fp16 overflowed.
    if math.isfinite(reports[0].grad_norm):
        storage.put_scalar("grad_norm", reports[0].grad_norm)
