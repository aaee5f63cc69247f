"""The published recipes as literals: every number was copied from the paper (arXiv 2503.19108) or
its model zoo by hand, none is computed by the package."""

import argparse
from pathlib import Path
from typing import NamedTuple

from eomt_d2.engine import load_config

ROOT = Path(__file__).parents[2] / "configs"
Windows = list[tuple[int, int]]


class Task(NamedTuple):
    """What the models of one data set and task share."""

    train: str
    test: str
    classes: int
    queries: int
    scales: tuple[float, float]
    jitter: bool
    test_mode: str
    flag: str
    metric: str


COCO_PANOPTIC = Task(
    "coco_2017_train_panoptic", "coco_2017_val_panoptic",
    133, 200, (0.1, 2.0), False, "square", "PANOPTIC_ON", "PQ",
)  # fmt: skip
COCO_INSTANCE = Task(
    "coco_2017_train", "coco_2017_val",
    80, 200, (0.1, 2.0), False, "square", "INSTANCE_ON", "mask AP",
)  # fmt: skip
ADE_PANOPTIC = Task(
    "ade20k_panoptic_train", "ade20k_panoptic_val",
    150, 200, (0.1, 2.0), True, "square", "PANOPTIC_ON", "PQ",
)  # fmt: skip
ADE_SEMANTIC = Task(
    "ade20k_sem_seg_train", "ade20k_sem_seg_val",
    150, 100, (0.5, 2.0), True, "window", "SEMANTIC_ON", "mIoU",
)  # fmt: skip
CITYSCAPES = Task(
    "cityscapes_fine_sem_seg_train", "cityscapes_fine_sem_seg_val",
    19, 100, (0.5, 2.0), True, "window", "SEMANTIC_ON", "mIoU",
)  # fmt: skip


class Rates(NamedTuple):
    """How fast what learns."""

    base_lr: float
    warmup_head: int
    warmup_backbone: int
    layer_decay: float
    query_blocks_full_lr: bool


DINOV2_RATES = Rates(1e-4, 500, 1000, 0.8, False)
DINOV3_RATES = Rates(2e-4, 2000, 3000, 0.8, True)

# Annealing windows in iterations, one per query block. Units: 14,782 and 29,564 (COCO), 6,520
# (ADE20K), 3,317 (Cityscapes); three blocks start at 1, 2.5, 4 units, four at 1, 2, 3, 4, five at
# 1, 1.75, 2.5, 3.25, 4; each lasts one unit; halves round up.
COCO_3 = [(14782, 29564), (36955, 51737), (59128, 73910)]
COCO_3_2X = [(29564, 59128), (73910, 103474), (118256, 147820)]
COCO_4 = [(14782, 29564), (29564, 44346), (44346, 59128), (59128, 73910)]
COCO_5 = [(14782, 29564), (25869, 40651), (36955, 51737), (48042, 62824), (59128, 73910)]
ADE_4 = [(6520, 13040), (13040, 19560), (19560, 26080), (26080, 32600)]
ADE_5 = [(6520, 13040), (11410, 17930), (16300, 22820), (21190, 27710), (26080, 32600)]
CITYSCAPES_4 = [(3317, 6634), (6634, 9951), (9951, 13268), (13268, 16585)]
# DINOv3 panoptic and semantic: the first block early.
COCO_3_2X_EARLY = [(0, 3000), (73910, 103474), (118256, 147820)]
COCO_4_EARLY = [(0, 3000), (29564, 44346), (44346, 59128), (59128, 73910)]
ADE_4_DINOV3 = [(0, 3000), (6520, 9780), (9780, 13040), (13040, 16300)]

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


class Recipe(NamedTuple):
    """One model: what is published and what its config must therefore say."""

    result: str
    task: Task
    preset: str
    size: int
    iterations: int
    windows: Windows | None
    rates: Rates = DINOV2_RATES
    weights: str = ""  # "" means the file named after the preset
    pixels: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    masked: bool = True


S2, B2, L2, G2 = (f"vit_{size}_patch14_reg4_dinov2" for size in ("small", "base", "large", "giant"))
S3, B3, L3 = (f"vit_{size}_patch16_dinov3" for size in ("small", "base", "large"))
# timm's default_cfg of these three networks, times 255.
EVA02_PIXELS = ((122.7709, 116.746, 104.0937), (68.5005, 66.6322, 70.3232))
HALF_PIXELS = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))


