"""The published recipes, compared with the numbers of RECIPES (arXiv 2503.19108 and model zoo)."""

import argparse
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from eomt_d2.config import add_eomt_config
from eomt_d2.engine import load_config
from eomt_d2.engine.config_validation import validate_config
from eomt_d2.engine.hooks import configured_windows

ROOT = Path(__file__).parents[1] / "configs"
ADE_WINDOWS = [(6520, 13040), (13040, 19560), (19560, 26080), (26080, 32600)]
COCO_WINDOWS = [(14782, 29564), (29564, 44346), (44346, 59128), (59128, 73910)]
CITYSCAPES_WINDOWS = [(3317, 6634), (6634, 9951), (9951, 13268), (13268, 16585)]
# config: iterations, windows, classes, queries, input, scales, jitter, test mode, result
PUBLISHED = {
    "coco/panoptic/eomt_large_640": (
        88692, COCO_WINDOWS, 133, 200, 640, (0.1, 2.0), False, "square", "PANOPTIC_ON"),
    "coco/instance/eomt_large_640": (
        87948, COCO_WINDOWS, 80, 200, 640, (0.1, 2.0), False, "square", "INSTANCE_ON"),
    "ade20k/panoptic/eomt_large_640": (
        39122, ADE_WINDOWS, 150, 200, 640, (0.1, 2.0), True, "square", "PANOPTIC_ON"),
    "ade20k/semantic/eomt_large_512": (
        39122, ADE_WINDOWS, 150, 100, 512, (0.5, 2.0), True, "window", "SEMANTIC_ON"),
    "cityscapes/semantic/eomt_large_1024": (
        19902, CITYSCAPES_WINDOWS, 19, 100, 1024, (0.5, 2.0), True, "window", "SEMANTIC_ON"),
}  # fmt: skip


def load(name, *opts):
    """The config as it runs on a machine without a GPU: fp16 needs one."""
    file = str(ROOT / f"{name}.yaml")
    opts = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.PRECISION", "bfloat16", *opts]
    return load_config(argparse.Namespace(config_file=file, opts=opts, eval_only=False))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe(name):
    iterations, windows, classes, queries, size, scales, jitter, mode, task = PUBLISHED[name]
    cfg = load(name)
    assert cfg.SOLVER.MAX_ITER == iterations
    assert configured_windows(cfg, 4) == windows
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == classes
    assert cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == queries
    assert (cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SIZE_TEST) == (size, size)
    assert (cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE) == scales
    assert jitter == cfg.INPUT.COLOR_JITTER
    assert mode == cfg.INPUT.TEST_MODE
    flags = ("PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_ON")
    assert [flag for flag in flags if cfg.MODEL.MASK_FORMER.TEST[flag]] == [task]
    assert cfg.MODEL.VIT.NAME == "vit_large_patch14_reg4_dinov2"


@pytest.mark.parametrize("name", PUBLISHED)
def test_common_recipe(name):
    """RECIPES, "Common to every recipe"."""
    cfg = load(name)
    solver, node = cfg.SOLVER, cfg.MODEL.MASK_FORMER
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY) == ("ADAMW", 1e-4, 0.05)
    assert (solver.LAYER_DECAY, solver.IMS_PER_BATCH) == (0.8, 16)
    assert (solver.WARMUP_ITERS_HEAD, solver.WARMUP_ITERS_BACKBONE) == (500, 1000)
    assert solver.POLY_LR_POWER == 0.9
    clip = solver.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE) == (True, "full_model", 0.01)
    assert solver.AMP.ENABLED
    assert (node.CLASS_WEIGHT, node.MASK_WEIGHT, node.DICE_WEIGHT) == (2, 5, 5)
    assert node.NO_OBJECT_WEIGHT == 0.1
    assert node.TRAIN_NUM_POINTS == 12544
    assert (node.OVERSAMPLE_RATIO, node.IMPORTANCE_SAMPLE_RATIO) == (3, 0.75)
    assert (node.TEST.OBJECT_MASK_THRESHOLD, node.TEST.OVERLAP_THRESHOLD) == (0.8, 0.8)
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.VIT.DROP_PATH_RATE == 0


def test_mixed_precision_is_fp16_unless_told_otherwise():
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.merge_from_file(str(ROOT / "base.yaml"))
    assert (cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.PRECISION) == (True, "float16")


def test_every_config_is_valid_and_says_how_it_is_run():
    leaves = [path for path in ROOT.rglob("*.yaml") if not path.name.startswith("base")]
    assert len(leaves) >= len(PUBLISHED)
    for path in leaves:
        cfg = get_cfg()
        add_eomt_config(cfg)
        cfg.merge_from_file(str(path))
        validate_config(cfg)
        text = path.read_text().replace("\\\n# ", "")
        assert f"tools/train_net.py --config-file {path.relative_to(ROOT.parent)}" in text
