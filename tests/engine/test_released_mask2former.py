"""Configs with the keys of Mask2Former's releases are read, and what they cannot have is told."""

import pytest
from detectron2.config import get_cfg

from eomt_d2.analysis import build_meta_model
from eomt_d2.config import add_eomt_config
from eomt_d2.engine.config_validation import config_problems, validate_config

# Keys and values of the COCO panoptic config on ResNet-50, by the names that users have in theirs.
R50 = """
MODEL:
  BACKBONE: {FREEZE_AT: 0, NAME: build_resnet_backbone}
  META_ARCHITECTURE: Mask2Former
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  RESNETS:
    DEPTH: 50
    STEM_TYPE: basic
    STEM_OUT_CHANNELS: 64
    STRIDE_IN_1X1: False
    OUT_FEATURES: [res2, res3, res4, res5]
    RES5_MULTI_GRID: [1, 1, 1]
  SWIN: {EMBED_DIM: 128, DEPTHS: [2, 2, 18, 2], NUM_HEADS: [4, 8, 16, 32], WINDOW_SIZE: 12}
  SEM_SEG_HEAD:
    NAME: MaskFormerHead
    IGNORE_VALUE: 255
    NUM_CLASSES: 133
    LOSS_WEIGHT: 1.0
    CONVS_DIM: 256
    MASK_DIM: 256
    NORM: GN
    PIXEL_DECODER_NAME: MSDeformAttnPixelDecoder
    IN_FEATURES: [res2, res3, res4, res5]
    DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES: [res3, res4, res5]
    DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS: 4
    DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS: 8
    COMMON_STRIDE: 4
    TRANSFORMER_ENC_LAYERS: 6
  MASK_FORMER:
    TRANSFORMER_DECODER_NAME: MultiScaleMaskedTransformerDecoder
    TRANSFORMER_IN_FEATURE: multi_scale_pixel_decoder
    DEEP_SUPERVISION: True
    NO_OBJECT_WEIGHT: 0.1
    CLASS_WEIGHT: 2.0
    MASK_WEIGHT: 5.0
    DICE_WEIGHT: 5.0
    HIDDEN_DIM: 256
    NUM_OBJECT_QUERIES: 100
    NHEADS: 8
    DROPOUT: 0.0
    DIM_FEEDFORWARD: 2048
    ENC_LAYERS: 0
    PRE_NORM: False
    ENFORCE_INPUT_PROJ: False
    SIZE_DIVISIBILITY: 32
    DEC_LAYERS: 10
    TRAIN_NUM_POINTS: 12544
    OVERSAMPLE_RATIO: 3.0
    IMPORTANCE_SAMPLE_RATIO: 0.75
    TEST:
      SEMANTIC_ON: False
      INSTANCE_ON: True
      PANOPTIC_ON: True
      OVERLAP_THRESHOLD: 0.8
      OBJECT_MASK_THRESHOLD: 0.8
      SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE: True
DATASETS: {TRAIN: [coco_2017_train_panoptic], TEST: [coco_2017_val_panoptic]}
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.0001
  STEPS: [327778, 355092]
  MAX_ITER: 368750
  WARMUP_FACTOR: 1.0
  WARMUP_ITERS: 10
  WEIGHT_DECAY: 0.05
  WEIGHT_DECAY_EMBED: 0.0
  OPTIMIZER: ADAMW
  LR_SCHEDULER_NAME: WarmupMultiStepLR
  BACKBONE_MULTIPLIER: 0.1
  POLY_LR_CONSTANT_ENDING: 0.0
  CLIP_GRADIENTS: {ENABLED: True, CLIP_TYPE: full_model, CLIP_VALUE: 0.01, NORM_TYPE: 2.0}
  AMP: {ENABLED: True}
INPUT:
  IMAGE_SIZE: 1024
  MIN_SCALE: 0.1
  MAX_SCALE: 2.0
  FORMAT: RGB
  COLOR_AUG_SSD: False
  CROP: {SINGLE_CATEGORY_MAX_AREA: 1.0}
  DATASET_MAPPER_NAME: coco_panoptic_lsj
TEST: {EVAL_PERIOD: 5000}
DATALOADER: {FILTER_EMPTY_ANNOTATIONS: True, NUM_WORKERS: 4}
VERSION: 2
"""


@pytest.fixture
def cfg(tmp_path):
    (tmp_path / "r50.yaml").write_text(R50)
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.merge_from_file(str(tmp_path / "r50.yaml"))
    cfg.MODEL.DEVICE = "cuda"
    return cfg


