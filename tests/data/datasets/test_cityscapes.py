"""Cityscapes instances with Detectron2's loader of v0.6 and with that of its main branch."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin
from detectron2.data.datasets import cityscapes as detectron2_cityscapes
from PIL import Image

from eomt_d2.data.datasets import cityscapes
from eomt_d2.data.datasets.cityscapes import repair_instance_loaders

NAME = "cityscapes_fine_instance_seg_val"
FRAME = "aachen_000000_000019"
SCENE = [
    ("road", [[0, 0], [59, 0], [59, 39], [0, 39]]),
    ("car", [[4, 20], [19, 20], [19, 31], [4, 31]]),
    ("person", [[30, 20], [39, 20], [39, 31], [30, 31]]),
]


@pytest.fixture
def root(tmp_path):
    """A folder of data sets with one image of Cityscapes."""
    truth = tmp_path / "cityscapes/gtFine/val/aachen"
    images = tmp_path / "cityscapes/leftImg8bit/val/aachen"
    truth.mkdir(parents=True)
    images.mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(images / f"{FRAME}_leftImg8bit.png")
    objects = [{"label": label, "polygon": polygon} for label, polygon in SCENE]
    content = {"imgHeight": 40, "imgWidth": 60, "objects": objects}
    (truth / f"{FRAME}_gtFine_polygons.json").write_text(json.dumps(content))
    for kind in ("instanceIds", "labelIds"):  # their presence alone is looked for
        (truth / f"{FRAME}_gtFine_{kind}.png").touch()
    return tmp_path


@pytest.fixture(params=["installed", "main branch"])
def loader(request, monkeypatch, catalogs, root):
    """Detectron2's loader as installed, and with the imports that its main branch has."""
    module = detectron2_cityscapes
    if request.param == "main branch":
        text = Path(module.__file__).read_text()
        if cityscapes.INTERNAL_NAME not in text:
            text = text.replace("from cityscapesscripts.", f"from {cityscapes.INTERNAL_NAME}.")
        file = root / "cityscapes_of_main.py"
        file.write_text(text)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, file.stem, module)
        spec.loader.exec_module(module)
        monkeypatch.setattr(builtin, "load_cityscapes_instances", module.load_cityscapes_instances)
        monkeypatch.setattr(cityscapes, "cityscapes", module)
    for name in [name for name in DatasetCatalog.list() if name.startswith("cityscapes_")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    builtin.register_all_cityscapes(str(root))
    return module


def test_the_loader_of_main_fails_by_itself(loader):
    if cityscapes.INTERNAL_NAME not in Path(loader.__file__).read_text():
        assert len(DatasetCatalog.get(NAME)) == 1
        return
    with pytest.raises(ModuleNotFoundError, match="deeplearning"):
        DatasetCatalog.get(NAME)


def test_instances_are_loaded(loader):
    repair_instance_loaders()
    (entry,) = DatasetCatalog.get(NAME)
    assert (entry["height"], entry["width"]) == (40, 60)
    # Of the 8 classes, person is the first and car the third. Polygons run around the outer
    # edges of their pixels' centres + 0.5; the last object comes first.
    found = [(a["category_id"], a["bbox"], a["iscrowd"]) for a in entry["annotations"]]
    assert found == [(0, (30, 20, 40, 32), False), (2, (4, 20, 20, 32), False)]
    assert not any(name.startswith("deeplearning") for name in sys.modules)


def test_repairing_again_changes_nothing(loader):
    repair_instance_loaders()
    first = DatasetCatalog[NAME]
    repair_instance_loaders()
    assert DatasetCatalog[NAME] is first


def test_the_names_of_others_are_left_alone(loader):
    DatasetCatalog.remove(NAME)
    DatasetCatalog.register(NAME, lambda: ["theirs"])
    repair_instance_loaders()
    assert DatasetCatalog.get(NAME) == ["theirs"]
