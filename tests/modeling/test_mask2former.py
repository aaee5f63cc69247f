"""Mask2Former against transformers' independent implementation, and its own invariants."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from eomt_d2.modeling.criterion import MaskClassificationCriterion
from eomt_d2.modeling.mask2former import Mask2Former
from eomt_d2.modeling.matcher import HungarianMatcher
from eomt_d2.modeling.pixel_decoder import MSDeformAttnPixelDecoder
from eomt_d2.modeling.postprocessing import PostProcessing
from eomt_d2.modeling.structures import MaskTarget
from eomt_d2.modeling.transformer_decoder import MaskedTransformerDecoder
from tests.modeling.test_eomt import (
    CLASSES,
    POINTS,
    QUERIES,
    perturb,
    uniform_numbers_by_shape,
)

DIM, HEADS, ENCODER_LAYERS, LAYERS = 32, 4, 2, 4
NAMES = ["res2", "res3", "res4", "res5"]


class SwinMaps(Backbone):
    """The oracle's own backbone, so that only the decoders differ."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images):
        return dict(zip(NAMES, self.encoder(images).feature_maps, strict=True))

    def output_shape(self):
        return {
            name: ShapeSpec(channels=16 * 2**i, stride=4 * 2**i) for i, name in enumerate(NAMES)
        }


def make_oracle() -> Mask2FormerForUniversalSegmentation:
    swin = SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[1] * 4,
        num_heads=[2] * 4,
        window_size=2,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        hidden_dim=DIM,
        feature_size=DIM,
        mask_feature_size=DIM,
        encoder_layers=ENCODER_LAYERS,
        encoder_feedforward_dim=48,
        decoder_layers=LAYERS + 1,
        num_attention_heads=HEADS,
        dim_feedforward=64,
        num_queries=QUERIES,
        num_labels=CLASSES,
        train_num_points=POINTS,
        output_auxiliary_logits=True,
    )
    oracle = perturb(Mask2FormerForUniversalSegmentation(config))
    with torch.no_grad():
        # Random masks would be positive nearly everywhere; this brings them into balance.
        last = "transformer_module.decoder.mask_predictor.mask_embedder.2.0.bias"
        oracle.model.get_parameter(last).mul_(-0.5)
    return oracle


def make_model(backbone) -> Mask2Former:
    maps = dict(mask_feature="res2", key_features=NAMES[1:], dim=DIM)
    return Mask2Former(
        backbone=backbone,
        pixel_decoder=MSDeformAttnPixelDecoder(
            backbone.output_shape(),
            num_layers=ENCODER_LAYERS,
            num_heads=HEADS,
            ffn_dim=48,
            **maps,
        ),
        transformer_decoder=MaskedTransformerDecoder(
            num_classes=CLASSES,
            num_queries=QUERIES,
            dim=DIM,
            num_layers=LAYERS,
            num_heads=HEADS,
            ffn_dim=64,
        ),
        num_classes=CLASSES,
        num_queries=QUERIES,
        criterion=MaskClassificationCriterion(
            num_classes=CLASSES, matcher=HungarianMatcher(num_points=POINTS), num_points=POINTS
        ),
        postprocessing=PostProcessing(panoptic_on=True, thing_ids={0, 1, 2}),
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
        image_size=64,
    )


# transformers' names and ours, part by part.
PIXEL_DECODER = [
    ("input_projections.", "input_proj."),
    ("encoder.layers.", "layers."),
    ("self_attn_layer_norm.", "norm1."),
    ("final_layer_norm.", "norm2."),
    ("fc1.", "linear1."),
    ("fc2.", "linear2."),
    ("mask_projection.", "mask_features."),
    ("adapter_1.0.", "lateral."),
    ("adapter_1.1.", "lateral.norm."),
    ("layer_1.0.", "output."),
    ("layer_1.1.", "output.norm."),
]
DECODER = [
    ("queries_features.", "query_feat."),
    ("queries_embedder.", "query_embed."),
    ("decoder.layers.", "layers."),
    ("cross_attn_layer_norm.", "norm1."),
    ("self_attn_layer_norm.", "norm2."),
    ("final_layer_norm.", "norm3."),
    ("fc1.", "linear1."),
    ("fc2.", "linear2."),
    ("decoder.layernorm.", "norm."),
    ("decoder.mask_predictor.mask_embedder.0.0.", "mask_head.0."),
    ("decoder.mask_predictor.mask_embedder.1.0.", "mask_head.2."),
    ("decoder.mask_predictor.mask_embedder.2.0.", "mask_head.4."),
]