def test_a_released_config_is_read_and_two_sentences_say_what_to_change(cfg):
    """Its mapper's name, and the test mode, which its code knew from the task."""
    assert list(config_problems(cfg)) == [
        "INPUT.TEST_MODE is 'square' with INPUT.IMAGE_SIZE 1024, but INPUT.MIN_SIZE_TEST is 800 "
        "and INPUT.MAX_SIZE_TEST 1333; both must be 1024.",
        "INPUT.DATASET_MAPPER_NAME is 'coco_panoptic_lsj'; here one mapper serves all, and this "
        "key says what to train on: set it to 'panoptic'.",
    ]
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.TEST_MODE = "panoptic", "divisible"
    validate_config(cfg)


@pytest.mark.parametrize(
    "key, value, sentence",
    [
        ("MODEL.MASK_FORMER.DROPOUT", 0.1, "only 0.0 is supported: the decoder has no dropout"),
        ("MODEL.MASK_FORMER.PRE_NORM", True, "only False is supported"),
        ("MODEL.MASK_FORMER.DEEP_SUPERVISION", False, "only True is supported"),
        ("MODEL.MASK_FORMER.ENC_LAYERS", 6, "only 0 is supported"),
        ("MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ", True, "only False is supported"),
        ("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5", "only 'multi_scale_pixel_decoder'"),
        (
            "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
            "StandardTransformerDecoder",
            "only 'MultiScaleMaskedTransformerDecoder'",
        ),
        ("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8, "only 4 is supported"),
        ("MODEL.SEM_SEG_HEAD.NORM", "BN", "only 'GN' is supported"),
        ("MODEL.SEM_SEG_HEAD.MASK_DIM", 128, "HIDDEN_DIM 256 channels: give the same number"),
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 512, "HIDDEN_DIM 256 channels: give the same number"),
        ("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", 7, "it must divide"),
        ("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS", 0, "must be at least 1"),
        ("INPUT.COLOR_AUG_SSD", True, "only False is supported"),
        ("INPUT.CROP.ENABLED", True, "crops are INPUT.IMAGE_SIZE wide, INPUT.CROP_HEIGHT"),
        ("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.75, "only 1.0 is supported"),
        ("SOLVER.POLY_LR_CONSTANT_ENDING", 0.1, "only 0.0 is supported"),
        ("MODEL.MASK_FORMER.LOSS_NORMALIZER", "mean", "it must be 'matched' or 'segments'"),
        ("INPUT.PAD_VALUE", 256, "it must be between 0 and 255"),
        ("INPUT.CROP_HEIGHT", -1, "it must be at least 0"),
        ("INPUT.SCALE_FIT", "both", "it must be 'long' or 'short'"),
        ("SOLVER.BACKBONE_MULTIPLIER", -1.0, "it must be at least 0"),
    ],
)
def test_what_is_not_supported_is_one_sentence(cfg, key, value, sentence):
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.TEST_MODE = "panoptic", "divisible"
    cfg.merge_from_list([key, value])
    (problem,) = config_problems(cfg)
    assert problem.startswith(f"{key} is {value!r}; ") and sentence in problem


def test_semantic_results_are_made_before_the_last_resize(cfg):
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.TEST_MODE = "panoptic", "divisible"
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = True
    (problem,) = config_problems(cfg)
    assert "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE is True" in problem


def test_keys_that_another_package_has_added_stay():
    """Detectron2's DeepLab reads these two and has other defaults."""
    cfg = get_cfg()
    cfg.MODEL.RESNETS.STEM_TYPE, cfg.MODEL.RESNETS.RES5_MULTI_GRID = "deeplab", [1, 2, 4]
    add_eomt_config(cfg)
    assert (cfg.MODEL.RESNETS.STEM_TYPE, cfg.MODEL.RESNETS.RES5_MULTI_GRID) == (
        "deeplab",
        [1, 2, 4],
    )


@pytest.mark.parametrize("keys, multiple", [((0, 0), 32), ((-1, 64), 64), ((96, 64), 96)])
def test_the_multiple_that_test_images_are_padded_to(cfg, keys, multiple):
    """INPUT's key, else MASK_FORMER's, else what the backbone needs; -1 asks for nothing."""
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
    cfg.INPUT.SIZE_DIVISIBILITY, cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY = keys
    assert build_meta_model(cfg).test_size_divisibility == multiple
