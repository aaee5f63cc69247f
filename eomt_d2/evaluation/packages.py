"""Import of the official evaluation packages at the moment they are needed."""

import importlib
from types import ModuleType

from eomt_d2.errors import UserError

__all__ = ["evaluation_module"]

_COMMANDS = {
    "pycocotools": "pip install pycocotools",
    "faster_coco_eval": "pip install faster-coco-eval",
    "panopticapi": "python tools/install_detectron2.py",
    "cityscapesscripts": "pip install cityscapesscripts",
}


def evaluation_module(name: str) -> ModuleType:
    """Import ``name``, a module of one of the packages above.

    Raises:
        UserError: the package is not installed; the message holds the command that installs it.
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise UserError(
            f"This evaluation needs the package {package}, which is not installed: run "
            f"`{_COMMANDS[package]}`."
        ) from error
