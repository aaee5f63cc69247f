"""Reading weight files of any of the usual kinds without executing code from them."""

import json
import os
import pickle
import re
import tarfile
import types
import zipfile
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from eomt_d2.errors import UserError

__all__ = ["Placeholder", "read_weights", "shards_of", "state_dict_of"]

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


# What PyTorch itself names in a file of tensors.
_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_REBUILDERS = ("tensor", "tensor_v2", "parameter", "parameter_with_state")
_TORCH_GLOBALS = {
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.storage", "UntypedStorage"),
    ("torch.storage", "TypedStorage"),
    *(("torch", f"{kind}Storage") for kind in _STORAGES),
    *(("torch._utils", f"_rebuild_{kind}") for kind in _REBUILDERS),
}


class Placeholder:
    """Stands for an object of a class that is not looked up, since that could execute code."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "Placeholder":
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """What unpickling calls for a subclass of list."""

    def extend(self, values: Any) -> None:
        """The same, for several values."""

    def add(self, value: Any) -> None:
        """What unpickling calls for a subclass of set."""


def read_weights(path: str) -> dict[str, Any]:
    """Read a weight file or a checkpoint, onto the CPU.

    ``.safetensors`` holds tensors only. ``.pkl`` is read by an unpickler that knows NumPy arrays
    and nothing else, ``.index.json`` names the parts of split weights, and every other ending is
    read by :func:`torch.load` with ``weights_only=True``. Where that refuses, because objects such
    as hyperparameters lie beside the tensors (Lightning), these become a :class:`Placeholder`.

    Args:
        path: a local file.

    Returns:
        The dict that the file holds.

    Raises:
        UserError: if the file is damaged, holds objects in place of numbers, or no dict.
    """
    try:
        if path.endswith(".index.json"):
            return {k: v for shard in shards_of(path) for k, v in read_weights(shard).items()}
        if path.endswith(".safetensors"):
            return load_file(path)
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                content = _ArrayUnpickler(file).load()
        else:
            content = _load_torch(path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_reason(path, str(error))) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} and not a dict of weights.")
    return content


def state_dict_of(content: dict[str, Any], path: str) -> dict[str, Any]:
    """The state dict in a checkpoint of this project, Detectron2, pycls or Lightning, or itself.

    Args:
        content: of a file.
        path: of that file, for messages.

    Returns:
        Tensors, or NumPy arrays, by name.

    Raises:
        UserError: if there is anything else in it.
    """
    keys = [key for key in ("model", "model_state", "state_dict") if key in content]
    weights = content[keys[0]] if keys else content
    if not isinstance(weights, dict):
        raise UserError(f"{path} holds a {type(weights).__name__} in place of a state dict.")
    for name, value in weights.items():
        problem = ""
        if not isinstance(name, str):
            problem = f"has a {type(name).__name__} for a name"
        elif not isinstance(value, Tensor | np.ndarray):
            problem = f"is a {type(value).__name__} and no tensor"
        if problem:
            raise UserError(
                f"{path} holds no plain state dict: its entry {name!r} {problem}; save the model's "
                "state_dict() alone."
            )
    return weights


def shards_of(index: str) -> list[str]:
    """Paths of the parts of split weights, which lie beside their ``.index.json``.

    Raises:
        UserError: if the index names files elsewhere, or is none.
    """
    try:
        with open(index) as file:
            names = sorted(set(json.load(file)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of split weights.") from error
    for name in names:
        if not isinstance(name, str) or os.path.basename(name) != name or name.endswith(".json"):
            raise UserError(f"{index} names the part {name!r}, which is no file beside it.")
    return [os.path.join(os.path.dirname(index), name) for name in names]


def _load_torch(path: str) -> Any:
    _refuse_tar(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # Only the format of today is worth the effort.
        if not zipfile.is_zipfile(path):
            raise
    module = types.ModuleType("tensors_only")
    module.Unpickler = _TensorUnpickler
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=module)


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


class _TensorUnpickler(pickle.Unpickler):
    """Knows what tensors are made of; anything else becomes a placeholder."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TORCH_GLOBALS or (module, name) in _PICKLE_GLOBALS:
            return super().find_class(module, name)
        return Placeholder
