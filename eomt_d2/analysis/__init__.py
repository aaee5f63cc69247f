"""What a network costs, by module, and what several trainings of several networks gave."""

from .complexity import Complexity, count_macs, count_parameters, network_complexity
from .complexity_table import complexity_table
from .finished import masked_when_finished
from .meta_model import build_meta_model
from .run_comparison import Spread, compare_runs, comparison_table

__all__ = [
    "Complexity",
    "Spread",
    "build_meta_model",
    "compare_runs",
    "comparison_table",
    "complexity_table",
    "count_macs",
    "count_parameters",
    "masked_when_finished",
    "network_complexity",
]
