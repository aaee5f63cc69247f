"""Backbones; importing this registers them."""

from .vit import ViT

__all__ = ["ViT"]