def _ade_panoptic(result: str, preset: str, size: int, windows: Windows, name: str) -> Recipe:
    start = f"output/coco_panoptic_eomt_{name}_{size}/model_final.pth"
    return Recipe(result, ADE_PANOPTIC, preset, size, 39122, windows, weights=start)


_CP, _CI, _AP, _AS = "coco/panoptic/", "coco/instance/", "ade20k/panoptic/", "ade20k/semantic/"
PUBLISHED: dict[str, Recipe] = {
    _CP + "eomt_small_640": Recipe("44.7", COCO_PANOPTIC, S2, 640, 88692, COCO_3),
    _CP + "eomt_small_640_2x": Recipe("46.7", COCO_PANOPTIC, S2, 640, 177384, COCO_3_2X),
    _CP + "eomt_base_640": Recipe("50.6", COCO_PANOPTIC, B2, 640, 88692, COCO_3),
    _CP + "eomt_base_640_2x": Recipe("51.6", COCO_PANOPTIC, B2, 640, 177384, COCO_3_2X),
    _CP + "eomt_large_640": Recipe("56.0", COCO_PANOPTIC, L2, 640, 88692, COCO_4),
    _CP + "eomt_giant_640": Recipe("57.0", COCO_PANOPTIC, G2, 640, 88692, COCO_5),
    _CP + "eomt_large_1280": Recipe("58.3", COCO_PANOPTIC, L2, 1280, 88692, COCO_4),
    _CP + "eomt_giant_1280": Recipe("59.2", COCO_PANOPTIC, G2, 1280, 88692, COCO_5),
    _CP + "eomt_small_640_2x_dinov3": Recipe(
        "47.2", COCO_PANOPTIC, S3, 640, 177384, COCO_3_2X_EARLY, DINOV3_RATES
    ),
    _CP + "eomt_base_640_2x_dinov3": Recipe(
        "53.1", COCO_PANOPTIC, B3, 640, 177384, COCO_3_2X_EARLY, DINOV3_RATES
    ),
    _CP + "eomt_large_640_dinov3": Recipe(
        "56.8", COCO_PANOPTIC, L3, 640, 88692, COCO_4_EARLY, DINOV3_RATES
    ),
    _CP + "eomt_large_1280_dinov3": Recipe(
        "58.9", COCO_PANOPTIC, L3, 1280, 88692, COCO_4_EARLY, DINOV3_RATES
    ),
    _CP + "eomt_large_640_eva02": Recipe(
        "55.5", COCO_PANOPTIC, "eva02_large_patch14_448", 640, 88692, COCO_4, pixels=EVA02_PIXELS
    ),
    _CP + "eomt_large_640_in21k": Recipe(
        "50.0", COCO_PANOPTIC, "vit_large_patch16_224", 640, 88692, COCO_4, pixels=HALF_PIXELS
    ),
    _CP + "eomt_large_640_in1k": Recipe(
        "44.3", COCO_PANOPTIC, "deit3_large_patch16_384", 640, 88692, COCO_4
    ),
    _CP + "eomt_large_640_masked": Recipe("56.2", COCO_PANOPTIC, L2, 640, 88692, None),
    _CP + "eomt_large_640_unmasked": Recipe(
        "53.2", COCO_PANOPTIC, L2, 640, 88692, COCO_4, masked=False
    ),
    _CI + "eomt_large_640": Recipe("45.2", COCO_INSTANCE, L2, 640, 87948, COCO_4),
    _CI + "eomt_large_1280": Recipe("48.8", COCO_INSTANCE, L2, 1280, 87948, COCO_4),
    _CI + "eomt_large_640_dinov3": Recipe(
        "45.9", COCO_INSTANCE, L3, 640, 87948, COCO_4, DINOV3_RATES
    ),
    _CI + "eomt_large_1280_dinov3": Recipe(
        "49.9", COCO_INSTANCE, L3, 1280, 87948, COCO_4, DINOV3_RATES
    ),
    _AP + "eomt_large_640": _ade_panoptic("50.6", L2, 640, ADE_4, "large"),
    _AP + "eomt_giant_640": _ade_panoptic("51.3", G2, 640, ADE_5, "giant"),
    _AP + "eomt_large_1280": _ade_panoptic("51.7", L2, 1280, ADE_4, "large"),
    _AP + "eomt_giant_1280": _ade_panoptic("52.8", G2, 1280, ADE_5, "giant"),
    _AS + "eomt_large_512": Recipe("58.4", ADE_SEMANTIC, L2, 512, 39122, ADE_4),
    _AS + "eomt_large_512_dinov3": Recipe(
        "59.5", ADE_SEMANTIC, L3, 512, 20192, ADE_4_DINOV3, Rates(2e-4, 2000, 3000, 1.0, True)
    ),
    "cityscapes/semantic/eomt_large_1024": Recipe(
        "84.2", CITYSCAPES, L2, 1024, 19902, CITYSCAPES_4
    ),
}


