import pytest
from detectron2.config import get_cfg

from eomt_d2.config import add_eomt_config
from eomt_d2.engine.config_validation import config_problems, validate_config
from eomt_d2.errors import UserError


def config(*overrides):
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "EoMT"
    cfg.MODEL.BACKBONE.NAME = "ViT"
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = 640
    cfg.merge_from_list(list(overrides))
    return cfg


SEMANTIC_WINDOWS = (
    "INPUT.TEST_MODE", "window", "INPUT.IMAGE_SIZE", 512, "INPUT.MIN_SIZE_TEST", 512,
    "INPUT.MAX_SIZE_TEST", 4096, "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False,
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", True,
)  # fmt: skip
FOUR_FRACTIONS = (
    "MODEL.MASK_FORMER.MASK_ANNEALING.SCHEDULE", "fractions",
    "MODEL.MASK_FORMER.MASK_ANNEALING.STARTS", [0.1, 0.2, 0.3, 0.4],
    "MODEL.MASK_FORMER.MASK_ANNEALING.ENDS", [0.2, 0.3, 0.4, 1.0],
)  # fmt: skip


BATCH_OF_FOUR_PROCESSES = ("SOLVER.IMS_PER_BATCH", 8, "SOLVER.REFERENCE_WORLD_SIZE", 4)
ROTARY = ("MODEL.VIT.POSITION", "rotary")
EVA02 = ("MODEL.VIT.POSITION", "eva02", "MODEL.VIT.FFN", "swiglu_subln")
EVA02_PRESET = ("MODEL.VIT.NAME", "eva02_large_patch14_448")
LEARNED = ("MODEL.VIT.EMBED_DIM", 1056)


IN_FEATURES = "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"
MASK2FORMER = ("MODEL.META_ARCHITECTURE", "Mask2Former")
ADAPTER = (*MASK2FORMER, "MODEL.BACKBONE.NAME", "ViTAdapter")
# One window for each of the nine layers, were they to be annealed; four are EoMT's.
UNUSED_WINDOWS = (*MASK2FORMER, *FOUR_FRACTIONS)


@pytest.mark.parametrize(
    "overrides",
    [
        (), SEMANTIC_WINDOWS, FOUR_FRACTIONS, BATCH_OF_FOUR_PROCESSES,
        (*BATCH_OF_FOUR_PROCESSES, "SOLVER.ACCUMULATION_STEPS", 2),
        ("SOLVER.ACCUMULATION_STEPS", 16), ROTARY, EVA02, EVA02_PRESET, LEARNED, MASK2FORMER,
        ADAPTER, UNUSED_WINDOWS, ("TEST.BEST_METRIC", "sem_seg/mIoU", "TEST.EVAL_PERIOD", 100),
    ],
)  # fmt: skip
def test_good_configs(overrides):
    assert list(config_problems(config(*overrides))) == []


