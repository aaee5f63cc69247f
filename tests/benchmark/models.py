"""Small networks that the tests of the benchmark measure."""

from pathlib import Path

from eomt_d2.benchmark import Settings, load_models

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EOMT = str(CONFIGS / "shapes/panoptic/eomt_tiny.yaml")
MASK2FORMER = str(CONFIGS / "shapes/panoptic/mask2former_tiny.yaml")
# Panoptic results alone, few points, no gradients that explode.
QUICK = [
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON", "False",
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "False",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64",
]  # fmt: skip
# EoMT as transformers knows it, narrow and shallow.
DINOV2 = str(CONFIGS / "coco/panoptic/eomt_small_640.yaml")
NARROW = [
    "MODEL.VIT.EMBED_DIM", "32",
    "MODEL.VIT.NUM_HEADS", "2",
    "MODEL.VIT.DEPTH", "5",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "10",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64",
]  # fmt: skip
DINOV3 = str(CONFIGS / "coco/panoptic/eomt_large_640_dinov3.yaml")


def tiny(*config_files: str, opts=(), **settings):
    """Models of some configs, and the settings they were read with."""
    chosen = Settings(**{"repeats": 2, "warmup": 1, "active_queries": 5, **settings})
    return load_models(config_files, [*QUICK, *opts], chosen), chosen


def narrow(config_file: str = DINOV2, opts=(), **settings):
    """An EoMT and the one of transformers, and the settings they were read with."""
    settings = {"repeats": 2, "warmup": 1, "active_queries": 5, **settings}
    chosen = Settings(against_transformers=True, **settings)
    return load_models([config_file], [*NARROW, *opts], chosen), chosen
