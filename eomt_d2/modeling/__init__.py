"""Networks that turn images into classified masks; importing this registers them."""

from .backbone import ViT, ViTAdapter, ViTFeaturePyramid
from .eomt import EoMT
from .mask2former import Mask2Former
from .mask_classification import MaskClassificationModel

__all__ = [
    "EoMT",
    "Mask2Former",
    "MaskClassificationModel",
    "ViT",
    "ViTAdapter",
    "ViTFeaturePyramid",
]
