"""What remains of a network's masked attention after its training."""

from detectron2.config import CfgNode
from torch import nn

__all__ = ["masked_when_finished"]


def masked_when_finished(cfg: CfgNode, model: nn.Module) -> bool | None:
    """Whether masked attention stays after the training; None where nothing can switch it.

    Args:
        cfg: reads MODEL.MASK_FORMER.MASK_ANNEALING.SCHEDULE.
        model: of this config.
    """
    annealing = getattr(model, "mask_annealing", None)
    if annealing is None:
        return None
    # A model may leave annealing to choice: Mask2Former, as published, masks throughout.
    anneals = getattr(annealing, "enabled", True)
    return not anneals or cfg.MODEL.MASK_FORMER.MASK_ANNEALING.SCHEDULE == "none"
