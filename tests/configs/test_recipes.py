"""Every config of a published model says what was published, and every config how it is run."""

import re

import pytest
import timm
from detectron2.config import get_cfg

from eomt_d2.config import add_eomt_config
from eomt_d2.engine.config_validation import validate_config
from eomt_d2.engine.hooks import configured_windows
from tests.configs.published import BASELINES, PUBLISHED, ROOT, leaves, load

SIZES = ("small", "base", "large", "giant")
TASK_FLAGS = ("PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_ON")
MAX_LINES = 15
TAGS = {
    **dict.fromkeys((f"vit_{s}_patch14_reg4_dinov2" for s in SIZES), "lvd142m"),
    **dict.fromkeys((f"vit_{s}_patch16_dinov3" for s in SIZES[:3]), "lvd1689m"),
    "vit_large_patch16_224": "augreg_in21k",
    "deit3_large_patch16_384": "fb_in1k",
    "eva02_large_patch14_448": "mim_m38m_ft_in22k",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe(name):
    recipe = PUBLISHED[name]
    task, cfg = recipe.task, load(name)
    source, model, solver = cfg.INPUT, cfg.MODEL, cfg.SOLVER

    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == ((task.train,), (task.test,))
    assert model.SEM_SEG_HEAD.NUM_CLASSES == task.classes
    assert model.MASK_FORMER.NUM_OBJECT_QUERIES == task.queries
    assert (source.MIN_SCALE, source.MAX_SCALE) == task.scales
    assert source.COLOR_JITTER is task.jitter
    assert source.TEST_MODE == task.test_mode
    assert [flag for flag in TASK_FLAGS if model.MASK_FORMER.TEST[flag]] == [task.flag]

    assert model.META_ARCHITECTURE == "EoMT"
    assert model.VIT.NAME == recipe.preset
    assert model.WEIGHTS == (recipe.weights or f"hf://timm/{recipe.preset}.{TAGS[recipe.preset]}")
    assert (tuple(model.PIXEL_MEAN), tuple(model.PIXEL_STD)) == recipe.pixels
    assert model.EOMT.MASKED_ATTENTION is recipe.masked
    assert source.IMAGE_SIZE == source.MIN_SIZE_TEST == recipe.size
    assert source.MAX_SIZE_TEST == (recipe.size if task.test_mode == "square" else 1000000)

    assert solver.MAX_ITER == recipe.iterations
    num_blocks = len(recipe.windows or [None] * 4)
    assert configured_windows(cfg, num_blocks) == recipe.windows
    assert recipe.rates == (
        solver.BASE_LR,
        solver.WARMUP_ITERS_HEAD,
        solver.WARMUP_ITERS_BACKBONE,
        solver.LAYER_DECAY,
        solver.QUERY_BLOCKS_FULL_LR,
    )


def test_timm_has_the_weights_under_these_addresses():
    for preset, tag in TAGS.items():
        assert timm.get_pretrained_cfg(f"{preset}.{tag}").hf_hub_id == f"timm/{preset}.{tag}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_common_recipe(name):
    """What section 4 of the paper and the model zoo say of all models."""
    cfg = load(name)
    solver, node = cfg.SOLVER, cfg.MODEL.MASK_FORMER
    assert (solver.OPTIMIZER, solver.WEIGHT_DECAY, solver.IMS_PER_BATCH) == ("ADAMW", 0.05, 16)
    assert (solver.LR_SCHEDULER_NAME, solver.POLY_LR_POWER) == ("TwoStageWarmupPolyLR", 0.9)
    clip = solver.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE) == (True, "full_model", 0.01)
    assert solver.AMP.ENABLED
    assert (node.CLASS_WEIGHT, node.MASK_WEIGHT, node.DICE_WEIGHT) == (2, 5, 5)
    assert node.COST_CLASS_WEIGHT in (0, 2)  # 0 means CLASS_WEIGHT
    assert node.NO_OBJECT_WEIGHT == 0.1
    assert node.TRAIN_NUM_POINTS == 12544
    assert (node.OVERSAMPLE_RATIO, node.IMPORTANCE_SAMPLE_RATIO) == (3, 0.75)
    assert (node.TEST.OBJECT_MASK_THRESHOLD, node.TEST.OVERLAP_THRESHOLD) == (0.8, 0.8)
    assert node.MASK_ANNEALING.POWER == 0.9
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.INPUT.EMPTY_SAMPLES == "redraw"
    assert (cfg.MODEL.VIT.PATCH_SIZE, cfg.MODEL.VIT.DROP_PATH_RATE) == (16, 0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_images_are_normalised_as_timm_says_for_the_pre_trained_network(name):
    """timm's own configuration of the network is in [0, 1], ours in [0, 255]."""
    recipe = PUBLISHED[name]
    pretrained = timm.get_pretrained_cfg(recipe.preset)
    for ours, theirs in zip(recipe.pixels, (pretrained.mean, pretrained.std), strict=True):
        assert ours == pytest.approx([255 * value for value in theirs], abs=1e-4)


def test_ade20k_panoptic_starts_where_the_coco_config_of_its_size_and_input_ends():
    for name in (name for name in PUBLISHED if name.startswith("ade20k/panoptic/")):
        cfg, coco = load(name), load(name.replace("ade20k", "coco"))
        assert cfg.MODEL.WEIGHTS == f"{coco.OUTPUT_DIR}/model_final.pth"
        assert cfg.MODEL.VIT == coco.MODEL.VIT
        assert cfg.INPUT.IMAGE_SIZE == coco.INPUT.IMAGE_SIZE


def test_mixed_precision_is_fp16_unless_told_otherwise():
    for name in PUBLISHED:
        cfg = get_cfg()
        add_eomt_config(cfg)
        cfg.merge_from_file(str(ROOT / f"{name}.yaml"))
        assert (cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.PRECISION) == (True, "float16")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_short_and_quotes_its_result(name):
    text = (ROOT / f"{name}.yaml").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= MAX_LINES
    recipe = PUBLISHED[name]
    (quoted,) = re.findall(r"^# Published: (.+?) on ", text, flags=re.MULTILINE)
    assert quoted == f"{recipe.task.metric} {recipe.result}"
    assert f"OUTPUT_DIR: output/{name.replace('/', '_')}\n" in text


def test_every_config_is_valid_and_says_how_it_is_run():
    names = {path.relative_to(ROOT).with_suffix("").as_posix() for path in leaves()}
    assert set(PUBLISHED) | set(BASELINES) <= names
    for path in leaves():
        cfg = get_cfg()
        add_eomt_config(cfg)
        cfg.merge_from_file(str(path))
        validate_config(cfg)
        text = re.sub(r" \\\n# +", " ", path.read_text())
        command = f"tools/train_net.py --config-file {path.relative_to(ROOT.parent).as_posix()}"
        assert re.search(rf"{re.escape(command)}\s", text)


def test_every_eomt_on_a_real_data_set_is_compared_with_what_was_published():
    names = {path.relative_to(ROOT).with_suffix("").as_posix() for path in leaves()}
    eomts = {name for name in names if name.split("/")[-1].startswith("eomt_")}
    assert {name for name in eomts if not name.startswith("shapes/")} == set(PUBLISHED)
