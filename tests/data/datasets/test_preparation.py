"""Work over many files, and writing that never leaves half a file."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eomt_d2.data.datasets.preparation import (
    default_root,
    list_files,
    map_files,
    write_json,
    write_png,
)
from eomt_d2.errors import UserError


def test_default_root(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert default_root() == Path("datasets")
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    assert default_root() == Path("/data")


def test_list_files_is_sorted(tmp_path):
    for name in ("b.png", "a.png", "c.jpg"):
        (tmp_path / name).touch()
    assert [file.name for file in list_files(tmp_path, "*.png")] == ["a.png", "b.png"]


def test_list_files_names_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="no '.*png' file"):
        list_files(tmp_path, "*.png")
    with pytest.raises(UserError, match="nowhere' does not exist"):
        list_files(tmp_path / "nowhere", "*.png")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_keep_the_order_of_the_files(tmp_path, num_workers):
    files = [tmp_path / str(i) for i in range(5)]
    for i, file in enumerate(files):
        file.write_bytes(b"x" * (7 * i % 5))
    assert map_files(os.path.getsize, files, "sizes", num_workers) == [0, 2, 4, 1, 3]


def test_an_error_in_another_process_arrives(tmp_path):
    with pytest.raises(FileNotFoundError):
        map_files(os.path.getsize, [tmp_path / "no"], "sizes", 2)


def test_written_files_can_be_read_and_leave_nothing_else(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_png(tmp_path / "new" / "a.png", pixels)
    write_json(tmp_path / "new" / "a.json", {"a": [1]})
    assert (np.asarray(Image.open(tmp_path / "new" / "a.png")) == pixels).all()
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"a": [1]}
    assert sorted(os.listdir(tmp_path / "new")) == ["a.json", "a.png"]


def test_failed_writing_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())
    assert os.listdir(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "1"
