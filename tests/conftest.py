"""What all tests share: the folder of real images, the CUDA marker, fixed seeds, two threads, and
fixtures that restore loggers and catalogs."""

import logging
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

# No test downloads anything; without this, timm and transformers would ask the network first.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).resolve().parent.parent
DATA_FOLDERS = ("coco", "ade20k", "photos")


def pytest_configure(config):
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Every test starts from the same random state, alone or among others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real images with the subfolders ``coco``, ``ade20k`` and ``photos``.

    ``$EOMT_TEST_DATA``, by default ``../shared/data`` beside the clone. Without it the tests that
    ask for it are skipped; in continuous integration (``CI=true``) that is a failure.
    """
    folder = Path(os.environ.get("EOMT_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    missing = [name for name in DATA_FOLDERS if not (folder / name).is_dir()]
    if missing:
        reason = f"no real images: {folder} lacks {', '.join(missing)} (set $EOMT_TEST_DATA)"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture
def restored_loggers():
    """For tests that set up a whole run, which redirects the loggers of the process."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "eomt_d2")]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def catalogs():
    """Detectron2's catalogs with only Detectron2's own entries, restored afterwards."""
    saved = dict(DatasetCatalog), dict(MetadataCatalog)
    for name in list(DatasetCatalog):
        # What Detectron2 registers itself comes from its own modules.
        module = getattr(DatasetCatalog[name], "__module__", "")
        if not module.startswith("detectron2."):
            DatasetCatalog.remove(name)
            if name in MetadataCatalog:
                MetadataCatalog.remove(name)
    yield
    for catalog, content in zip((DatasetCatalog, MetadataCatalog), saved, strict=True):
        catalog.data.clear()
        catalog.data.update(content)
