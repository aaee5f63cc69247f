"""What ends many trainings, said in a sentence with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from eomt_d2.errors import UserError

from .step_report import NonFiniteError

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["explained_failures", "memory_advice"]


@contextmanager
def explained_failures(trainer: Trainer, when: str, advice: str = "") -> Iterator[None]:
    """Turn persistently non-finite losses, and too little memory, into a :class:`UserError`.

    Where memory does not suffice, what the training has reached is saved first.

    Args:
        trainer: whose work this is.
        when: "in iteration 3".
        advice: what needs less memory; "": in an evaluation.
    """
    try:
        yield
    except NonFiniteError as error:
        raise UserError(
            f"{error}; {trainer.last_checkpoint_text()}; look at these images and their "
            f"annotations, lower SOLVER.BASE_LR, or train in SOLVER.AMP.PRECISION bfloat16 or "
            f"with SOLVER.AMP.ENABLED False."
        ) from error
    except torch.cuda.OutOfMemoryError as error:
        # The others may wait for this process in the middle of an exchange.
        if comm.is_main_process():
            trainer.save_complete_iteration()
        raise UserError(
            f"The memory of the GPU did not suffice {when}; "
            f"{advice or 'set TEST.SEMANTIC_OUTPUT labels, or evaluate smaller images'}; "
            f"{trainer.last_checkpoint_text()}."
        ) from error


def memory_advice(cfg: CfgNode) -> str:
    """What lets a training run in less memory."""
    solver = cfg.SOLVER
    return (
        f"raise SOLVER.ACCUMULATION_STEPS (now {solver.ACCUMULATION_STEPS}), which needs less for "
        f"the same updates, set MODEL.VIT.ACTIVATION_CHECKPOINTING True, or lower "
        f"SOLVER.IMS_PER_BATCH (now {solver.IMS_PER_BATCH})"
    )
