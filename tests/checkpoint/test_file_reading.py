import argparse
import collections
import enum
import functools
import json
import pathlib
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eomt_d2.checkpoint.file_reading import read_weights, state_dict_of
from eomt_d2.checkpoint.unpickling import Placeholder
from eomt_d2.errors import UserError

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1, 2])}


class Attack:
    """Creates a file when it is unpickled carelessly."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return open, (str(self.victim), "w")


def test_pth(tmp_path):
    path = str(tmp_path / "w.pth")
    torch.save({"model": WEIGHTS, "iteration": 7}, path)
    content = read_weights(path)
    assert content["iteration"] == 7
    torch.testing.assert_close(content["model"], WEIGHTS, rtol=0, atol=0)


def test_safetensors(tmp_path):
    path = str(tmp_path / "w.safetensors")
    save_file(WEIGHTS, path)
    torch.testing.assert_close(read_weights(path), WEIGHTS, rtol=0, atol=0)


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickled_arrays(tmp_path, protocol):
    path = tmp_path / "w.pkl"
    content = {"model": {"w": np.arange(3.0)}, "n": np.float32(2), "__author__": "someone"}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_weights(str(path))
    assert read["model"]["w"].tolist() == [0, 1, 2]
    assert read["n"] == 2


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".ckpt"])
def test_objects_in_torch_files_are_never_made(tmp_path, suffix):
    path, victim = str(tmp_path / f"w{suffix}"), tmp_path / "victim"
    torch.save({"state_dict": WEIGHTS, "callbacks": [Attack(victim)]}, path)
    content = read_weights(path)
    assert not victim.exists()
    assert isinstance(content["callbacks"][0], Placeholder)
    torch.testing.assert_close(content["state_dict"], WEIGHTS, rtol=0, atol=0)


def test_objects_among_the_weights_are_refused(tmp_path):
    path, victim = str(tmp_path / "w.pth"), tmp_path / "victim"
    torch.save({"model": {"a": Attack(victim)}}, path)
    with pytest.raises(UserError, match="its entry 'a' is a Placeholder and no tensor"):
        state_dict_of(read_weights(path), path)
    torch.save(Attack(victim), path)
    with pytest.raises(UserError, match="holds a Placeholder and not a dict"):
        read_weights(path)
    assert not victim.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_in_pickles_and_older_torch_files_are_refused(tmp_path, zipped):
    path, victim = tmp_path / ("w.pkl" if zipped else "w.pth"), tmp_path / "victim"
    if zipped:
        path.write_bytes(pickle.dumps({"model": Attack(victim)}))
    else:
        torch.save({"model": Attack(victim)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"holds a _?io.open.*could execute code"):
        read_weights(str(path))
    assert not victim.exists()


class Settings(dict):
    """A class of Lightning's kind: a dict with a state of its own."""


class Tags(set):
    """Rebuilt by adding members."""


class Kind(enum.Enum):
    LARGE = "large"


def test_lightning_keeps_many_kinds_of_objects(tmp_path):
    """Everything pickle can do to rebuild an object: state, items, keyword arguments, sets."""
    settings = Settings(lr=1e-4)
    settings.extra = argparse.Namespace(seed=1)
    objects = {
        "hyper_parameters": settings,
        "kind": Kind.LARGE,
        "partial": functools.partial(int, base=2),
        "counter": collections.Counter("aab"),
        "deque": collections.deque([1, 2]),
        "path": pathlib.PurePosixPath("a/b"),
        "set": Tags({"a"}),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    path = str(tmp_path / "last.ckpt")
    torch.save({"state_dict": WEIGHTS, **objects}, path)
    content = read_weights(path)
    torch.testing.assert_close(content["state_dict"], WEIGHTS, rtol=0, atol=0)
    assert isinstance(content["hyper_parameters"], Placeholder)
    assert content["half"].dtype == torch.bfloat16


def test_split_weights(tmp_path):
    names = {"a.weight": "model-1.safetensors", "a.bias": "model-2.safetensors"}
    for name, file in names.items():
        save_file({name: WEIGHTS[name]}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    torch.testing.assert_close(read_weights(str(index)), WEIGHTS, rtol=0, atol=0)


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[1]",
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": ".."}}',
        '{"weight_map": {"a": "../secret.bin"}}',
        '{"weight_map": {"a": "/secret.bin"}}',
    ],
)
def test_an_index_that_names_no_parts_beside_it(tmp_path, content):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(UserError, match="no index of split weights|no file beside it"):
        read_weights(str(index))


def test_an_index_without_its_parts(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(UserError, match=r"1 of the 1 parts .* are missing \(gone.safetensors\)"):
        read_weights(str(index))


def test_text_among_the_weights_is_refused():
    with pytest.raises(UserError, match="its entry 'a' is an array of <U1 and no tensor"):
        state_dict_of({"a": np.array(["x"])}, "w.pkl")


def test_the_oldest_format_of_pytorch_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "storages")
    with pytest.raises(UserError, match="oldest file format"):
        read_weights(str(path))


def test_programs_are_refused(tmp_path):
    """PyTorch before 2.6 runs them even where only weights are asked for."""
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"w/{name}", pickle.dumps({}))
        archive.writestr("w/version", "3\n")
    with pytest.raises(UserError, match="w.pth is a TorchScript program and no weight file"):
        read_weights(str(path))


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello"])
def test_what_is_no_weight_file(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"w{suffix} is damaged or no weight file") as caught:
        read_weights(str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_file(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        read_weights(str(path))


def test_a_file_without_names(tmp_path):
    path = tmp_path / "w.pth"
    torch.save([torch.ones(1)], path)
    with pytest.raises(UserError, match="holds a list and not a dict"):
        read_weights(str(path))
