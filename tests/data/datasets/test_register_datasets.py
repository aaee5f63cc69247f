"""register_datasets as a whole: when it acts, and beside the official mask2former package."""

import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from eomt_d2.data.datasets import register_datasets

IMPORT_OURS_THEN_THEIRS = """
from detectron2.data import DatasetCatalog
before = set(DatasetCatalog.list())
import eomt_d2, eomt_d2.data, eomt_d2.data.datasets
assert set(DatasetCatalog.list()) == before, set(DatasetCatalog.list()) - before
DatasetCatalog.register("ade20k_panoptic_train", lambda: ["theirs"])
eomt_d2.data.datasets.register_datasets()
assert DatasetCatalog.get("ade20k_panoptic_train") == ["theirs"]
assert "ade20k_panoptic_val" in DatasetCatalog.list()
"""


def test_importing_registers_nothing_so_others_can_register_later():
    command = [sys.executable, "-W", "ignore", "-c", IMPORT_OURS_THEN_THEIRS]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])


@pytest.mark.parametrize("value", ["/somewhere/else", None])
def test_root_is_detectron2_datasets(catalogs, monkeypatch, value):
    if value is None:
        monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    else:
        monkeypatch.setenv("DETECTRON2_DATASETS", value)
    register_datasets()
    metadata = MetadataCatalog.get("shapes_val_panoptic")
    assert metadata.image_root == f"{value or 'datasets'}/shapes/val"


def test_calling_it_again_changes_nothing(catalogs):
    register_datasets()
    functions = {name: DatasetCatalog[name] for name in DatasetCatalog}
    register_datasets()
    assert {name: DatasetCatalog[name] for name in DatasetCatalog} == functions
