"""Gradient clipping as a function that the training step calls on unscaled gradients."""

import math
from collections.abc import Callable, Iterable

from detectron2.config import CfgNode
from torch import Tensor, nn

from eomt_d2.errors import UserError

__all__ = ["GradientClipper", "build_gradient_clipper"]

GradientClipper = Callable[[Iterable[nn.Parameter]], Tensor]
"""Clips the gradients of some parameters in place and returns their total norm before."""


def build_gradient_clipper(cfg: CfgNode) -> GradientClipper:
    """Build what ``SOLVER.CLIP_GRADIENTS.{ENABLED, CLIP_TYPE, CLIP_VALUE, NORM_TYPE}`` describes.

    ``full_model`` bounds the norm of all gradients together, ``norm`` that of each parameter and
    ``value`` each element, as in Detectron2. The function that comes back takes parameters and
    returns the total norm (a scalar tensor) that their gradients had before.

    Raises:
        UserError: if CLIP_TYPE is none of the three.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    kind = clip.CLIP_TYPE if clip.ENABLED else "none"
    limit, norm_type = clip.CLIP_VALUE, clip.NORM_TYPE
    if kind not in ("none", "full_model", "norm", "value"):
        raise UserError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {kind!r}; it must be full_model, norm or value."
        )

    def clip_gradients(parameters: Iterable[nn.Parameter]) -> Tensor:
        parameters = list(parameters)
        total_limit = limit if kind == "full_model" else math.inf
        total_norm = nn.utils.clip_grad_norm_(parameters, total_limit, norm_type)
        if kind == "norm":
            for parameter in parameters:
                nn.utils.clip_grad_norm_(parameter, limit, norm_type)
        elif kind == "value":
            nn.utils.clip_grad_value_(parameters, limit)
        return total_norm

    return clip_gradients
