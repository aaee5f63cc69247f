"""The command line of make_shapes.py; what it makes is tested in tests/data/datasets."""

import numpy as np
import pytest
from PIL import Image

from eomt_d2.data.datasets.shapes import scene_of

SMALL = ("--train", 2, "--val", 7, "--workers", 1)


def test_makes_the_data_set_where_it_is_looked_for(run_script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    run_script("make_shapes", *SMALL, "--seed", 4, "--size", 160)
    assert str(tmp_path / "shapes") in capsys.readouterr().out
    image = np.asarray(Image.open(tmp_path / "shapes" / "val" / "000000000007.png"))
    assert (image == scene_of(4, "val", 6, 160).image).all()


def test_other_classes_have_their_own_folder(run_script, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    run_script("make_shapes", "--classes", "other_shapes", *SMALL)
    image = np.asarray(Image.open(tmp_path / "other_shapes" / "val" / "000000000007.png"))
    assert (image == scene_of(0, "val", 6, 128, "other_shapes").image).all()


def test_contact_sheet_shows_images_beside_their_segments(run_script, tmp_path):
    folder, sheet = tmp_path / "a", tmp_path / "new" / "sheet.png"
    run_script("make_shapes", "--output", folder, *SMALL, "--preview", sheet)
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape == (2 * 128, 6 * 256, 3)  # 7 pairs in rows of 6
    seventh = pixels[128:, :256]
    for part, kind in ((seventh[:, :128], "val"), (seventh[:, 128:], "panoptic_val")):
        assert (part == np.asarray(Image.open(folder / kind / "000000000007.png"))).all()


def test_a_mistake_is_one_sentence_and_exit_code_2(run_script, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        run_script("make_shapes", "--output", tmp_path, "--size", 64)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "64; use 128 or more" in error
