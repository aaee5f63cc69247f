"""Pictures of results and of training runs."""

from .curves import plot_training
from .overlay import draw_panoptic, side_by_side
from .results import write_panoptic_comparisons

__all__ = ["draw_panoptic", "plot_training", "side_by_side", "write_panoptic_comparisons"]
