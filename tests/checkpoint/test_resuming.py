import logging

import pytest
import torch
from detectron2.utils import comm

from eomt_d2.checkpoint.resuming import check_same_path, newest_readable
from eomt_d2.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Checkpoints after iterations 2, 5 and 8; the last one is tagged by its path."""
    for iteration in (2, 5, 8):
        content = {"model": {"weight": torch.full((50,), iteration)}}
        torch.save(content, tmp_path / f"model_{iteration:07d}.pth")
    return tmp_path


def resume(folder, last="model_0000008.pth"):
    path, content = newest_readable(str(folder), str(folder / last))
    return path.removeprefix(f"{folder}/"), content["model"]["weight"][0].item()


def test_the_last_one_is_taken(folder, caplog):
    assert resume(folder) == ("model_0000008.pth", 8)
    # Also where a newer one exists: the tag decides.
    assert resume(folder, "model_0000005.pth") == ("model_0000005.pth", 5)
    assert not caplog.records


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_truncated_file_is_passed_over(folder, caplog, size):
    path = folder / "model_0000008.pth"
    path.write_bytes(path.read_bytes()[:size])
    with caplog.at_level(logging.WARNING):
        assert resume(folder) == ("model_0000005.pth", 5)
    assert f"{path} is damaged or no weight file" in caplog.text
    assert f"The training resumes from {folder}/model_0000005.pth." in caplog.text


def test_missing_and_damaged_files_in_a_row(folder, caplog):
    (folder / "model_0000008.pth").write_bytes(b"")
    (folder / "model_0000005.pth").write_bytes(b"PK\x03\x04")
    assert resume(folder, "model_final.pth") == ("model_0000002.pth", 2)
    assert f"{folder}/model_final.pth is missing." in caplog.text


def test_nothing_readable_is_an_error_that_names_all(folder):
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="No checkpoint in .*0000008.*0000005.*leave --resume out"):
        resume(folder)


def test_a_file_that_is_not_safe_is_not_passed_over(folder):
    path = folder / "model_0000008.pth"
    torch.save({"hook": print}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="reading it could execute code"):
        resume(folder)


def test_all_processes_pass_over_what_one_cannot_read(folder, monkeypatch):
    damaged = str(folder / "model_0000008.pth")

    def gather(own):
        path = own[0]
        return [own, (path, "Cut short on another machine." if path == damaged else "")]

    monkeypatch.setattr(comm, "all_gather", gather)
    assert resume(folder) == ("model_0000005.pth", 5)


def test_processes_that_see_different_files(folder, monkeypatch):
    monkeypatch.setattr(comm, "all_gather", lambda own: [own, ("", "")])
    with pytest.raises(UserError, match="rank 1 nothing; .* OUTPUT_DIR must be a folder"):
        resume(folder)
    check_same_path(["a", "a"])
