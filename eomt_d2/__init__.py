"""EoMT, the Encoder-only Mask Transformer, inside Detectron2.

Importing this package registers its models and backbones with Detectron2 and nothing else. Data
sets are registered by :func:`eomt_d2.data.datasets.register_datasets`.
"""

from .config import add_eomt_config
from .modeling import (
    EoMT,
    Mask2Former,
    MaskClassificationModel,
    ViT,
    ViTAdapter,
    ViTFeaturePyramid,
)

__version__ = "0.1.0"

__all__ = [
    "EoMT",
    "Mask2Former",
    "MaskClassificationModel",
    "ViT",
    "ViTAdapter",
    "ViTFeaturePyramid",
    "add_eomt_config",
]
