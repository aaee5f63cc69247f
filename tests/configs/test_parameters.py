"""Networks built from the configs, without memory: parameter counts and learning rates.

The counts for 640 x 640, 133 classes and 200 queries are those of transformers 5.24
(EomtForUniversalSegmentation, EomtDinov3ForUniversalSegmentation); the others follow by hand.
"""

import pytest

from eomt_d2.analysis import build_meta_model, network_complexity
from eomt_d2.solver import build_optimizer
from tests.configs.published import PUBLISHED, ROOT, load

S2, B2, L2, G2 = 23_975_942, 93_663_110, 316_695_686, 1_163_622_022
S3, B3, L3 = 23_356_934, 92_425_094, 315_032_710

# A class is one row of weights and a bias, C + 1; the networks have one class more than the data.
CLASSES_80 = -53 * 1025  # of ViT-L, 80 classes instead of 133
CLASSES_150 = 17 * 1025
CLASSES_19 = -114 * 1025
GIANT_CLASSES_150 = 17 * 1537
QUERIES_100 = -100 * 1024  # 100 queries instead of 200
# Learned positions: (side / 16)^2 patches instead of the 1600 of 640 x 640; DINOv3 has none.
PATCHES_512 = (1024 - 1600) * 1024
PATCHES_1024 = (4096 - 1600) * 1024
PATCHES_1280 = (6400 - 1600) * 1024
GIANT_PATCHES_1280 = (6400 - 1600) * 1536

PARAMETERS = {
    "coco/panoptic/eomt_small_640": S2,
    "coco/panoptic/eomt_small_640_2x": S2,
    "coco/panoptic/eomt_base_640": B2,
    "coco/panoptic/eomt_base_640_2x": B2,
    "coco/panoptic/eomt_large_640": L2,
    "coco/panoptic/eomt_giant_640": G2,
    "coco/panoptic/eomt_large_1280": L2 + PATCHES_1280,
    "coco/panoptic/eomt_giant_1280": G2 + GIANT_PATCHES_1280,
    "coco/panoptic/eomt_small_640_2x_dinov3": S3,
    "coco/panoptic/eomt_base_640_2x_dinov3": B3,
    "coco/panoptic/eomt_large_640_dinov3": L3,
    "coco/panoptic/eomt_large_1280_dinov3": L3,
    "coco/panoptic/eomt_large_640_masked": L2,
    "coco/panoptic/eomt_large_640_unmasked": L2,
    "coco/instance/eomt_large_640": L2 + CLASSES_80,
    "coco/instance/eomt_large_1280": L2 + CLASSES_80 + PATCHES_1280,
    "coco/instance/eomt_large_640_dinov3": L3 + CLASSES_80,
    "coco/instance/eomt_large_1280_dinov3": L3 + CLASSES_80,
    "ade20k/panoptic/eomt_large_640": L2 + CLASSES_150,
    "ade20k/panoptic/eomt_giant_640": G2 + GIANT_CLASSES_150,
    "ade20k/panoptic/eomt_large_1280": L2 + CLASSES_150 + PATCHES_1280,
    "ade20k/panoptic/eomt_giant_1280": G2 + GIANT_CLASSES_150 + GIANT_PATCHES_1280,
    "ade20k/semantic/eomt_large_512": L2 + CLASSES_150 + QUERIES_100 + PATCHES_512,
    "ade20k/semantic/eomt_large_512_dinov3": L3 + CLASSES_150 + QUERIES_100,
    "cityscapes/semantic/eomt_large_1024": L2 + CLASSES_19 + QUERIES_100 + PATCHES_1024,
    # Against DINOv2's L: no registers (4 x 1024). AugReg also lacks LayerScale (24 x 2 x 1024);
    # EVA-02 lacks both and the biases of the keys (24 x 1024), and each of its gated networks has
    # 2 x (1024 x 2730 + 2730) + 2 x 2730 + 2730 x 1024 + 1024 = 8,398,504 instead of 8,393,728.
    "coco/panoptic/eomt_large_640_in1k": L2 - 4096,
    "coco/panoptic/eomt_large_640_in21k": L2 - 4096 - 49152,
    "coco/panoptic/eomt_large_640_eva02": L2 - 4096 - 49152 - 24576 + 24 * 4776,
}
# Multiply-accumulates that no test elsewhere counts, as the configs quote them.
GMACS = {
    "coco/panoptic/eomt_large_640_eva02": "666.0",
    "coco/panoptic/eomt_large_640_in1k": "666.1",
    "coco/instance/eomt_large_1280_dinov3": "4144",
    "ade20k/semantic/eomt_large_512": "394.1",
    "cityscapes/semantic/eomt_large_1024": "2174",
}
# Relative learning rates of block 0 and the embeddings: 0.8^11 of 12 blocks, 0.8^23 of 24.
DECAY_11, DECAY_23 = 0.08589934592, 0.005902958103587057


