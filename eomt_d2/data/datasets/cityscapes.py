"""Instances of Cityscapes where Detectron2's own loader cannot be used as it is.

On its main branch the loader, and every process that it starts, asks for the official scripts by
the name they have inside its authors' company (facebookresearch/detectron2#5436).
"""

import importlib
import inspect
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import cityscapes

__all__ = ["repair_instance_loaders"]

INTERNAL_NAME = "deeplearning.projects.cityscapesApi.cityscapesscripts"


def repair_instance_loaders() -> None:
    """Let ``cityscapes_fine_instance_seg_{train,val,test}`` load on Detectron2's main branch.

    Nothing changes on Detectron2 v0.6, nor where someone else has registered these names.
    """
    if INTERNAL_NAME not in inspect.getsource(cityscapes):
        return
    for name in DatasetCatalog.list():
        load = DatasetCatalog[name]
        is_own = getattr(load, "__module__", "").startswith("detectron2.")
        if name.startswith("cityscapes_fine_instance_seg_") and is_own:
            DatasetCatalog.remove(name)
            DatasetCatalog.register(name, partial(_with_official_labels, load))


def _with_official_labels(load: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Run a loader while the internal name leads to the official package."""
    labels = importlib.import_module("cityscapesscripts.helpers.labels")
    # Only a forked process inherits the name.
    fork = multiprocessing.get_context("fork")
    with (
        _entry(sys.modules, f"{INTERNAL_NAME}.helpers.labels", labels),
        _entry(vars(cityscapes), "mp", fork),
    ):
        return load()


@contextmanager
def _entry(namespace: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    """Give a name another meaning for a while."""
    missing = object()
    before = namespace.get(name, missing)
    namespace[name] = value
    try:
        yield
    finally:
        if before is missing:
            del namespace[name]
        else:
            namespace[name] = before
