"""Data sets that Detectron2 lacks: shapes, ADE20K panoptic and instance, the user's own."""

import os
from pathlib import Path

from detectron2.config import CfgNode

from eomt_d2.data.datasets.builtin import register_builtin
from eomt_d2.data.datasets.cityscapes import repair_instance_loaders
from eomt_d2.data.datasets.from_config import register_entries

__all__ = ["register_datasets"]


def register_datasets(cfg: CfgNode | None = None) -> None:
    """Register our data sets in Detectron2's catalogs. Importing this package does not.

    Can be called again: names that are taken are left alone. Data sets are looked for below
    ``$DETECTRON2_DATASETS``, by default ``./datasets``, at the places that datasets/README.md
    shows. Detectron2's Cityscapes instances are made to load on its main branch, too.

    Args:
        cfg: its ``DATASETS.REGISTER`` is registered too. Relative paths there start at
            ``$DETECTRON2_DATASETS`` where that is set, else at the current folder.

    Raises:
        UserError: an entry of ``DATASETS.REGISTER`` is not usable.
    """
    root = os.environ.get("DETECTRON2_DATASETS")
    register_builtin(Path(root or "datasets"))
    repair_instance_loaders()
    if cfg is not None:
        register_entries(cfg.DATASETS.REGISTER, Path(root or "."))
