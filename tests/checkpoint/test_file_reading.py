import argparse
import pickle
import tarfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eomt_d2.checkpoint.file_reading import read_weights
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


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".bin"])
def test_no_file_executes_code(tmp_path, suffix):
    path, victim = tmp_path / f"w{suffix}", tmp_path / "victim"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": Attack(victim)}))
    else:
        torch.save({"model": Attack(victim)}, path)
    with pytest.raises(UserError, match=rf"w{suffix} holds a _?io.open.*could execute code"):
        read_weights(str(path))
    assert not victim.exists()


def test_an_object_beside_the_weights_is_named(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"model": WEIGHTS, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(UserError, match="holds a argparse.Namespace beside its weights"):
        read_weights(str(path))


def test_the_oldest_format_of_pytorch_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "storages")
    with pytest.raises(UserError, match="oldest file format"):
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