def annealed(schedule, starts, ends):
    key = "MODEL.MASK_FORMER.MASK_ANNEALING"
    return (f"{key}.SCHEDULE", schedule, f"{key}.STARTS", starts, f"{key}.ENDS", ends)


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (
            ("MODEL.META_ARCHITECTURE", "EOMT"),
            r"MODEL.META_ARCHITECTURE is 'EOMT'; it must be one of .*EoMT",
        ),
        (("MODEL.BACKBONE.NAME", "VIT"), r"MODEL.BACKBONE.NAME is 'VIT'; it must be one of .*ViT"),
        (
            ("INPUT.TEST_MODE", "sliding"),
            r"INPUT.TEST_MODE is 'sliding'; it must be 'square', 'divisible' or 'window'\.",
        ),
        (
            ("INPUT.MIN_SIZE_TEST", 800),
            r"INPUT.TEST_MODE is 'square' with INPUT.IMAGE_SIZE 640, but INPUT.MIN_SIZE_TEST is "
            r"800 and INPUT.MAX_SIZE_TEST 640; both must be 640\.",
        ),
        (
            (*SEMANTIC_WINDOWS, "INPUT.MIN_SIZE_TEST", 640),
            r"'window' with INPUT.IMAGE_SIZE 512, but INPUT.MIN_SIZE_TEST is 640",
        ),
        (
            (*SEMANTIC_WINDOWS, "MODEL.MASK_FORMER.TEST.INSTANCE_ON", True),
            r"'window', which only semantic results",
        ),
        (
            ("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False),
            r"PANOPTIC_ON, INSTANCE_ON and SEMANTIC_ON are all False",
        ),
        (("SOLVER.CHECKPOINT_PERIOD", 0), r"CHECKPOINT_PERIOD is 0; it must be at least 1\."),
        (("SOLVER.CHECKPOINT_KEEP", -1), r"CHECKPOINT_KEEP is -1; it must be at least 0\."),
        (("SOLVER.MAX_SKIPPED_STEPS", 0), r"MAX_SKIPPED_STEPS is 0; it must be at least 1\."),
        (
            ("TEST.BEST_METRIC", "panoptic_seg/PQ"),
            r"TEST.BEST_METRIC is 'panoptic_seg/PQ', but TEST.EVAL_PERIOD 0 evaluates only the end",
        ),
        (
            ("TEST.BEST_METRIC", "PQ", "TEST.EVAL_PERIOD", 100),
            r"TEST.BEST_METRIC is 'PQ'; it must be a task and a metric",
        ),
        (
            ("MODEL.COMPILE", "fast"),
            r"MODEL.COMPILE is 'fast'; it must be 'off', 'default', 'reduce-overhead' or "
            r"'max-autotune'\.",
        ),
        (
            ("TEST.PRECISION", "half"),
            r"TEST.PRECISION is 'half'; it must be 'float32', 'float16' or 'bfloat16'\.",
        ),
        (
            ("TEST.PRECISION", "float16", "MODEL.DEVICE", "cpu"),
            r"TEST.PRECISION is 'float16', which needs a GPU, but MODEL.DEVICE is 'cpu'; use "
            r"'bfloat16' or 'float32'\.",
        ),
        (("INPUT.EMPTY_SAMPLES", "skip"), r"INPUT.EMPTY_SAMPLES is 'skip'.*'redraw' or 'keep'"),
        (("INPUT.MIN_SCALE", 3.0), r"INPUT.MIN_SCALE is 3.0 and INPUT.MAX_SCALE 2.0"),
        (("MODEL.VIT.PATCH_SIZE", 0), r"MODEL.VIT.PATCH_SIZE is 0; it must be at least 1\."),
        (
            ("INPUT.TEST_MODE", "divisible", "INPUT.SIZE_DIVISIBILITY", 24),
            r"INPUT.SIZE_DIVISIBILITY is 24; it must be a multiple of MODEL.VIT.PATCH_SIZE 16\.",
        ),
        (
            ("SOLVER.IMS_PER_BATCH", 6, "SOLVER.REFERENCE_WORLD_SIZE", 4),
            r"SOLVER.REFERENCE_WORLD_SIZE is 4, which does not divide SOLVER.IMS_PER_BATCH 6;",
        ),
        (
            ("SOLVER.ACCUMULATION_STEPS", 3),
            r"SOLVER.ACCUMULATION_STEPS is 3, which does not divide SOLVER.IMS_PER_BATCH 16;",
        ),
        (
            (*BATCH_OF_FOUR_PROCESSES, "SOLVER.ACCUMULATION_STEPS", 4),
            r"ACCUMULATION_STEPS is 4, which .*IMS_PER_BATCH 8 \(of which a process has 2\);",
        ),
        (
            ("SOLVER.ACCUMULATION_STEPS", 0),
            r"SOLVER.ACCUMULATION_STEPS is 0; it must be at least 1\.",
        ),
        (
            ("MODEL.VIT.POSITION", "rotary", "MODEL.VIT.EMBED_DIM", 1056),  # 66 = 1056 / 16
            r"MODEL.VIT.EMBED_DIM is 1056 and NUM_HEADS 16; with rotary positions the first must",
        ),
        (
            (*EVA02_PRESET, "MODEL.VIT.EMBED_DIM", 1056),
            r"MODEL.VIT.EMBED_DIM is 1056 and NUM_HEADS 16; with rotary positions the first must",
        ),
        (
            ("MODEL.VIT.POSITION", "rope"),
            r"MODEL.VIT.POSITION is 'rope'; it must be '', 'learned', 'rotary' or 'eva02'\.",
        ),
        (
            ("MODEL.VIT.FFN", "gelu"),
            r"MODEL.VIT.FFN is 'gelu'; it must be '', 'mlp', 'swiglu' or 'swiglu_subln'\.",
        ),
        (
            ("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
            r"MODEL.BACKBONE.NAME is 'build_resnet_backbone', but EoMT .* must be 'ViT'\.",
        ),
        (
            ("MODEL.VIT.PATCH_SIZE", 14),
            r"INPUT.IMAGE_SIZE is 640; it must be a multiple of MODEL.VIT.PATCH_SIZE 14\.",
        ),
        (
            (*ADAPTER, "MODEL.VIT.PATCH_SIZE", 14),
            r"INPUT.IMAGE_SIZE is 640; it must be a multiple of MODEL.VIT.PATCH_SIZE 14\.",
        ),
        (
            (*UNUSED_WINDOWS, "MODEL.MASK2FORMER.ANNEAL_MASKS", True),
            r"STARTS has 4 entries and ENDS 4; both need one for each of the 9 masked layers\.",
        ),
        (
            (*MASK2FORMER, "MODEL.MASK_FORMER.HIDDEN_DIM", 200),
            r"HIDDEN_DIM is 200; it must be a multiple of 32 \(32, and .*NHEADS 8\)\.",
        ),
        (
            (*MASK2FORMER, "MODEL.MASK_FORMER.DEC_LAYERS", 3),
            r"DEC_LAYERS is 3, which is 2 layers for the 3 maps of .* must be at least 4\.",
        ),
        (
            (*MASK2FORMER, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "FPN"),
            r"PIXEL_DECODER_NAME is 'FPN'; it must be 'MSDeformAttnPixelDecoder' or 'none'\.",
        ),
        (
            (*MASK2FORMER, IN_FEATURES, ["res4", "res4"]),
            r"IN_FEATURES is \['res4', 'res4'\]; it must name at least one map, and each only once",
        ),
        (("TEST.SEMANTIC_OUTPUT", "argmax"), r"TEST.SEMANTIC_OUTPUT is 'argmax'"),
        (
            ("TEST.COCO_EVALUATOR", "faster"),
            r"TEST.COCO_EVALUATOR is 'faster'.*'pycocotools' or 'faster_coco_eval'",
        ),
        (("SOLVER.OPTIMIZER", "LAMB"), r"SOLVER.OPTIMIZER is 'LAMB'.*'ADAMW' or 'SGD'"),
        (("SOLVER.AMP.PRECISION", "fp16"), r"SOLVER.AMP.PRECISION is 'fp16'"),
        (
            ("SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", "cpu"),
            r"SOLVER.AMP.PRECISION is 'float16', which needs a GPU, but MODEL.DEVICE is 'cpu'",
        ),
        (
            ("SOLVER.MAX_ITER", 100),
            r"SOLVER.MAX_ITER is 100, which leaves nothing after the warm-ups "
            r"SOLVER.WARMUP_ITERS_HEAD 500 and WARMUP_ITERS_BACKBONE 1000; train longer than 1500",
        ),
        (("SOLVER.LAYER_DECAY", 1.5), r"SOLVER.LAYER_DECAY is 1.5; it must be between 0 and 1\."),
        (
            ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 0),
            r"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is 0; it must be at least 1\.",
        ),
        (("MODEL.MASK_FORMER.DICE_WEIGHT", -1.0), r"DICE_WEIGHT is -1.0; it must be at least 0"),
        (("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 80.0), r"between 0 and 1"),
        (annealed("linear", [], []), r"MASK_ANNEALING.SCHEDULE is 'linear'"),
        (annealed("staggered", [1], [2]), r"'staggered', but STARTS is \[1\] and ENDS \[2\]"),
        (
            annealed("iterations", [1, 2], [3, 4]),
            r"STARTS has 2 entries and ENDS 2; both need one for each of the 4 query blocks",
        ),
        (annealed("fractions", [0.1] * 4, [0.5] * 3), r"STARTS has 4 entries and ENDS 3"),
        (
            annealed("fractions", [0.1, 0.2, 0.5, 0.4], [0.2, 0.3, 0.4, 1.0]),
            r"a window from 0.5 to 0.4; with SCHEDULE 'fractions' .* between 0 and 1\.",
        ),
        (
            annealed("iterations", [0, 1, 2, 3], [9, 9, 9, 99999]),
            r"a window from 3 to 99999; .* between 0 and 40000\.",
        ),
    ],
)
def test_bad_values_give_one_sentence(overrides, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        validate_config(config(*overrides))
    assert len(str(caught.value).splitlines()) == 1


def test_all_problems_are_told_at_once():
    with pytest.raises(UserError) as caught:
        validate_config(config("SOLVER.OPTIMIZER", "LAMB", "INPUT.TEST_MODE", "sliding"))
    assert len(str(caught.value).splitlines()) == 2


def test_other_architectures_are_not_bound_to_the_keys_of_mask_classification():
    cfg = config("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "INPUT.MIN_SIZE_TEST", 800)
    assert list(config_problems(cfg)) == []
