"""Pairing images with label files."""

import logging

import pytest

from eomt_d2.data.datasets.semantic_folders import load_semantic_folders
from eomt_d2.errors import UserError


@pytest.fixture
def tree(tmp_path):
    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


def test_pairs_by_path_below_the_roots(tree):
    root = tree("x/b.jpg", "x/a/b.jpg", "x/a/c.jpg", "y/b.png", "y/a/b.png", "y/a/c.png")
    assert load_semantic_folders(root / "x", root / "y") == [
        {"file_name": str(root / f"x/{p}.jpg"), "sem_seg_file_name": str(root / f"y/{p}.png")}
        for p in ("a/b", "a/c", "b")
    ]


def test_suffixes_may_be_more_than_the_extension(tree):
    """One folder for both, as Cityscapes' names allow."""
    root = tree("u/1_leftImg8bit.png", "u/1_gtFine_labelTrainIds.png", "u/1_gtFine_color.png")
    (record,) = load_semantic_folders(
        root, root, image_suffix="_leftImg8bit.png", label_suffix="_gtFine_labelTrainIds.png"
    )
    assert record["file_name"].endswith("u/1_leftImg8bit.png")
    assert record["sem_seg_file_name"].endswith("u/1_gtFine_labelTrainIds.png")


def test_files_without_partner_are_left_out_and_counted(tree, caplog):
    root = tree("x/a.jpg", "x/b.jpg", "x/c.jpg", "y/b.png", "y/d.png")
    with caplog.at_level(logging.WARNING, logger="eomt_d2"):
        records = load_semantic_folders(root / "x", root / "y")
    assert [record["file_name"] for record in records] == [str(root / "x/b.jpg")]
    assert "3 files" in caplog.text


def test_no_pair(tree):
    root = tree("x/a.jpg", "y/a.tif")
    with pytest.raises(UserError, match=r"No image '\*.jpg' of .* has a label '\*.png'"):
        load_semantic_folders(root / "x", root / "y")


def test_missing_folder(tree):
    root = tree("x/a.jpg")
    with pytest.raises(UserError, match="y' does not exist"):
        load_semantic_folders(root / "x", root / "y")
