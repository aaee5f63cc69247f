"""A model of a config without its weights: shapes, but no memory."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from eomt_d2.errors import UserError

__all__ = ["build_meta_model"]


def build_meta_model(cfg: CfgNode) -> nn.Module:
    """Build the model of a config on PyTorch's meta device.

    An architecture whose constructor computes with tensors (stochastic depth rates in some of
    Detectron2's backbones) cannot be built there; it is built in memory and then moved.

    Args:
        cfg: MODEL.DEVICE and MODEL.WEIGHTS are not looked at.

    Returns:
        The model, in training mode as Detectron2 builds it, all parameters and buffers on "meta".

    Raises:
        UserError: if the model refuses a value of the config.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    cfg.freeze()
    try:
        try:
            with torch.device("meta"):
                return build_model(cfg)
        except RuntimeError:
            return build_model(cfg)
    except ValueError as error:
        raise UserError(str(error)) from error
