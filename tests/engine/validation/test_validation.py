"""Values that the checks by theme find; tests/engine/test_config_validation.py has the others."""

import pytest
from detectron2.config import get_cfg

from eomt_d2.config import add_eomt_config
from eomt_d2.engine.config_validation import config_problems

NO_PRESET = ("MODEL.VIT.NAME", "", "MODEL.EOMT.NUM_BLOCKS", 2)
SMALL = ("MODEL.VIT.EMBED_DIM", 64, "MODEL.VIT.DEPTH", 4, "MODEL.VIT.NUM_HEADS", 4)


def problems(*overrides):
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "EoMT"
    cfg.MODEL.BACKBONE.NAME = "ViT"
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = 640
    cfg.merge_from_list(list(overrides))
    return list(config_problems(cfg))


@pytest.mark.parametrize("overrides", [(), (*NO_PRESET, *SMALL), ("INPUT.CROP_HEIGHT", 320)])
def test_good(overrides):
    assert problems(*overrides) == []


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (
            ("MODEL.VIT.NAME", "vit_large_patch14_reg_dinov2"),
            "MODEL.VIT.NAME is 'vit_large_patch14_reg_dinov2', which is no preset; the nearest one "
            "is vit_large_patch14_reg4_dinov2 (all:",
        ),
        (
            NO_PRESET,
            "MODEL.VIT.EMBED_DIM is 0; it must be at least 1 without a preset in MODEL.VIT.NAME.",
        ),
        (("MODEL.VIT.DEPTH", -1), "MODEL.VIT.DEPTH is -1; it must be at least 1."),
        (
            (*NO_PRESET, *SMALL, "MODEL.VIT.NUM_HEADS", 5),
            "MODEL.VIT.EMBED_DIM is 64; it must be a multiple of MODEL.VIT.NUM_HEADS 5.",
        ),
        (
            (*NO_PRESET, *SMALL, "MODEL.EOMT.NUM_BLOCKS", 5),
            "MODEL.EOMT.NUM_BLOCKS is 5, but the ViT has only 4 blocks (MODEL.VIT.DEPTH).",
        ),
        (
            ("INPUT.CROP_HEIGHT", 300),
            "INPUT.CROP_HEIGHT is 300; it must be a multiple of MODEL.VIT.PATCH_SIZE 16.",
        ),
        (
            ("MODEL.BACKBONE.NAME", "VIT"),
            "MODEL.BACKBONE.NAME is 'VIT'; it must be one of ",
        ),
        (("SOLVER.BASE_LR", float("nan")), "SOLVER.BASE_LR is nan; it must be at least 0."),
        (
            ("SOLVER.BASE_LR", float("inf")),
            "SOLVER.BASE_LR is inf; it must be at least 0 and finite.",
        ),
        (("TEST.EVAL_PERIOD", -5), "TEST.EVAL_PERIOD is -5; it must be at least 0."),
        (("DATALOADER.ON_BAD_SAMPLE", "ignore"), "it must be 'raise' or 'skip'."),
        (("MODEL.DEVICE", "gpu"), "MODEL.DEVICE is 'gpu'; it must be 'cuda', 'cuda:N' or 'cpu'."),
        (("MODEL.PIXEL_STD", [1.0, 0.0, 1.0]), "it must be a list of positive numbers"),
        (("MODEL.PIXEL_MEAN", ["a", 1, 1]), "it must be a list of numbers"),
        (("DATASETS.TRAIN", (5,)), "DATASETS.TRAIN is (5,); it must be the names of data sets."),
    ],
)
def test_one_sentence(overrides, sentence):
    (problem,) = problems(*overrides)
    assert sentence in problem


def test_what_was_left_empty_is_told_before_anything_else():
    assert problems("MODEL.EOMT.NUM_BLOCKS", None, "SOLVER.MAX_ITER", None) == [
        "MODEL.EOMT.NUM_BLOCKS is empty; give it a value, such as the default 0.",
        "SOLVER.MAX_ITER is empty; give it a value, such as the default 40000.",
    ]
