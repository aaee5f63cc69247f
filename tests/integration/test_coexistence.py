"""Beside the official ``mask2former`` package, imported before or after ours: one process, the
registries and catalogs of Detectron2, and one config with the keys of both."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from eomt_d2.config import add_eomt_config, missing_keys
from eomt_d2.engine import Trainer, load_config
from eomt_d2.errors import UserError
from eomt_d2.evaluation import evaluated_tasks
from tests.integration import official_mask2former as official

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = "import eomt_d2"
THEIRS = "from tests.integration import official_mask2former; official_mask2former.register()"
REPORT = """
import json
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from eomt_d2.data.datasets import register_datasets
before = DatasetCatalog.list()
register_datasets()
registries = META_ARCH_REGISTRY, BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY
print(json.dumps({
    "modules": {name: value.__module__ for registry in registries for name, value in registry},
    "by_import": before,
    "by_set_up": DatasetCatalog.list(),
    "owners": {name: MetadataCatalog.get(name).get("owner") for name in DatasetCatalog.list()},
}))
"""


@pytest.mark.parametrize("imports", [(OURS, THEIRS), (THEIRS, OURS)], ids=["after", "before"])
def test_their_package_is_imported_before_or_after_ours(imports):
    command = [sys.executable, "-W", "ignore", "-c", "\n".join((*imports, REPORT))]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(result.stdout)
    for names in official.MODELS.values():
        for name in names:
            assert report["modules"][name] == official.__name__
    for name in ("EoMT", "Mask2Former", "ViT", "ViTAdapter", "ViTFeaturePyramid"):
        assert report["modules"][name].startswith("eomt_d2.modeling.")
    # Importing ours registers no data sets; setting up adds what is not there and keeps the rest.
    added = set(report["by_set_up"]) - set(report["by_import"])
    assert set(official.DATASETS) <= set(report["by_import"])
    assert "shapes_train_panoptic" in added
    assert all(report["owners"][name] == "mask2former" for name in official.DATASETS)
    assert not any(report["owners"][name] for name in added)


def test_a_config_of_ours_runs_on_their_data_sets(catalogs):
    names = [f"coco_2017_{split}_panoptic_with_sem_seg" for split in ("train", "val")]
    for name in names:
        DatasetCatalog.register(name, official.their_records)
        MetadataCatalog.get(name).set(**official.coco_metadata())
    file = str(REPOSITORY / "configs/coco/panoptic/eomt_large_640.yaml")
    opts = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", False]
    opts += ["DATASETS.TRAIN", (names[0],), "DATASETS.TEST", (names[1],)]
    cfg = load_config(argparse.Namespace(config_file=file, opts=opts, eval_only=False))
    assert DatasetCatalog[names[1]] is official.their_records
    assert evaluated_tasks(cfg, names[1]) == ("panoptic",)


def leaves(node, prefix=""):
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def config(*functions):
    cfg = get_cfg()
    for function in functions:
        function(cfg)
    return cfg


@pytest.mark.parametrize(
    "functions",
    [
        (official.add_maskformer2_config, add_eomt_config),
        # Theirs throws our MODEL.MASK_FORMER away, so ours is called once more.
        (add_eomt_config, official.add_maskformer2_config, add_eomt_config),
    ],
    ids=["theirs, ours", "ours, theirs, ours"],
)
def test_ours_last_gives_the_keys_of_both_and_our_values(functions):
    both = dict(leaves(config(*functions)))
    ours = dict(leaves(config(add_eomt_config)))
    theirs = dict(leaves(config(official.add_maskformer2_config)))
    assert ours.items() <= both.items()
    assert both.keys() == ours.keys() | theirs.keys()
    # Their code finds every key that it reads, and its decoders' sizes are as it has them.
    assert {"MODEL.SWIN.EMBED_DIM", "MODEL.MASK_FORMER.DEEP_SUPERVISION"} <= theirs.keys()
    assert theirs.keys() <= ours.keys()
    sizes = [key for key in theirs if key.startswith(("MODEL.SWIN.", "MODEL.SEM_SEG_HEAD.DEF"))]
    assert len(sizes) == 19 and all(both[key] == theirs[key] for key in sizes)


def test_theirs_last_is_told():
    cfg = config(add_eomt_config, official.add_maskformer2_config)
    missing = missing_keys(cfg)
    assert "MODEL.MASK_FORMER.COST_CLASS_WEIGHT" in missing
    assert "MODEL.MASK_FORMER.MASK_ANNEALING.SCHEDULE" in missing
    assert all(key.startswith("MODEL.MASK_FORMER.") for key in missing)
    with pytest.raises(UserError, match="COST_CLASS_WEIGHT.* call add_eomt_config after"):
        Trainer(cfg)
    add_eomt_config(cfg)
    assert missing_keys(cfg) == []
