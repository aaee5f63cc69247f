"""EoMT over DINOv3's ViT against transformers' independent implementation."""

import pytest
import torch
from transformers import EomtDinov3Config, EomtDinov3ForUniversalSegmentation

from tests.modeling.test_eomt import (
    BLOCKS,
    CLASSES,
    DEPTH,
    DIM,
    HEADS,
    POINTS,
    QUERIES,
    SIZE,
    make_model,
    oracle_predictions,
    perturb,
)


def make_oracle() -> EomtDinov3ForUniversalSegmentation:
    config = EomtDinov3Config(
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * DIM,
        image_size=SIZE,
        num_queries=QUERIES,
        num_blocks=BLOCKS,
        num_labels=CLASSES,
        train_num_points=POINTS,
        layer_norm_eps=1e-5,  # its default of 1e-6 is not DINOv3's
    )
    oracle = perturb(EomtDinov3ForUniversalSegmentation(config))
    oracle.attn_mask_probs.fill_(1)
    return oracle


def copy_weights(oracle, model) -> None:
    """Weights by the names that transformers gives them."""
    state = dict(oracle.state_dict())
    probs = state.pop("attn_mask_probs")
    state.pop("criterion.empty_weight")
    renamed = {
        "query_embed.weight": state.pop("query.weight"),
        "mask_annealing.probs": probs.expand(BLOCKS),
        "backbone.cls_token": state.pop("embeddings.cls_token"),
        "backbone.reg_token": state.pop("embeddings.register_tokens"),
    }
    for leaf in ("weight", "bias"):
        projection = state.pop(f"embeddings.patch_embeddings.{leaf}")
        renamed[f"backbone.patch_embed.proj.{leaf}"] = projection
        renamed[f"backbone.norm.{leaf}"] = state.pop(f"layernorm.{leaf}")
        renamed[f"class_head.{leaf}"] = state.pop(f"class_predictor.{leaf}")
        for i in range(3):
            renamed[f"mask_head.{2 * i}.{leaf}"] = state.pop(f"mask_head.fc{i + 1}.{leaf}")
    for i in range(DEPTH):
        ours, theirs = f"backbone.blocks.{i}", f"layers.{i}"
        thirds = [state.pop(f"{theirs}.attention.{x}_proj.weight") for x in "qkv"]
        renamed[f"{ours}.attn.qkv.weight"] = torch.cat(thirds)
        for x in "qv":
            renamed[f"{ours}.attn.{x}_bias"] = state.pop(f"{theirs}.attention.{x}_proj.bias")
        for k in (1, 2):
            renamed[f"{ours}.ls{k}.gamma"] = state.pop(f"{theirs}.layer_scale{k}.lambda1")
        for a, b in {
            "norm1": "norm1",
            "attn.proj": "attention.o_proj",
            "norm2": "norm2",
            "mlp.fc1": "mlp.up_proj",
            "mlp.fc2": "mlp.down_proj",
        }.items():
            for leaf in ("weight", "bias"):
                renamed[f"{ours}.{a}.{leaf}"] = state.pop(f"{theirs}.{b}.{leaf}")
    for key in list(state):
        ours = key.replace("upscale_block.block", "upscale").replace("layernorm2d", "norm")
        renamed[ours] = state.pop(key)
    assert not state
    model.load_state_dict(renamed, strict=True)


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    oracle = make_oracle()
    model = make_model(position="rotary", rotary_rescale=2.0, key_bias=False, norm_eps=1e-5)
    copy_weights(oracle, model)
    return oracle, model


@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_every_masked_prediction_equals_transformers(pair, training):
    """In training both rescale the coordinates of the patches, by the same random number."""
    oracle, model = (m.train(training) for m in pair)
    images = torch.randn(2, 3, SIZE, SIZE)
    torch.manual_seed(1)
    expected, _ = oracle_predictions(oracle, images)
    torch.manual_seed(1)
    actual = model.predict(images, all_predictions=training)
    assert len(expected) == len(actual) == BLOCKS + 1
    for (masks, classes), prediction in zip(expected, actual, strict=True):
        assert masks.std() > 0.1 and classes.std() > 0.1
        assert 0.01 < (masks > 0).float().mean() < 0.99, "masks must mask, but not everything"
        torch.testing.assert_close(prediction.mask_logits, masks, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(prediction.class_logits, classes, atol=2e-4, rtol=1e-4)
    if training:
        evaluated, _ = oracle_predictions(oracle.eval(), images)
        assert not torch.allclose(expected[0][0], evaluated[0][0], atol=1e-2)


@torch.no_grad()
def test_unmasked_evaluation_equals_transformers(pair):
    oracle, model = (m.eval() for m in pair)
    images = torch.randn(2, 3, SIZE, SIZE)
    model.mask_annealing.set_probs([0.0] * BLOCKS)
    oracle.attn_mask_probs.fill_(0)
    try:
        expected = oracle(images)
        every = model.predict(images, all_predictions=True)
        (actual,) = model.predict(images)
    finally:
        model.mask_annealing.set_probs([1.0] * BLOCKS)
        oracle.attn_mask_probs.fill_(1)
    masks, classes = expected.masks_queries_logits, expected.class_queries_logits
    for prediction in (actual, every[-1]):
        torch.testing.assert_close(prediction.mask_logits, masks, atol=2e-4, rtol=0)
        torch.testing.assert_close(prediction.class_logits, classes, atol=2e-4, rtol=0)
    masked = model.predict(images)[-1]
    assert not torch.allclose(masked.mask_logits, actual.mask_logits, atol=1e-2)
