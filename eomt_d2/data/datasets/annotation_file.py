"""The entries of an annotation file, which may hold anything: each is checked before it is used."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from eomt_d2.data.datasets.faults import Faults
from eomt_d2.errors import UserError

__all__ = [
    "check_crowd",
    "check_entry",
    "check_folder",
    "entries_of",
    "images_by_id",
    "path_below",
    "read_json",
    "shortened",
]

_PathLike = str | os.PathLike[str]


def read_json(json_file: _PathLike) -> Any:
    """Content of a JSON file.

    Raises:
        UserError: the file cannot be read, is not JSON, or is nested too deeply.
    """
    try:
        with open(json_file, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise UserError(
            f"The annotation file '{json_file}' cannot be read ({error.strerror}); see "
            "datasets/README.md."
        ) from error
    except RecursionError as error:
        raise UserError(
            f"The annotation file '{json_file}' is nested too deeply; it is no annotation file."
        ) from error
    except ValueError as error:
        raise UserError(f"The annotation file '{json_file}' is not JSON: {error}.") from error


def entries_of(content: Any, key: str, json_file: _PathLike) -> list[Any]:
    """One of the lists of an annotation file, such as its ``images``.

    Raises:
        UserError: the file has no such list.
    """
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"'{json_file}' has no '{key}'; it must be a COCO annotation file.")
    return entries


def check_entry(entry: Any, keys: Mapping[str, str], where: str) -> None:
    """Check that an entry is an object with certain keys.

    Args:
        entry: anything that JSON can hold.
        keys: key -> kind of its value: "id" (whole number or text), "text", "list", "size" (whole
            number of at least 1), "whole" (number).
        where: what the entry is, for the message: "Entry 3 of 'images' in 'a.json'".

    Raises:
        UserError: it is no object, or lacks a key, or the value of one is of another kind.
    """
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {shortened(entry)}; it has to be an object.")
    for key, kind in keys.items():
        if key not in entry:
            raise UserError(f"{where} lacks '{key}'; add it.")
        is_kind, description = _KINDS[kind]
        if not is_kind(entry[key]):
            raise UserError(
                f"{where} has the {key} {shortened(entry[key])}; it has to be {description}."
            )


def images_by_id(content: Any, json_file: _PathLike, faults: Faults) -> dict[int | str, dict]:
    """The usable ``images`` of an annotation file: id, file_name, height and width.

    Faults of single images, also that two of them share an id, go to ``faults``.

    Raises:
        UserError: the file has no images.
    """
    images: dict[int | str, dict] = {}
    keys = {"id": "id", "file_name": "text", "height": "size", "width": "size"}
    for position, image in enumerate(entries_of(content, "images", json_file)):
        with faults.collected():
            check_entry(image, keys, f"Entry {position} of 'images' in '{json_file}'")
            if image["id"] in images:
                raise UserError(
                    f"Two images of '{json_file}' have the same id {shortened(image['id'])} "
                    f"({shortened(images[image['id']]['file_name'])} and "
                    f"{shortened(image['file_name'])}); give each its own."
                )
            images[image["id"]] = image
    return images


def path_below(root: _PathLike, name: str, json_file: _PathLike) -> str:
    """Path of a file that an annotation file names.

    An annotation file may come from anywhere, so it can name only what lies below the folder that
    the config gives. (Links inside that folder are the user's own and are followed.)

    Raises:
        UserError: the name is absolute, an address, leads out of the folder or is no file name.
    """
    path = PurePosixPath(name)
    if (
        not path.name
        or "\0" in name
        or "://" in name
        or path.is_absolute()
        or PureWindowsPath(name).drive
        or ".." in (*path.parts, *PureWindowsPath(name).parts)
    ):
        raise UserError(
            f"'{json_file}' names the file {shortened(name)}, which may lie outside of "
            f"'{root}'; it has to be a path below that folder."
        )
    return os.path.join(root, name)


def check_folder(folder: _PathLike, json_file: _PathLike) -> None:
    """
    Raises:
        UserError: the folder does not exist.
    """
    if not Path(folder).is_dir():
        raise UserError(
            f"The folder '{folder}', which belongs to '{json_file}', does not exist; see "
            "datasets/README.md."
        )


def check_crowd(entry: Mapping[str, Any], where: str) -> None:
    """
    Raises:
        UserError: ``iscrowd`` is given and neither 0 nor 1.
    """
    crowd = entry.get("iscrowd", 0)
    if not isinstance(crowd, int) or crowd not in (0, 1):
        raise UserError(f"{where} has the iscrowd {shortened(crowd)}; it has to be 0 or 1.")


def shortened(value: Any) -> str:
    """How a value of a file is shown in a message: on one line and not at length."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_size(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 1 and value == int(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_KINDS = {
    "id": (lambda value: isinstance(value, str) or _is_whole(value), "a whole number or a text"),
    "text": (lambda value: isinstance(value, str), "a text"),
    "list": (lambda value: isinstance(value, list), "a list"),
    "whole": (_is_whole, "a whole number"),
    "size": (_is_size, "a whole number of pixels, at least 1"),
}