def build(name):
    """Config and network, on the device that stores no values."""
    cfg = load(name)
    return cfg, build_meta_model(cfg)


def learning_rates(name):
    """Group name to learning rate."""
    cfg, model = build(name)
    return {group["name"]: group["lr"] for group in build_optimizer(cfg, model).param_groups}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    cfg, model = build(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    quoted = f"# Cost: {PARAMETERS[name] / 1e6:.1f} M parameters"
    assert quoted in (ROOT / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", GMACS)
def test_multiply_accumulates(name):
    cfg, model = build(name)
    side = cfg.INPUT.IMAGE_SIZE
    count = network_complexity(model, side, side, masked=False)[""].macs / 1e9
    assert count == pytest.approx(float(GMACS[name]), rel=2e-4)
    assert f" {GMACS[name]} GMAC" in (ROOT / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_network_can_be_built(name):
    recipe = PUBLISHED[name]
    cfg, model = build(name)
    assert model.num_blocks == len(recipe.windows or [None] * 4)
    assert (model.mask_annealing is not None) is recipe.masked
    assert model.query_embed.num_embeddings == recipe.task.queries
    assert model.class_head.out_features == recipe.task.classes + 1
    assert (model.test_mode, model.image_size) == (recipe.task.test_mode, recipe.size)


def test_learning_rates_of_vit_large():
    rates = learning_rates("coco/panoptic/eomt_large_640")
    assert rates["block_23"] == rates["norm"] == rates["head"] == 1e-4
    assert rates["block_20"] == pytest.approx(5.12e-5)
    assert rates["block_0"] == rates["embeddings"] == pytest.approx(1e-4 * DECAY_23)
    assert rates["block_0"] == pytest.approx(5.90e-7, rel=1e-3)


@pytest.mark.parametrize("size", ["small", "base"])
def test_learning_rates_of_twelve_blocks(size):
    rates = learning_rates(f"coco/panoptic/eomt_{size}_640")
    assert rates["block_11"] == rates["head"] == 1e-4
    assert rates["block_10"] == pytest.approx(8e-5)
    assert rates["block_0"] == rates["embeddings"] == pytest.approx(1e-4 * DECAY_11)


def test_learning_rates_of_vit_giant():
    rates = learning_rates("coco/panoptic/eomt_giant_640")
    assert rates["block_39"] == rates["head"] == 1e-4
    assert rates["block_36"] == pytest.approx(5.12e-5)
    assert rates["block_0"] == pytest.approx(1e-4 * 0.00016615349947311433)  # 0.8^39


@pytest.mark.parametrize(
    "name",
    [
        "coco/panoptic/eomt_large_640_dinov3",
        "coco/panoptic/eomt_large_1280_dinov3",
        "coco/instance/eomt_large_640_dinov3",
        "coco/instance/eomt_large_1280_dinov3",
    ],
)
def test_query_blocks_of_dinov3_large_learn_at_the_full_rate(name):
    rates = learning_rates(name)
    assert [rates[f"block_{i}"] for i in (20, 21, 22, 23)] == [2e-4] * 4
    assert rates["block_19"] == pytest.approx(2e-4 * 0.4096)  # 0.8^4, as without the full rate
    assert rates["block_0"] == rates["embeddings"] == pytest.approx(2e-4 * DECAY_23)
    assert rates["norm"] == rates["head"] == 2e-4


@pytest.mark.parametrize("size", ["small", "base"])
def test_query_blocks_of_smaller_dinov3_models_learn_at_the_full_rate(size):
    rates = learning_rates(f"coco/panoptic/eomt_{size}_640_2x_dinov3")
    assert [rates[f"block_{i}"] for i in (9, 10, 11)] == [2e-4] * 3
    assert rates["block_8"] == pytest.approx(2e-4 * 0.512)  # 0.8^3
    assert rates["block_0"] == pytest.approx(2e-4 * DECAY_11)


def test_every_parameter_of_ade20k_semantic_dinov3_learns_alike():
    assert set(learning_rates("ade20k/semantic/eomt_large_512_dinov3").values()) == {2e-4}
