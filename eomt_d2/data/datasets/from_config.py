"""Data sets that a config describes itself, in ``DATASETS.REGISTER``."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from eomt_d2.data.datasets.builtin import register_instances, register_panoptic, register_semantic
from eomt_d2.data.datasets.coco_format import panoptic_metadata, read_categories
from eomt_d2.errors import UserError

__all__ = ["register_entries"]


def register_entries(entries: Sequence[Mapping[str, Any]], root: Path) -> None:
    """Register the data sets of ``DATASETS.REGISTER``.

    Keys, as all keys of a config, are upper-case. Every entry has ``NAME`` and ``TYPE``:

    - ``coco_panoptic``: ``IMAGE_ROOT``, ``PANOPTIC_ROOT``, ``PANOPTIC_JSON``; optional
      ``INSTANCES_JSON`` (adds AP), ``SEM_SEG_ROOT`` (adds mIoU; contiguous classes, 255 ignored);
    - ``coco_instances``: ``IMAGE_ROOT``, ``JSON``;
    - ``semantic``: ``IMAGE_ROOT``, ``LABEL_ROOT``, ``CLASSES`` (names, in the order of the
      labels); optional ``IGNORE_LABEL`` (255), ``IMAGE_SUFFIX`` (".jpg"), ``LABEL_SUFFIX``
      (".png").

    ``~`` and ``$VARIABLES`` in paths are expanded.

    Args:
        entries: the list, as it stands in the config.
        root: where relative paths start.

    Raises:
        UserError: an entry has an unknown type or key, lacks one, has a value of the wrong kind,
            names a file or folder that does not exist, or a name that is taken by other data.
            The message names the entry.
    """
    for position, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("NAME"), str):
            raise UserError(
                f"Entry {position} of DATASETS.REGISTER must be a mapping with a NAME, not {entry}."
            )
        try:
            _register_entry(dict(entry), root)
        except UserError as error:
            raise UserError(f"DATASETS.REGISTER, entry '{entry['NAME']}': {error}") from error


class _Type(NamedTuple):
    register: Callable[[str, dict[str, Any]], None]
    required: frozenset[str]
    optional: frozenset[str] = frozenset()


def _register_entry(entry: dict[str, Any], root: Path) -> None:
    kind = entry.get("TYPE")
    if kind not in _TYPES:
        raise UserError(f"TYPE is {kind!r}, but must be one of {', '.join(_TYPES)}.")
    register, required, optional = _TYPES[kind]
    given = entry.keys() - {"NAME", "TYPE"}
    if missing := sorted(required - given):
        raise UserError(f"{', '.join(missing)} must be given where TYPE is {kind}.")
    if unknown := sorted(given - required - optional):
        allowed = ", ".join(sorted(required | optional))
        raise UserError(f"unknown key {', '.join(map(str, unknown))}; {kind} knows {allowed}.")

    for key in given & {"JSON", "PANOPTIC_JSON", "INSTANCES_JSON"}:
        entry[key] = _existing_path(key, entry[key], root)
        if not entry[key].is_file():
            raise UserError(f"{key} '{entry[key]}' is not a file.")
    for key in given & {"IMAGE_ROOT", "PANOPTIC_ROOT", "SEM_SEG_ROOT", "LABEL_ROOT"}:
        entry[key] = _existing_path(key, entry[key], root)
        if not entry[key].is_dir():
            raise UserError(f"{key} '{entry[key]}' is not a folder.")

    name = entry["NAME"]
    if name in DatasetCatalog.list():
        # Setting up twice in one process is fine; two data sets of one name are not.
        if MetadataCatalog.get(name).get("config_entry") != entry:
            raise UserError("the name belongs to another data set; choose another NAME.")
        return
    register(name, entry)
    MetadataCatalog.get(name).set(config_entry=entry)


def _existing_path(key: str, value: Any, root: Path) -> Path:
    if not isinstance(value, str) or not value:
        raise UserError(f"{key} must be a path, not {value!r}.")
    path = root / os.path.expandvars(os.path.expanduser(value))
    if not path.exists():
        raise UserError(f"{key} '{path}' does not exist.")
    return path


def _coco_panoptic(name: str, entry: dict[str, Any]) -> None:
    categories = read_categories(entry["PANOPTIC_JSON"])
    panoptic_metadata(categories)
    register_panoptic(
        name,
        categories,
        image_root=entry["IMAGE_ROOT"],
        panoptic_root=entry["PANOPTIC_ROOT"],
        panoptic_json=entry["PANOPTIC_JSON"],
        instances_json=entry.get("INSTANCES_JSON"),
        sem_seg_root=entry.get("SEM_SEG_ROOT"),
    )


def _coco_instances(name: str, entry: dict[str, Any]) -> None:
    register_instances(
        name,
        read_categories(entry["JSON"]),
        image_root=entry["IMAGE_ROOT"],
        json_file=entry["JSON"],
    )


def _semantic(name: str, entry: dict[str, Any]) -> None:
    classes = entry["CLASSES"]
    if (
        not isinstance(classes, (list, tuple))
        or not classes
        or not all(isinstance(c, str) for c in classes)
    ):
        raise UserError(f"CLASSES must be a list of names, not {classes!r}.")
    ignore_label = entry.get("IGNORE_LABEL", 255)
    if type(ignore_label) is not int or ignore_label < len(classes):
        raise UserError(
            f"IGNORE_LABEL is {ignore_label!r}, but must be an integer that is no class, so at "
            f"least {len(classes)}."
        )
    suffixes = {}
    for key in entry.keys() & {"IMAGE_SUFFIX", "LABEL_SUFFIX"}:
        if not isinstance(entry[key], str) or not entry[key]:
            raise UserError(f"{key} must be the end of a file name, not {entry[key]!r}.")
        suffixes[key.lower()] = entry[key]
    register_semantic(
        name,
        list(classes),
        image_root=entry["IMAGE_ROOT"],
        label_root=entry["LABEL_ROOT"],
        ignore_label=ignore_label,
        **suffixes,
    )


_TYPES = {
    "coco_panoptic": _Type(
        _coco_panoptic,
        frozenset({"IMAGE_ROOT", "PANOPTIC_ROOT", "PANOPTIC_JSON"}),
        frozenset({"INSTANCES_JSON", "SEM_SEG_ROOT"}),
    ),
    "coco_instances": _Type(_coco_instances, frozenset({"IMAGE_ROOT", "JSON"})),
    "semantic": _Type(
        _semantic,
        frozenset({"IMAGE_ROOT", "LABEL_ROOT", "CLASSES"}),
        frozenset({"IGNORE_LABEL", "IMAGE_SUFFIX", "LABEL_SUFFIX"}),
    ),
}
