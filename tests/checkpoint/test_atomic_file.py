import os
import stat

import pytest

from eomt_d2.checkpoint.atomic_file import AtomicFile, remove_leftovers


def test_an_older_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(b"old")
    with AtomicFile(str(path)) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_failure_leaves_no_trace(tmp_path):
    path = tmp_path / "w.pth"
    with pytest.raises(OSError, match="full"), AtomicFile(str(path)) as file:
        file.write(b"half")
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_removed(tmp_path):
    for name in ("model_final.pth", "model_final.pth.77.tmp", "last_checkpoint.8.tmp", "my.tmp"):
        (tmp_path / name).touch()
    assert remove_leftovers(str(tmp_path)) == ["last_checkpoint.8.tmp", "model_final.pth.77.tmp"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model_final.pth", "my.tmp"]
    assert remove_leftovers(str(tmp_path / "nowhere")) == []


def test_the_name_survives_a_loss_of_power(tmp_path, monkeypatch):
    """File first, then its name in the folder, as fsync(2) asks for."""
    flushed = []
    plain_fsync = os.fsync

    def fsync(descriptor):
        names = sorted(path.name for path in tmp_path.iterdir())
        flushed.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), "w.pth" in names))
        plain_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with AtomicFile(str(tmp_path / "w.pth")) as file:
        file.write(b"new")
    assert flushed == [(False, False), (True, True)]
