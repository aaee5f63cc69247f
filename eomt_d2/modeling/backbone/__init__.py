"""Backbones; importing this registers them."""

from .feature_pyramid import ViTFeaturePyramid
from .vit import ViT
from .vit_adapter import ViTAdapter

__all__ = ["ViT", "ViTAdapter", "ViTFeaturePyramid"]
