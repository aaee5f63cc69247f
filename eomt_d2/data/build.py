"""Training and test loaders, fed with our mapper and without empty images."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, IterableDataset

from eomt_d2.data.bad_samples import skip_bad_samples
from eomt_d2.data.datasets.loading import load_dataset_dicts
from eomt_d2.data.ground_truth import ground_truth_kind, has_segments
from eomt_d2.data.image_order import build_image_order
from eomt_d2.data.mapper import MaskClassificationMapper
from eomt_d2.data.train_loader import TrainLoader
from eomt_d2.errors import UserError

__all__ = [
    "build_test_loader",
    "build_train_loader",
    "images_with_segments",
    "load_training_dicts",
    "training_seed",
]

_logger = logging.getLogger(__name__)


def load_training_dicts(cfg: CfgNode) -> list[dict] | Dataset:
    """Load DATASETS.TRAIN, without the images that list no segment but crowds.

    Detectron2 itself filters only entries with "annotations", so not panoptic ones, and redrawing
    such an image would never end. With INPUT.EMPTY_SAMPLES "keep" they stay, as negatives.
    Whether a semantic label map is empty is known only after reading it; the mapper skips it then.

    Returns:
        images in Detectron2's dataset format. A data set that is registered as a PyTorch
        ``Dataset`` instead of a list comes back unfiltered.

    Raises:
        UserError: DATASETS.TRAIN is empty, a file of the data set is missing, an image lacks the
            ground truth that INPUT.DATASET_MAPPER_NAME asks for, or no image is left.
    """
    names = cfg.DATASETS.TRAIN
    if not names:
        raise UserError("DATASETS.TRAIN is empty; name at least one registered data set.")
    dicts = load_dataset_dicts(names)
    if isinstance(dicts, Dataset):
        return dicts
    requested = cfg.INPUT.DATASET_MAPPER_NAME
    kinds = [ground_truth_kind(entry, requested) for entry in dicts]
    if cfg.INPUT.EMPTY_SAMPLES == "keep":
        return dicts
    return images_with_segments(dicts, kinds, names)


def images_with_segments(
    dicts: Sequence[dict], kinds: Sequence[str], names: Sequence[str]
) -> list[dict]:
    """The images that list a segment besides crowds.

    Args:
        dicts: in Detectron2's dataset format.
        kinds: of the ground truth that each is used with.
        names: of the data sets, for messages.

    Raises:
        UserError: there is none.
    """
    kept = [entry for entry, kind in zip(dicts, kinds, strict=True) if has_segments(entry, kind)]
    if len(kept) < len(dicts):
        _logger.info(
            f"{len(dicts) - len(kept)} of the {len(dicts)} images of {', '.join(names)} have no "
            f"segment besides crowds and are left out; {len(kept)} remain"
        )
    if not kept:
        raise UserError(
            f"No image of {', '.join(names)} has a segment that is not a crowd; check the "
            'annotation file, or set INPUT.EMPTY_SAMPLES to "keep".'
        )
    return kept


def build_train_loader(
    cfg: CfgNode, mapper: MaskClassificationMapper | None = None
) -> TrainLoader | DataLoader:
    """The endless training loader: lists of SOLVER.IMS_PER_BATCH / world size mapped samples.

    Images that cannot be used stop it, or are replaced by others with DATALOADER.ON_BAD_SAMPLE
    "skip". Every process of a run must call this.

    Returns:
        A loader that can be entered at any batch. Only for a data set registered as a PyTorch
        ``IterableDataset``, which has no positions, it is Detectron2's.

    Raises:
        UserError: see :func:`load_training_dicts` and
            :func:`~eomt_d2.data.image_order.build_image_order`.
    """
    if mapper is None:
        mapper = MaskClassificationMapper(cfg, is_train=True)
    mapper = skip_bad_samples(cfg, mapper)
    dataset = load_training_dicts(cfg)
    if isinstance(dataset, IterableDataset):
        return build_detection_train_loader(cfg, mapper=mapper, dataset=dataset)
    order = build_image_order(cfg, dataset)
    if isinstance(dataset, list):
        # As Detectron2 does: serialised, so that workers share the memory.
        dataset = DatasetFromList(dataset, copy=False)
    return TrainLoader(
        dataset,
        _ReplacesSkippedImages(mapper, dataset),
        order,
        seed=training_seed(cfg),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        group_by_aspect_ratio=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
    )


def training_seed(cfg: CfgNode) -> int:
    """SEED, or where it is negative one that is drawn now and is the same in all processes."""
    return cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()


def build_test_loader(
    cfg: CfgNode, dataset_name: str, mapper: MaskClassificationMapper | None = None
) -> DataLoader:
    """The test loader: each image of one data set once, lists of one mapped sample."""
    if mapper is None:
        mapper = MaskClassificationMapper(cfg, is_train=False)
    return build_detection_test_loader(
        load_dataset_dicts([dataset_name]), mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )


class _ReplacesSkippedImages:
    """A mapper that never skips: a random other image takes the place of one that is skipped.

    Detectron2 would do so too, but its main branch fails at it from Python 3.11 on.
    """

    def __init__(self, mapper: Callable[[dict], dict | None], dataset: Any):
        self._mapper = mapper
        self._dataset = dataset

    def __call__(self, entry: dict) -> dict:
        sample = self._mapper(entry)
        if sample is not None:
            return sample
        for index in np.random.permutation(len(self._dataset)).tolist():
            sample = self._mapper(self._dataset[index])
            if sample is not None:
                return sample
        raise UserError(
            "No image of DATASETS.TRAIN has a segment to learn from, or all were skipped for the "
            "reasons that the log gives; check their ground truth (tools/check_dataset.py), or "
            'set INPUT.EMPTY_SAMPLES to "keep".'
        )
