"""What a network costs: parameters and multiply-accumulates, by module."""

from .complexity import Complexity, count_macs, count_parameters, network_complexity
from .complexity_table import complexity_table
from .meta_model import build_meta_model

__all__ = [
    "Complexity",
    "build_meta_model",
    "complexity_table",
    "count_macs",
    "count_parameters",
    "network_complexity",
]
