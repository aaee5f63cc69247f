"""Pickles written opcode by opcode, as an attacker would, and those of the real libraries."""

import io
import pickle
import pickletools
import struct
import zipfile

import numpy as np
import pytest
import torch

from eomt_d2.checkpoint.file_reading import read_weights
from eomt_d2.checkpoint.unpickling import ArrayUnpickler, ForbiddenError, TensorUnpickler
from eomt_d2.errors import UserError

START, STOP, MARK, NONE, FALSE = b"\x80\x04", b".", b"(", b"N", b"\x89"
CALL, SET_STATE, NEW_WITH_KEYWORDS = b"R", b"b", b"\x92"


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def tuple_of(*items):
    return MARK + b"".join(items) + b"t"


def dict_of(key, value):
    return b"}" + text(key) + value + b"s"


def bytes_of(value):
    return named("_codecs", "encode") + tuple_of(text(value), text("latin1")) + CALL


def data_type(code, *state):
    made = named("numpy", "dtype") + tuple_of(text(code), number(0), number(1)) + CALL
    return made + tuple_of(number(3), text("|"), *state) + SET_STATE


def file_of(tmp_path, pickled):
    """A file of PyTorch's present format; the unknown class leads to our own unpickler."""
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", START + named("evil", "Thing") + b"0" + pickled + STOP)
        archive.writestr("w/version", "3\n")
        archive.writestr("w/data/0", b"")
    return str(path)


# A class for native code's address, and others that a pickle may not change for everybody.
FIELDS = dict_of("a", tuple_of(data_type("O8", NONE, NONE, NONE), number(0)))
ATTACKS = {
    "an allocator's address": named("torch.storage", "UntypedStorage")
    + b")"
    + dict_of("allocator", number(0x41414141))
    + NEW_WITH_KEYWORDS,
    "defaults of a function of PyTorch": named("torch._utils", "_rebuild_tensor_v2")
    + tuple_of(NONE, dict_of("__defaults__", tuple_of(text("x"))))
    + SET_STATE,
    "an attribute of a class of PyTorch": named("torch.storage", "TypedStorage")
    + tuple_of(NONE, dict_of("tolist", NONE))
    + SET_STATE,
    "bytes that are pointers": named("numpy.core.multiarray", "_reconstruct")
    + tuple_of(named("numpy", "ndarray"), tuple_of(number(0)), bytes_of("b"))
    + CALL
    + tuple_of(
        number(1),
        tuple_of(number(1)),
        data_type("V8", NONE, tuple_of(text("a")), FIELDS, number(8), number(1), number(0)),
        FALSE,
        bytes_of("AAAAAAAA"),
    )
    + SET_STATE,
    "an array of any size": named("numpy", "ndarray") + tuple_of(tuple_of(number(2**30))) + CALL,
    "another encoding": named("_codecs", "encode") + tuple_of(text("x"), text("zlib")) + CALL,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_of_another_library_can_be_called_or_changed(tmp_path, attack):
    """Each of them crashed the process, or changed PyTorch, with the libraries' own objects."""
    function, method = torch._utils._rebuild_tensor_v2, torch.storage.TypedStorage.tolist
    defaults = function.__defaults__
    with pytest.raises(UserError, match="is damaged or no weight file"):
        read_weights(file_of(tmp_path, ATTACKS[attack]))
    assert function.__defaults__ is defaults
    assert torch.storage.TypedStorage.tolist is method


@pytest.mark.parametrize("unpickler", [ArrayUnpickler, TensorUnpickler])
def test_pointers_in_a_pickle_of_arrays(unpickler):
    pickled = START + ATTACKS["bytes that are pointers"] + STOP
    pickletools.dis(pickled, out=io.StringIO())  # raises if the opcodes are not in order
    with pytest.raises(pickle.UnpicklingError, match="type 'V8' are not read"):
        unpickler(io.BytesIO(pickled)).load()


def test_arrays_of_objects():
    pickled = pickle.dumps({"w": np.array([None])})
    with pytest.raises(pickle.UnpicklingError, match="type 'O8' are not read"):
        ArrayUnpickler(io.BytesIO(pickled)).load()


def test_what_is_forbidden_has_a_name():
    with pytest.raises(ForbiddenError) as caught:
        ArrayUnpickler(io.BytesIO(pickle.dumps(pickle.loads))).load()
    assert caught.value.name == "_pickle.loads"


def test_attributes_do_not_hide_the_methods_of_a_dict(tmp_path):
    pickled = named("collections", "OrderedDict") + b")" + CALL
    pickled += dict_of("items", named("evil", "Thing") + b")" + CALL) + SET_STATE
    assert list(read_weights(file_of(tmp_path, pickled)).items()) == []


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(6.0).reshape(2, 3).T,
        np.arange(3, dtype=">f4"),
        np.array([True, False]),
        np.array(2.0, dtype=np.float16),
        np.array(["a", "bc"]),
    ],
    ids=["rows", "columns", "big-endian", "bool", "scalar", "text"],
)
def test_arrays_of_every_protocol(array, protocol):
    pickled = pickle.dumps({"w": array, "number": np.float64(0.5)}, protocol=protocol)
    read = ArrayUnpickler(io.BytesIO(pickled)).load()
    np.testing.assert_array_equal(read["w"], array)
    assert read["w"].dtype == array.dtype.newbyteorder("=")
    assert read["number"] == 0.5


def test_tensors_beside_objects_are_read_as_pytorch_reads_them(tmp_path):
    class_of_its_own = type("Settings", (), {"__module__": __name__})
    globals()["Settings"] = class_of_its_own
    matrix = torch.arange(12.0).reshape(3, 4)
    content = {
        "whole": matrix,
        "part": matrix[1:, ::2],
        "turned": matrix.T,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "counter": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    path = str(tmp_path / "w.ckpt")
    torch.save({**content, "settings": class_of_its_own()}, path)
    read = read_weights(path)
    del read["settings"]
    torch.testing.assert_close(read, content, rtol=0, atol=0, check_stride=True)
    assert read["part"].data_ptr() == read["whole"].data_ptr() + 16
