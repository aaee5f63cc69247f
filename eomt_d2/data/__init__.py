"""Data: from registered data sets to batches."""

from eomt_d2.data.build import (
    build_test_loader,
    build_train_loader,
    load_training_dicts,
    training_seed,
)
from eomt_d2.data.mapper import MaskClassificationMapper

__all__ = [
    "MaskClassificationMapper",
    "build_test_loader",
    "build_train_loader",
    "load_training_dicts",
    "training_seed",
]
