"""Speed, memory and arithmetic of several models in one process, measured by turns."""

from .measurement import check, measure
from .plan import Point, Settings, grid, load_models
from .report import make_folder, new_report, write_pictures, write_report

__all__ = [
    "Point",
    "Settings",
    "check",
    "grid",
    "load_models",
    "make_folder",
    "measure",
    "new_report",
    "write_pictures",
    "write_report",
]
