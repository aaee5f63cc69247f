"""docs/model_zoo.md: its tables list every config and say what the configs say."""

import re
from typing import NamedTuple

import pytest
from detectron2.config import get_cfg

from eomt_d2.config import add_eomt_config
from tests.configs.published import ROOT, leaves

DOCUMENT = ROOT.parent / "docs" / "model_zoo.md"
NOT_PUBLISHED = ("shapes/", "fine_tuning/", "coco/panoptic/overfit")


class Row(NamedTuple):
    """The cells of a table's line, without their back ticks."""

    label: str
    path: str
    result: str
    parameters: str
    gmac: str
    backbone: str
    weights: str


def rows() -> list[Row]:
    lines = [line for line in DOCUMENT.read_text().splitlines() if "](../configs/" in line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [
        Row(*re.findall(r"^\[`(.+)`\]\(\.\./(.+)\)$", link)[0], *(c.replace("`", "") for c in rest))
        for link, *rest in cells
    ]


ROWS = {row.path: row for row in rows()}


def test_every_published_config_is_in_one_row():
    paths = [path.relative_to(ROOT).as_posix() for path in leaves()]
    wanted = {f"configs/{path}" for path in paths if not path.startswith(NOT_PUBLISHED)}
    listed = [row.path for row in rows()]
    assert len(listed) == len(set(listed))
    assert set(listed) == wanted


def _backbone(cfg) -> str:
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone":
        return f"ResNet-{cfg.MODEL.RESNETS.DEPTH}"
    return cfg.MODEL.VIT.NAME


@pytest.mark.parametrize("path", ROWS)
def test_a_row_says_what_its_config_says(path):
    row = ROWS[path]
    text = (ROOT.parent / path).read_text()
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.merge_from_file(str(ROOT.parent / path))

    assert path.endswith(f"/{row.label}.yaml")
    assert re.findall(r"^# Published: (?:PQ|mask AP|mIoU) ([\d.]+) on ", text, re.M) == (
        [row.result] if row.result else []
    )
    assert re.findall(r"^# Cost: ([\d.]+) M parameters", text, re.M) == (
        [row.parameters] if row.parameters else []
    )
    # Where a config tells two counts, the second one is that of its masked training.
    counts = re.findall(r"(\d[\d.]*) GMAC", text)
    assert counts[:1] == ([row.gmac] if row.gmac else [])
    assert row.backbone.endswith(_backbone(cfg))


@pytest.mark.parametrize("path", ROWS)
def test_names_of_published_weights_tell_data_set_task_size_and_input(path):
    """The authors' DINOv2 names are those of the configs; DINOv3 has two names each."""
    row = ROWS[path]
    names = row.weights.split(", ") if row.weights else []
    folder = path.removeprefix("configs/").removesuffix(f"/{row.label}.yaml")
    if "dinov3" not in row.label:
        assert names in ([], [f"{folder.replace('/', '_')}_{row.label}"])
        return
    data, task = folder.replace("ade20k", "ade").split("/")
    size, side = re.match(r"eomt_([a-z]+)_(\d+)", row.label).groups()
    assert names == [
        f"{data}_{task}_eomt_{size}_{side}_dinov3",
        f"eomt-dinov3-{data}-{task}-{size}-{side}",
    ]


@pytest.mark.parametrize(
    "document", ["README.md", "docs/model_zoo.md", "docs/evaluation.md", "docs/compare.md"]
)
def test_documents_name_only_files_that_exist(document):
    path = ROOT.parent / document
    text = path.read_text()
    named = re.findall(r"\bconfigs/[\w/]+\.yaml", text)
    linked = re.findall(r"\]\(([\w./]+\.(?:md|yaml|py))(?:#[\w-]+)?\)", text)
    missing = [name for name in named if not (ROOT.parent / name).is_file()]
    missing += [link for link in linked if not (path.parent / link).is_file()]
    assert not missing


def test_commands_use_a_config_and_the_weights_of_its_row():
    pairs = re.findall(r"^CONFIG=(\S+) NAME=(\S+)$", DOCUMENT.read_text(), re.M)
    assert len(pairs) == 3
    for path, name in pairs:
        assert name in ROWS[path].weights.split(", ")
