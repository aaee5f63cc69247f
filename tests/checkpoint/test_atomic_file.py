import pytest

from eomt_d2.checkpoint.atomic_file import AtomicFile


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
