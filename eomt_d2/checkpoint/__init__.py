"""Reading and writing weights."""

from .checkpointer import Checkpointer

__all__ = ["Checkpointer"]
