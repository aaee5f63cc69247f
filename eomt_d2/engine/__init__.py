"""Set-up, training and evaluation."""

from .launch import launch
from .setup import load_config, set_up
from .trainer import Trainer

__all__ = ["Trainer", "launch", "load_config", "set_up"]
