"""EoMT against transformers' independent implementation, and its own invariants."""

import contextlib
from collections import defaultdict
from unittest import mock

import pytest
import torch
from transformers import EomtConfig, EomtForUniversalSegmentation

from eomt_d2.modeling.backbone.vit import ViT
from eomt_d2.modeling.criterion import MaskClassificationCriterion
from eomt_d2.modeling.eomt import EoMT
from eomt_d2.modeling.matcher import HungarianMatcher
from eomt_d2.modeling.postprocessing import PostProcessing
from eomt_d2.modeling.structures import MaskTarget

DIM, DEPTH, HEADS, QUERIES, BLOCKS, CLASSES, SIZE, POINTS = 32, 4, 4, 7, 2, 5, 64, 96


def make_model(masked_attention=True, **vit) -> EoMT:
    args = dict(embed_dim=DIM, depth=DEPTH, num_heads=HEADS, patch_size=16, img_size=SIZE)
    return EoMT(
        backbone=ViT(**{**args, **vit}),
        num_queries=QUERIES,
        num_blocks=BLOCKS,
        masked_attention=masked_attention,
        num_classes=CLASSES,
        criterion=MaskClassificationCriterion(
            num_classes=CLASSES,
            matcher=HungarianMatcher(num_points=POINTS),
            num_points=POINTS,
        ),
        postprocessing=PostProcessing(panoptic_on=True, thing_ids={0, 1, 2}),
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
        image_size=SIZE,
    )


