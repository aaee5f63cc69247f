"""Loading registered data sets, ours, Detectron2's and the user's, with faults in one sentence."""

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from torch.utils.data import Dataset

from eomt_d2.data.datasets.faults import Fault
from eomt_d2.errors import UserError

__all__ = ["load_dataset_dicts", "load_with_report"]

# Keys of dataset dicts that name files -> metadata that name the folder of these files.
_ROOTS = {
    "file_name": ("image_root", "image_dir"),
    "pan_seg_file_name": ("panoptic_root",),
    "sem_seg_file_name": ("sem_seg_root",),
}


def load_dataset_dicts(names: Sequence[str]) -> list[dict] | Dataset:
    """The images of registered data sets, one data set after the other, none left out.

    Raises:
        UserError: a file is missing, an annotation file is not what it has to be, or it names
            files outside of the data set's folders.
    """
    with _faults_explained(names):
        dicts = get_detection_dataset_dicts(list(names), filter_empty=False)
    if isinstance(dicts, list):
        _check_locations(dicts, names)
    return dicts


def load_with_report(name: str, report: Callable[[Fault], None]) -> list[dict] | Dataset:
    """One registered data set without its faulty entries, whose faults go to ``report``.

    Only our own loaders can leave entries out. Of any other, the first fault ends the loading.

    Raises:
        UserError: as for :func:`load_dataset_dicts`.
    """
    load = DatasetCatalog[name]
    if "report" not in inspect.signature(load).parameters:
        return load_dataset_dicts([name])
    with _faults_explained([name]):
        return load(report=report)


@contextmanager
def _faults_explained(names: Sequence[str]) -> Iterator[None]:
    """Detectron2's data sets are registered whether or not their files are there, and its loaders
    take them for what they should be."""
    listed = " or ".join(names)
    try:
        yield
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"The data set {listed} lacks {error.filename}; put it there, or set "
            "DETECTRON2_DATASETS to the folder that has it (layout: datasets/README.md)."
        ) from error
    except Exception as error:
        # What a loader of the user raises is for the user to see whole.
        empty = isinstance(error, AssertionError) and "is empty" in str(error)
        if not empty and not all(_is_known(name) for name in names):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"The data set {listed} cannot be loaded ({reason:.200}); check its annotation file."
        ) from error


def _is_known(name: str) -> bool:
    function: Any = DatasetCatalog[name]
    function = getattr(function, "func", function)
    return getattr(function, "__module__", "").startswith(("detectron2.", "eomt_d2."))


def _check_locations(dicts: Sequence[dict], names: Sequence[str]) -> None:
    """Detectron2's own loaders join whatever file name an annotation file has to the folder."""
    if not all(_is_known(name) for name in names):
        return
    for key, root_keys in _ROOTS.items():
        roots = [root for name in names if (root := _root(name, root_keys))]
        if len(roots) < len(names):
            continue
        for entry in dicts:
            path = entry.get(key)
            if path is not None and not any(_is_below(path, root) for root in roots):
                raise UserError(
                    f"The annotations of {' or '.join(names)} name the file {path!r:.200}, which "
                    f"lies outside of {' and '.join(roots)}; correct them."
                )


def _root(name: str, keys: Sequence[str]) -> str | None:
    metadata = MetadataCatalog.get(name)
    return next((str(metadata.get(key)) for key in keys if metadata.get(key)), None)


def _is_below(path: str, root: str) -> bool:
    normal_path, normal_root = os.path.normpath(path), os.path.normpath(root)
    prefix = "" if normal_root == "." else os.path.join(normal_root, "")
    # A step upwards that only a link makes harmless, or harmful, is none that a list should take.
    steps_up = path.split("/").count("..") - root.split("/").count("..")
    return (
        normal_path.startswith(prefix)
        and steps_up <= 0
        and not (prefix == "" and os.path.isabs(normal_path))
    )
