import sys

import pytest

from eomt_d2.errors import UserError
from eomt_d2.evaluation.packages import evaluation_module


def test_gives_the_official_module():
    module = evaluation_module("panopticapi.evaluation")
    assert module.__name__ == "panopticapi.evaluation"
    assert callable(module.pq_compute)


@pytest.mark.parametrize(
    "name, command",
    [
        ("panopticapi.evaluation", "python tools/install_detectron2.py"),
        ("cityscapesscripts.helpers.labels", "pip install cityscapesscripts"),
        ("faster_coco_eval", "pip install faster-coco-eval"),
    ],
)
def test_missing_package_names_the_command(monkeypatch, name, command):
    package = name.partition(".")[0]
    for loaded in [m for m in sys.modules if m.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"needs the package {package}.*run `{command}`"):
        evaluation_module(name)


def test_a_broken_import_inside_the_package_is_not_called_a_missing_package(monkeypatch):
    for loaded in [m for m in sys.modules if m.startswith("panopticapi")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ModuleNotFoundError, match="PIL.Image"):
        evaluation_module("panopticapi.evaluation")