def perturb(model, seed=3):
    """Random weights everywhere: fresh LayerScale and zero biases would hide broken blocks."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.3 if parameter.dim() == 1 else 0.08))
    return model


def make_oracle() -> EomtForUniversalSegmentation:
    config = EomtConfig(
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=SIZE,
        num_queries=QUERIES,
        num_blocks=BLOCKS,
        num_labels=CLASSES,
        train_num_points=POINTS,
    )
    oracle = perturb(EomtForUniversalSegmentation(config))
    oracle.attn_mask_probs.fill_(1)
    return oracle


def copy_weights(oracle, model) -> None:
    """Weights by the names that transformers and the published specification give them."""
    state = dict(oracle.state_dict())
    renamed = {
        "query_embed.weight": state.pop("query.weight"),
        "mask_annealing.probs": state.pop("attn_mask_probs"),
        "backbone.cls_token": state.pop("embeddings.cls_token"),
        "backbone.reg_token": state.pop("embeddings.register_tokens"),
        "backbone.pos_embed": state.pop("embeddings.position_embeddings.weight")[None],
    }
    state.pop("criterion.empty_weight")
    for leaf in ("weight", "bias"):
        projection = f"embeddings.patch_embeddings.projection.{leaf}"
        renamed[f"backbone.patch_embed.proj.{leaf}"] = state.pop(projection)
        renamed[f"backbone.norm.{leaf}"] = state.pop(f"layernorm.{leaf}")
        renamed[f"class_head.{leaf}"] = state.pop(f"class_predictor.{leaf}")
        for i in range(3):
            renamed[f"mask_head.{2 * i}.{leaf}"] = state.pop(f"mask_head.fc{i + 1}.{leaf}")
        for i in range(DEPTH):
            ours, theirs = f"backbone.blocks.{i}", f"layers.{i}"
            thirds = [state.pop(f"{theirs}.attention.{x}_proj.{leaf}") for x in "qkv"]
            renamed[f"{ours}.attn.qkv.{leaf}"] = torch.cat(thirds)
            out = f"{theirs}.attention.out_proj.{leaf}"
            renamed[f"{ours}.attn.proj.{leaf}"] = state.pop(out)
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                renamed[f"{ours}.{name}.{leaf}"] = state.pop(f"{theirs}.{name}.{leaf}")
    for i in range(DEPTH):
        for k in (1, 2):
            scale = state.pop(f"layers.{i}.layer_scale{k}.lambda1")
            renamed[f"backbone.blocks.{i}.ls{k}.gamma"] = scale
    for key in list(state):
        ours = key.replace("upscale_block.block", "upscale").replace("layernorm2d", "norm")
        renamed[ours] = state.pop(key)
    assert not state
    model.load_state_dict(renamed, strict=True)


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    oracle, model = make_oracle(), make_model()
    copy_weights(oracle, model)
    return oracle, model


def oracle_predictions(oracle, images, **kwargs):
    """All (masks, classes) that the oracle predicts on the way, and its output."""
    predictions = []
    predict = oracle.predict
    with mock.patch.object(
        oracle, "predict", side_effect=lambda x: predictions.append(predict(x)) or predictions[-1]
    ):
        output = oracle(images, **kwargs)
    return predictions, output


@pytest.mark.parametrize("training", [True, False])
def test_every_masked_prediction_equals_transformers(pair, training):
    oracle, model = (m.train(training) for m in pair)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected, _ = oracle_predictions(oracle, images)
        actual = model.predict(images, all_predictions=training)
    assert len(expected) == len(actual) == BLOCKS + 1
    for (masks, classes), prediction in zip(expected, actual, strict=True):
        assert masks.std() > 0.1 and classes.std() > 0.1
        assert 0.01 < (masks > 0).float().mean() < 0.99, "masks must mask, but not everything"
        torch.testing.assert_close(prediction.mask_logits, masks, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(prediction.class_logits, classes, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(expected[-1][0], expected[-2][0], atol=1e-2)


def test_unmasked_evaluation_equals_transformers_and_predicts_once(pair):
    oracle, model = (m.eval() for m in pair)
    images = torch.randn(2, 3, SIZE, SIZE)
    model.mask_annealing.set_probs([0.0] * BLOCKS)
    oracle.attn_mask_probs.fill_(0)
    try:
        with torch.no_grad():
            expected = oracle(images)
            (actual,) = model.predict(images)
    finally:
        model.mask_annealing.set_probs([1.0] * BLOCKS)
        oracle.attn_mask_probs.fill_(1)
    torch.testing.assert_close(actual.mask_logits, expected.masks_queries_logits, atol=2e-4, rtol=0)
    torch.testing.assert_close(
        actual.class_logits, expected.class_queries_logits, atol=2e-4, rtol=0
    )
    with torch.no_grad():
        masked = model.predict(images)[-1]
    assert not torch.allclose(masked.mask_logits, actual.mask_logits, atol=1e-2)


@contextlib.contextmanager
def uniform_numbers_by_shape(seed):
    """torch.rand gives, per shape, the same sequence to whoever calls it.

    Ours matches all predictions first and draws the points of the losses afterwards; transformers
    alternates. With this, both see the same numbers from the same seed.
    """
    counts = defaultdict(int)

    def rand(*size, device=None, dtype=None, **_):
        size = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        counts[size] += 1
        generator = torch.Generator().manual_seed(hash((seed, counts[size], *size)) % 2**31)
        return torch.empty(size, dtype=dtype).uniform_(generator=generator)

    with mock.patch("torch.rand", rand):
        yield


def test_total_loss_and_gradients_equal_transformers(pair):
    oracle, model = (m.train() for m in pair)
    images = torch.randn(2, 3, SIZE, SIZE)
    masks = torch.zeros(5, SIZE, SIZE)
    masks[0, :30], masks[1, 30:, :20], masks[2, 30:, 20:] = 1, 1, 1
    masks[3, 5:60, 8:40], masks[4, :, 41:] = 1, 1
    labels = torch.tensor([0, 3, 1, 4, 2])
    mask_labels, class_labels = [masks[:3], masks[3:]], [labels[:3], labels[3:]]
    with uniform_numbers_by_shape(5):
        expected = oracle(images, mask_labels=mask_labels, class_labels=class_labels).loss
    targets = [MaskTarget(c, m.bool()) for m, c in zip(mask_labels, class_labels, strict=True)]
    with uniform_numbers_by_shape(5):
        losses = model.criterion(model.predict(images, all_predictions=True), targets)
    actual = sum(losses.values())
    assert len(losses) == 3 * (BLOCKS + 1)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)

    oracle.zero_grad(), model.zero_grad()
    expected.backward(), actual.backward()
    grad = oracle.embeddings.patch_embeddings.projection.weight.grad
    torch.testing.assert_close(
        model.backbone.patch_embed.proj.weight.grad, grad, atol=1e-4, rtol=1e-3
    )
    torch.testing.assert_close(model.query_embed.weight.grad, oracle.query.weight.grad,
                               atol=1e-4, rtol=1e-3)  # fmt: skip


def test_partly_annealed_weights_mask_only_where_told(pair):
    """Block 0 unmasked, block 1 masked: the mask of block 1 comes from the tokens before it."""
    _, model = pair
    model.eval().mask_annealing.set_probs([0.0, 1.0])
    images = torch.randn(1, 3, SIZE, SIZE)
    try:
        with torch.no_grad():
            predictions = model.predict(images)
            every = model.predict(images, all_predictions=True)
    finally:
        model.mask_annealing.set_probs([1.0] * BLOCKS)
    assert (len(predictions), len(every)) == (2, 3)
    torch.testing.assert_close(predictions[-1].mask_logits, every[-1].mask_logits)


def test_training_supervises_every_prediction_after_annealing(pair):
    _, model = pair
    model.train().mask_annealing.set_probs([0.0] * BLOCKS)
    try:
        assert len(model.predict(torch.randn(1, 3, SIZE, SIZE), all_predictions=True)) == 3
    finally:
        model.mask_annealing.set_probs([1.0] * BLOCKS)


def test_without_masked_attention_only_the_last_prediction_is_made():
    model = make_model(masked_attention=False)
    assert len(model.predict(torch.randn(1, 3, SIZE, SIZE), all_predictions=True)) == 1
    assert not any("probs" in key for key in model.state_dict())


def test_batch_equals_single(pair):
    _, model = pair
    model.eval().mask_annealing.set_probs([0.4, 0.6])  # draws rows, alike for each image
    images = torch.randn(3, 3, SIZE, SIZE)
    try:
        with torch.no_grad():
            together = model.predict(images)[-1].mask_logits
            alone = torch.cat([model.predict(x[None])[-1].mask_logits for x in images])
    finally:
        model.mask_annealing.set_probs([1.0] * BLOCKS)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_bfloat16_inference_is_close(pair):
    """bfloat16 has 8 bits: what is added up over the blocks is off by up to a few percent of the
    logits' spread, and few of the masks' pixels change sides."""
    _, model = pair
    model.eval().mask_annealing.set_probs([0.0] * BLOCKS)
    images = [torch.randint(0, 255, (3, 48, SIZE), dtype=torch.uint8)]
    model.pixel_std.fill_(60.0), model.pixel_mean.fill_(120.0)
    try:
        with torch.no_grad():
            expected = model._final(images, (SIZE, SIZE))
            model.test_dtype = torch.bfloat16
            actual = model._final(images, (SIZE, SIZE))
    finally:
        model.test_dtype = None
        model.pixel_std.fill_(1.0), model.pixel_mean.fill_(0.0)
        model.mask_annealing.set_probs([1.0] * BLOCKS)
    assert actual.mask_logits.dtype == torch.bfloat16
    for a, b in zip(actual, expected, strict=True):
        difference = a.float() - b
        assert 0 < difference.std() < 0.03 * b.std()
    assert ((actual.mask_logits > 0) != (expected.mask_logits > 0)).float().mean() < 0.02


def training_input(num_segments=2, size=SIZE):
    from detectron2.structures import BitMasks, Instances

    instances = Instances((size, size))
    instances.gt_classes = torch.arange(num_segments) % CLASSES
    masks = torch.zeros(num_segments, size, size, dtype=torch.bool)
    for i in range(num_segments):
        masks[i, 3 * i : 3 * i + 20] = True
    instances.gt_masks = BitMasks(masks)
    image = torch.randint(0, 255, (3, size, size), dtype=torch.uint8)
    return {"image": image, "instances": instances}


PLAIN = dict(num_registers=0, layer_scale_init=0.0)
EVA02 = dict(PLAIN, position="eva02", ffn="swiglu_subln", key_bias=False)


@pytest.mark.parametrize(
    "segments, vit",
    [((0, 0), {}), ((0, 3), {}), ((QUERIES + 4, 1), {}), ((0, 3), PLAIN), ((0, 3), EVA02)],
)
def test_every_parameter_gets_a_gradient(segments, vit):
    """Without ground truth, with some, and with more segments than queries: DDP allows no unused
    parameter. With registers and without, with EVA-02's blocks."""
    model = perturb(make_model(**vit)).train()
    losses = model([training_input(n) for n in segments])
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_sizes_of_published_models():
    """Parameters with head at 640, 133 classes, 200 queries; SPEC-eomt, table of backbones."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from eomt_d2.config import add_eomt_config

    published = {
        "vit_small_patch14_reg4_dinov2": (23_975_942, 3),
        "vit_base_patch14_reg4_dinov2": (93_663_110, 3),
        "vit_large_patch14_reg4_dinov2": (316_695_686, 4),
        "vit_giant_patch14_reg4_dinov2": (1_163_622_022, 5),
        "vit_small_patch16_dinov3": (23_356_934, 3),
        "vit_base_patch16_dinov3": (92_425_094, 3),
        "vit_large_patch16_dinov3": (315_032_710, 4),
    }
    for name, (parameters, blocks) in published.items():
        cfg = get_cfg()
        add_eomt_config(cfg)
        cfg.merge_from_file("configs/coco/panoptic/eomt_large_640.yaml")
        cfg.MODEL.VIT.NAME, cfg.MODEL.DEVICE = name, "meta"
        with torch.device("meta"):
            model = build_model(cfg)
        assert sum(p.numel() for p in model.parameters()) == parameters
        assert model.num_blocks == blocks
