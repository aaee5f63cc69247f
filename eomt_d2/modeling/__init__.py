"""Networks that turn images into classified masks; importing this registers them."""

from .backbone import ViT
from .eomt import EoMT
from .mask_classification import MaskClassificationModel

__all__ = ["EoMT", "MaskClassificationModel", "ViT"]