class Baseline(NamedTuple):
    """One network that is compared with an EoMT of the same recipe."""

    result: str  # as PUBLISHED has it; "" where nothing is published
    eomt: str  # the config of the same recipe
    parameters: int
    gmac: str


# Results: the tables of the paper. Parameters of ViT-L: they reproduce the published 349, 342, 337,
# 328 and 316 M, less the ViT's final norm, which the adapter does not use; 257 for a class, 512 for
# a query, 1024 for a patch of 16 pixels.
_M2F = "mask2former_vit_adapter_"
M2F_L = 348_674_054 - 2 * 1024
BASELINES: dict[str, Baseline] = {
    _CP + _M2F + "small_640": Baseline("PQ 50.5", _CP + "eomt_small_640", 46_558_422, "164.3"),
    _CP + _M2F + "base_640": Baseline("PQ 54.4", _CP + "eomt_base_640", 120_960_294, "345.6"),
    _CP + _M2F + "large_640": Baseline("PQ 57.1", _CP + "eomt_large_640", M2F_L, "828.7"),
    _CP + _M2F + "giant_640": Baseline("PQ 57.7", _CP + "eomt_giant_640", 1_208_643_014, "2507"),
    _CP + _M2F + "large_1280": Baseline("", _CP + "eomt_large_1280", M2F_L + 4800 * 1024, "4810"),
    _CP + _M2F + "large_640_annealed": Baseline("PQ 56.8", _CP + "eomt_large_640", M2F_L, "816.5"),
    _CP + "ladder_1_no_adapter_640": Baseline(
        "PQ 56.7", _CP + "eomt_large_640", 342_263_622, "739.5"
    ),
    _CP + "ladder_2_no_pixel_decoder_640": Baseline(
        "PQ 56.9", _CP + "eomt_large_640", 337_211_782, "686.0"
    ),
    _CP + "ladder_3_single_scale_640": Baseline(
        "PQ 56.7", _CP + "eomt_large_640", 328_273_286, "673.3"
    ),
    _CP + "ladder_4_no_decoder_640": Baseline(
        "PQ 56.2", _CP + "eomt_large_640", 316_695_686, "827.0"
    ),
    _CI + _M2F + "large_640": Baseline(
        "mask AP 47.6", _CI + "eomt_large_640", M2F_L - 53 * 257, "828.7"
    ),
    _CI + _M2F + "large_1280": Baseline(
        "mask AP 51.4", _CI + "eomt_large_1280", M2F_L - 53 * 257 + 4800 * 1024, "4810"
    ),
    _AP + _M2F + "large_640": Baseline(
        "PQ 51.8", _AP + "eomt_large_640", M2F_L + 17 * 257, "828.7"
    ),
    _AP + _M2F + "large_1280": Baseline(
        "PQ 53.0", _AP + "eomt_large_1280", M2F_L + 17 * 257 + 4800 * 1024, "4810"
    ),
    _AS + _M2F + "large_512": Baseline(
        "mIoU 58.9", _AS + "eomt_large_512", M2F_L + 17 * 257 - 100 * 512 - 576 * 1024, "496.4"
    ),
    "cityscapes/semantic/" + _M2F + "large_1024": Baseline(
        "mIoU 84.5",
        "cityscapes/semantic/eomt_large_1024",
        M2F_L - 114 * 257 - 100 * 512 + 2496 * 1024,
        "2595",
    ),
}


def load(name: str, *opts: str):
    """The config as it runs on a machine without a GPU: fp16 needs one."""
    file = str(ROOT / f"{name}.yaml")
    opts = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.PRECISION", "bfloat16", *opts]
    return load_config(argparse.Namespace(config_file=file, opts=opts, eval_only=False))


def leaves() -> list[Path]:
    """Configs that can be run: all but the base files and layers they are put together from."""
    return sorted(path for path in ROOT.rglob("*.yaml") if not path.name.startswith("base"))
