"""Parameter groups with layer decay, optimizer, gradient clipping and learning-rate schedule."""

from .clipping import build_gradient_clipper
from .lr_scheduler import TwoStageWarmupPolyLR, build_lr_scheduler, two_stage_poly_factor
from .optimizer import build_optimizer
from .parameter_groups import layer_decay_factor, parameter_groups

__all__ = [
    "TwoStageWarmupPolyLR",
    "build_gradient_clipper",
    "build_lr_scheduler",
    "build_optimizer",
    "layer_decay_factor",
    "parameter_groups",
    "two_stage_poly_factor",
]
