"""Reading weight files of any of the usual kinds without executing code from them."""

import json
import os
import pickle
import re
import tarfile
import types
import zipfile
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from eomt_d2.errors import UserError

from .unpickling import ArrayUnpickler, ForbiddenError, TensorUnpickler

__all__ = ["DamagedFileError", "read_weights", "shards_of", "state_dict_of"]

# How a zip file begins, for PyTorch.
_ZIP = b"PK\x03\x04"


class DamagedFileError(UserError):
    """A file that is cut short or otherwise damaged, or is no weight file at all."""


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
        DamagedFileError: if the file is damaged.
        UserError: if it holds objects in place of numbers, or no dict.
    """
    try:
        if path.endswith(".index.json"):
            return _read_shards(path)
        if path.endswith(".safetensors"):
            return load_file(path)
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                # Files of Python 2 are common among these.
                content = ArrayUnpickler(file, encoding="latin1").load()
        else:
            content = _load_torch(path)
    except UserError:
        raise
    except ForbiddenError as error:
        raise UserError(_forbidden(path, error.name)) from error
    except Exception as error:
        raise _explanation(path, str(error)) from error
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
        elif isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
            problem = f"is an array of {value.dtype} and no tensor"
        if problem:
            raise UserError(
                f"{path} holds no plain state dict: its entry {name!r} {problem}; save the model's "
                "state_dict() alone."
            )
    return weights


def shards_of(index: str) -> list[str]:
    """Paths of the parts of split weights, which lie beside their ``.index.json``.

    Raises:
        UserError: if the index names files elsewhere or nothing, or is none.
    """
    try:
        with open(index) as file:
            names = sorted(set(json.load(file)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of split weights.") from error
    if not names:
        raise UserError(f"{index} is no index of split weights: its weight_map is empty.")
    for name in names:
        if (
            name == ".."
            or not isinstance(name, str)
            or os.path.basename(name) != name
            or name.endswith(".json")
        ):
            raise UserError(f"{index} names the part {name!r}, which is no file beside it.")
    return [os.path.join(os.path.dirname(index), name) for name in names]


def _read_shards(index: str) -> dict[str, Any]:
    shards = shards_of(index)
    lacking = [os.path.basename(shard) for shard in shards if not os.path.isfile(shard)]
    if lacking:
        raise UserError(
            f"{len(lacking)} of the {len(shards)} parts that {index} names are missing "
            f"({', '.join(lacking[:3])}): put them into its folder."
        )
    return {name: value for shard in shards for name, value in read_weights(shard).items()}


def _load_torch(path: str) -> Any:
    with open(path, "rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP
    _refuse_programs(path, is_zip)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # Only the format of today is worth the effort.
        if not is_zip:
            raise
    module = types.ModuleType("tensors_only")
    module.Unpickler = TensorUnpickler
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=module)


def _explanation(path: str, message: str) -> UserError:
    # PyTorch's message advises to switch its safety off; only the name in it is of use.
    name = re.search(r"GLOBAL ([\w.]+)", message)
    if name:
        return UserError(_forbidden(path, name[1]))
    first = re.split(r"\. |\n", message.strip())[0]
    return DamagedFileError(f"{path} is damaged or no weight file{f' ({first})' if first else ''}.")


def _forbidden(path: str, name: str) -> str:
    return (
        f"{path} holds a {name} beside its weights; reading it could execute code, so it is not "
        f"read. Where you trust the file, save its weights alone under another name."
    )


def _refuse_programs(path: str, is_zip: bool) -> None:
    # Before 2.6, PyTorch executed code from both kinds of files even with weights_only
    # (CVE-2025-32434); newer releases refuse them, with advice to switch the safety off.
    if tarfile.is_tarfile(path):
        raise UserError(
            f"{path} is in PyTorch's oldest file format (tar), which is not safe to read; load and "
            f"save it again with a PyTorch you trust it to."
        )
    # PyTorch writes no compressed parts but reads them: a small file could fill the memory.
    if is_zip and any(part.compress_type for part in zipfile.ZipFile(path).infolist()):
        raise UserError(
            f"{path} is a compressed archive, which PyTorch does not write; unpack it, or load and "
            "save it again with a PyTorch you trust it to."
        )
    # PyTorch's own reader, since another one could see other names in a crafted file.
    names = torch._C.PyTorchFileReader(path).get_all_records() if is_zip else []
    if "constants.pkl" in names:
        raise UserError(
            f"{path} is a TorchScript program and no weight file; where you trust it, save the "
            "state_dict() of what torch.jit.load makes of it."
        )
