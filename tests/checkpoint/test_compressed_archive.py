"""A weight file that is small on disk and large in memory."""

import zipfile

import pytest
import torch

from eomt_d2.checkpoint.file_reading import read_weights
from eomt_d2.errors import UserError


def test_compressed_parts_are_refused(tmp_path):
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({"weight": torch.zeros(1_000_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        for part in source.infolist():
            file.writestr(part.filename, source.read(part.filename))
    assert bomb.stat().st_size < plain.stat().st_size / 500
    # PyTorch itself would read it.
    assert torch.load(bomb, weights_only=True)["weight"].shape == (1_000_000,)
    with pytest.raises(UserError, match="bomb.pth is a compressed archive"):
        read_weights(str(bomb))
    assert read_weights(str(plain))["weight"].shape == (1_000_000,)
