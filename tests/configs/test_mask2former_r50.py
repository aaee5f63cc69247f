"""The original Mask2Former (arXiv 2112.01527): settings and results of its paper and its released
recipe, as literals."""

import pytest
import torch
from torch import nn

from eomt_d2.analysis import build_meta_model, network_complexity
from eomt_d2.solver import build_lr_scheduler, build_optimizer
from tests.configs.published import ROOT, load

COCO = ("coco/panoptic/mask2former_r50", "coco/instance/mask2former_r50")
SEMANTIC = ("ade20k/semantic/mask2former_r50", "cityscapes/semantic/mask2former_r50")
# ResNet-50 without classifier (2,049,000) and without batch norms, which are frozen (53,120); pixel
# decoder; decoder of 133 classes; a class is 257.
R50 = 25_557_032 - 2_049_000 - 53_120 + 6_035_904 + 14_493_062
PARAMETERS = {
    COCO[0]: R50,
    COCO[1]: R50 - 53 * 257,
    SEMANTIC[0]: R50 + 17 * 257,
    SEMANTIC[1]: R50 - 114 * 257,
}
RESULTS = dict(zip(PARAMETERS, ("PQ 51.9", "mask AP 43.7", "mIoU 47.2", "mIoU 79.4"), strict=True))


@pytest.mark.parametrize("name", PARAMETERS)
def test_network_and_what_the_comment_says(name):
    cfg = load(name)
    model = build_meta_model(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert model.num_queries == 100
    assert (model.size_divisibility, model.test_size_divisibility) == (32, 32)
    assert model.test_mode == "divisible" and model.pad_after_normalization
    assert model.criterion.normalizer == "segments"
    text = (ROOT / f"{name}.yaml").read_text()
    assert f"# Published: {RESULTS[name]} on " in text
    source = cfg.INPUT
    crop = (source.CROP_HEIGHT or source.IMAGE_SIZE, source.IMAGE_SIZE)
    macs = network_complexity(model, *crop)[""].macs / 1e9
    assert f"# Cost: {PARAMETERS[name] / 1e6:.1f} M parameters, {macs:.1f} GMAC." in text


@pytest.mark.parametrize(
    "name, sizes, scales, iterations, emptied",
    [
        (COCO[0], (1024, 800, 1333), (0.1, 2.0), 368_750, "keep"),
        (COCO[1], (1024, 800, 1333), (0.1, 2.0), 368_750, "drop"),
        (SEMANTIC[0], (512, 512, 2048), (0.5, 2.0), 160_000, "drop"),
        (SEMANTIC[1], (1024, 1024, 2048), (0.5, 2.0), 90_000, "drop"),
    ],
)
def test_images_and_length(name, sizes, scales, iterations, emptied):
    cfg = load(name)
    source = cfg.INPUT
    assert (source.IMAGE_SIZE, source.MIN_SIZE_TEST, source.MAX_SIZE_TEST) == sizes
    assert (source.MIN_SCALE, source.MAX_SCALE) == scales
    assert (source.PAD_VALUE, source.EMPTY_SAMPLES, source.EMPTIED_SEGMENTS) == (
        128, "keep", emptied,
    )  # fmt: skip
    # Semantic images are scaled by their short side; Cityscapes crops are 512 x 1024.
    assert source.SCALE_FIT == ("short" if name in SEMANTIC else "long")
    assert source.CROP_HEIGHT == (512 if name.startswith("cityscapes") else 0)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH) == (iterations, 16)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE) == (True, "full_model", 0.01)


@pytest.mark.parametrize("name", PARAMETERS)
def test_rates_and_decay(name):
    cfg = load(name)
    model = build_meta_model(cfg)
    groups = build_optimizer(cfg, model).param_groups
    settings = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert settings == {
        "backbone": (pytest.approx(1e-5), 0.05),
        "head": (1e-4, 0.05),
        "head_norms": (1e-4, 0.0),
        "head_embeddings": (1e-4, 0.0),
    }
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.Embedding)
    wanted = {
        id(p)
        for module in model.modules()
        if isinstance(module, kinds)
        for p in module.parameters(recurse=False)
    }
    undecayed = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    assert undecayed == wanted


def rates(cfg, iterations):
    """Rates of the backbone and of the head before these updates, relative to the first ones."""
    optimizer = torch.optim.SGD(
        [
            {"params": [nn.Parameter(torch.zeros(1))], "lr": lr, "role": role}
            for role, lr in (("backbone", 0.1), ("head", 1.0))
        ]
    )
    schedule = build_lr_scheduler(cfg, optimizer)
    optimizer.step()
    for iteration in iterations:
        schedule.last_epoch = iteration - 1
        schedule.step()
        yield tuple(group["lr"] for group in optimizer.param_groups)


@pytest.mark.parametrize("name", COCO)
def test_two_steps_down_and_no_warm_up(name):
    steps = (1, 327_777, 327_778, 355_091, 355_092, 368_749)
    factors = (1, 1, 0.1, 0.1, 0.01, 0.01)
    for factor, rate in zip(factors, rates(load(name), steps), strict=True):
        assert rate == pytest.approx((0.1 * factor, factor))


@pytest.mark.parametrize("name, iterations", [(SEMANTIC[0], 160_000), (SEMANTIC[1], 90_000)])
def test_polynomial_decay_without_warm_up(name, iterations):
    steps = (1, iterations // 2, iterations)
    for factor, rate in zip((1, 0.5358867, 0), rates(load(name), steps), strict=True):
        assert rate == pytest.approx((0.1 * factor, factor), rel=1e-4)
