"""Unpicklers that make numbers and containers, and nothing else.

A pickle can call whatever it can name, with any arguments, and set any attribute of it. Even parts
of tensors are dangerous in such hands: a storage of PyTorch takes the address of native code as an
argument, a data type of NumPy decides whether bytes are pointers, and changed defaults of one of
their functions stay changed. So no class or function of another library is ever named here; the
tables hold stand-ins that check what they are given and cannot be changed.
"""

import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.storage import TypedStorage

__all__ = ["ArrayUnpickler", "ForbiddenError", "Placeholder", "TensorUnpickler"]

# Numbers, and strings of fixed length: data types without pointers.
_PLAIN_TYPE = re.compile(r"[biufcSU]\d+")


class ForbiddenError(pickle.UnpicklingError):
    """A pickle names something that is neither numbers nor a container.

    Args:
        name: what it names, such as ``os.system``.
    """

    def __init__(self, name: str):
        super().__init__(f"It holds a {name}.")
        self.name = name


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


class _Function:
    """A function that a pickle can call but not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("A function cannot have a state.")


class _Dict(dict):
    """An OrderedDict without its attributes, which could hide its methods."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _DataType:
    """A NumPy data type in the making: its code, and then, as its state, the byte order."""

    __slots__ = ("value",)

    def __init__(self, code: str, *_: Any):
        if not _PLAIN_TYPE.fullmatch(code):
            raise pickle.UnpicklingError(f"Arrays of type {code!r} are not read.")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.value = self.value.newbyteorder(state[1])


class _Array(np.ndarray):
    """A NumPy array in the making: first empty, then filled by its state."""

    __slots__ = ()

    def __setstate__(self, state: tuple) -> None:
        _, shape, data_type, column_major, data = state
        if isinstance(data, str):  # Python 2
            data = data.encode("latin1")
        values = _values(data, data_type)
        super().__setstate__((1, shape, values.dtype, bool(column_major), values.tobytes()))


def _values(data: bytes, data_type: _DataType) -> np.ndarray:
    """A copy in this machine's byte order."""
    values = np.frombuffer(data, data_type.value)
    return values.astype(values.dtype.newbyteorder("="))


def _empty_array(*_: Any) -> np.ndarray:
    return np.ndarray.__new__(_Array, (0,), np.uint8)


def _array(data: bytes, data_type: _DataType, shape: tuple[int, ...], order: str) -> np.ndarray:
    return _values(data, data_type).reshape(shape, order="F" if order == "F" else "C")


def _scalar(data_type: _DataType, data: bytes | str) -> Any:
    if isinstance(data, str):
        data = data.encode("latin1")
    return np.frombuffer(data, data_type.value, count=1)[0]


def _encode(text: str, encoding: str) -> bytes:
    """How protocols before 3 write bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"The encoding {encoding!r} is not one of bytes.")
    return text.encode("latin1")


def _tensor(storage: TypedStorage, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    if not isinstance(storage, TypedStorage):
        raise pickle.UnpicklingError(f"A tensor cannot be made of a {type(storage).__name__}.")
    # PyTorch checks that the tensor lies within the storage.
    return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage, offset, size, stride)


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


class _RawStorage:
    """For PyTorch, which asks the class of a storage for the type of its elements."""

    __slots__ = ()
    dtype = torch.uint8

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("A class cannot have a state.")


# What a pickle of NumPy arrays (Detectron2's model zoo) names, in NumPy 1 and 2.
_ARRAYS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("_codecs", "encode"): _Function(_encode),
    ("numpy", "dtype"): _Function(_DataType),
    ("numpy", "ndarray"): object(),  # only names the kind of an empty array
}
for _core in ("core", "_core"):
    _ARRAYS |= {
        (f"numpy.{_core}.multiarray", "_reconstruct"): _Function(_empty_array),
        (f"numpy.{_core}.multiarray", "scalar"): _Function(_scalar),
        (f"numpy.{_core}.numeric", "_frombuffer"): _Function(_array),
    }

# What PyTorch itself names in a file of tensors, but for storages, which it looks up itself.
_TENSORS: dict[tuple[str, str], Any] = {
    **_ARRAYS,
    ("torch.storage", "UntypedStorage"): _RawStorage(),
    ("torch._utils", "_rebuild_tensor"): _Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_parameter),
}


class ArrayUnpickler(pickle.Unpickler):
    """Knows NumPy arrays; :class:`ForbiddenError` on anything else."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for what a pickle names."""
        if (module, name) not in _ARRAYS:
            raise ForbiddenError(f"{module}.{name}")
        return _ARRAYS[module, name]


class TensorUnpickler(pickle.Unpickler):
    """Knows what tensors are made of; anything else becomes a :class:`Placeholder`.

    For :func:`torch.load`, which adds the storages.
    """

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for what a pickle names."""
        return _TENSORS.get((module, name), Placeholder)
