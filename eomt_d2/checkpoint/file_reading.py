"""Reading weight files of any of the usual kinds without executing code from them."""

import pickle
import re
import tarfile
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file

from eomt_d2.errors import UserError

__all__ = ["read_weights"]

# What a pickle of NumPy arrays (Detectron2's model zoo) names, in NumPy 1 and 2.
_PICKLE_GLOBALS = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
}


def read_weights(path: str) -> dict[str, Any]:
    """Read a weight file or a checkpoint, onto the CPU.

    ``.safetensors`` holds tensors only. ``.pkl`` is read by an unpickler that knows NumPy arrays
    and nothing else, every other ending by :func:`torch.load` with ``weights_only=True``.

    Args:
        path: a local file.

    Returns:
        The dict that the file holds.

    Raises:
        UserError: if the file is damaged, holds other objects than numbers, or no dict.
    """
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                content = _ArrayUnpickler(file).load()
        else:
            _refuse_tar(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_reason(path, str(error))) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} and not a dict of weights.")
    return content


def _reason(path: str, message: str) -> str:
    # PyTorch's message advises to switch its safety off; only the name in it is of use.
    name = re.search(r"GLOBAL ([\w.]+)", message)
    if name:
        return _forbidden(path, name[1])
    first = re.split(r"\. |\n", message.strip())[0]
    return f"{path} is damaged or no weight file{f' ({first})' if first else ''}."


def _forbidden(path: str, name: str) -> str:
    return (
        f"{path} holds a {name} beside its weights; reading it could execute code, so it is not "
        f"read. Where you trust the file, save its weights alone under another name."
    )


def _refuse_tar(path: str) -> None:
    # Before 2.6, PyTorch executed code from files in its oldest format even with weights_only
    # (CVE-2025-32434); newer releases refuse that format.
    if tarfile.is_tarfile(path):
        raise UserError(
            f"{path} is in PyTorch's oldest file format (tar), which is not safe to read; load and "
            f"save it again with a PyTorch you trust it to."
        )


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO):
        # Files of Python 2 are common among these.
        super().__init__(file, encoding="latin1")
        self._path = file.name

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLE_GLOBALS:
            raise UserError(_forbidden(self._path, f"{module}.{name}"))
        return super().find_class(module, name)