def copy_weights(oracle, model) -> None:
    state = dict(oracle.state_dict())
    state.pop("criterion.empty_weight")
    renamed = {"mask_annealing.probs": torch.ones(LAYERS)}
    for leaf in ("weight", "bias"):
        renamed[f"decoder.class_head.{leaf}"] = state.pop(f"class_predictor.{leaf}")
        for i in range(LAYERS):
            attention = f"model.transformer_module.decoder.layers.{i}.self_attn"
            thirds = [state.pop(f"{attention}.{x}_proj.{leaf}") for x in "qkv"]
            renamed[f"decoder.layers.{i}.self_attn.in_proj_{leaf}"] = torch.cat(thirds)
    for name, tensor in state.items():
        for theirs, ours, parts in (
            ("model.pixel_level_module.encoder.", "backbone.encoder.", []),
            ("model.pixel_level_module.decoder.", "pixel_decoder.", PIXEL_DECODER),
            ("model.transformer_module.", "decoder.", DECODER),
        ):
            if name.startswith(theirs):
                leaf = name.removeprefix(theirs)
                for old, new in parts:
                    leaf = leaf.replace(old, new)
                renamed[ours + leaf] = tensor
    model.load_state_dict(renamed, strict=True)


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    oracle = make_oracle()
    model = make_model(SwinMaps(make_oracle().model.pixel_level_module.encoder))
    copy_weights(oracle, model)
    return oracle, model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_every_prediction_equals_transformers(pair, training, size):
    oracle, model = (m.train(training) for m in pair)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        output = oracle(images)
        actual = model.predict(images, all_predictions=training)
    expected = [
        (x["masks_queries_logits"], x["class_queries_logits"]) for x in output.auxiliary_logits
    ]
    expected.append((output.masks_queries_logits, output.class_queries_logits))
    assert len(actual) == len(expected) == LAYERS + 1
    for (masks, classes), prediction in zip(expected, actual, strict=True):
        assert masks.shape[-2:] == (size[0] // 4, size[1] // 4)
        assert masks.std() > 0.1 and classes.std() > 0.1
        assert 0.1 < (masks > 0).float().mean() < 0.9, "masks must mask, but not everything"
        torch.testing.assert_close(prediction.mask_logits, masks, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(prediction.class_logits, classes, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected[-1][0], expected[-2][0], atol=1e-2)


def test_total_loss_and_gradients_equal_transformers(pair):
    oracle, model = (m.train() for m in pair)
    images = torch.randn(2, 3, 64, 64)
    masks = torch.zeros(4, 64, 64)
    masks[0, :30], masks[1, 30:, :20], masks[2, 5:60, 8:40], masks[3, :, 41:] = 1, 1, 1, 1
    labels = torch.tensor([0, 3, 4, 2])
    mask_labels, class_labels = [masks[:2], masks[2:]], [labels[:2], labels[2:]]
    with uniform_numbers_by_shape(5):
        expected = oracle(images, mask_labels=mask_labels, class_labels=class_labels).loss
    targets = [MaskTarget(c, m.bool()) for m, c in zip(mask_labels, class_labels, strict=True)]
    with uniform_numbers_by_shape(5):
        *others, last = model.predict(images, all_predictions=True)
        losses = model.criterion([last, *others], targets)  # transformers' order
    torch.testing.assert_close(sum(losses.values()), expected, atol=1e-4, rtol=1e-5)

    oracle.zero_grad(), model.zero_grad()
    expected.backward(), sum(losses.values()).backward()
    for theirs, ours in (
        (oracle.model.transformer_module.queries_features, model.decoder.query_feat),
        (oracle.model.transformer_module.level_embed, model.decoder.level_embed),
        (
            oracle.model.pixel_level_module.decoder.encoder.layers[0].self_attn.sampling_offsets,
            model.pixel_decoder.layers[0].self_attn.sampling_offsets,
        ),
    ):
        assert theirs.weight.grad.abs().max() > 1e-3
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, atol=1e-3, rtol=1e-3)


def test_batch_equals_single(pair):
    _, model = pair
    model.eval().mask_annealing.set_probs([0.4, 1.0, 0.6, 0.0])  # draws rows, alike for each image
    images = torch.randn(3, 3, 64, 64)
    try:
        with torch.no_grad():
            together = model.predict(images)[-1].mask_logits
            alone = torch.cat([model.predict(x[None])[-1].mask_logits for x in images])
    finally:
        model.mask_annealing.set_probs([1.0] * LAYERS)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_a_finished_model_masks_unless_it_was_annealed(pair):
    _, model = pair
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        masked = model.eval().predict(images)
        every = model.predict(images, all_predictions=True)
        try:
            model.mask_annealing.set_probs([0.0] * LAYERS)
            (free,) = model.predict(images)
            assert len(model.train().predict(images, all_predictions=True)) == LAYERS + 1
            model.eval().mask_annealing.set_probs([0.0, 0.0, 1.0, 0.0])
            partly = model.predict(images)
        finally:
            model.mask_annealing.set_probs([1.0] * LAYERS)
    assert [len(masked), len(every), len(partly)] == [5, 5, 2]
    torch.testing.assert_close(masked[-1].mask_logits, every[-1].mask_logits)
    for other in (free, partly[-1]):
        assert not torch.allclose(other.mask_logits, masked[-1].mask_logits, atol=1e-2)
    assert not torch.allclose(free.mask_logits, partly[-1].mask_logits, atol=1e-2)
