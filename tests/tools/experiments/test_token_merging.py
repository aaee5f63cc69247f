"""The experiment measures what it says: groups of similar patches, and nothing else changed."""

import torch

from eomt_d2.modeling.backbone.vit import ViT
from eomt_d2.modeling.criterion import MaskClassificationCriterion
from eomt_d2.modeling.eomt import EoMT
from eomt_d2.modeling.matcher import HungarianMatcher
from eomt_d2.modeling.postprocessing import PostProcessing
from tools.experiments.token_merging import mean_by_group, merge_patches, predict_merged


def test_the_most_similar_pairs_become_one():
    # Directions in degrees; even patches 0, 50, 90 and odd ones 52, 91, 200.
    degrees = torch.tensor([0.0, 52, 50, 91, 90, 200])
    radians = degrees.deg2rad()
    patches = torch.stack((radians.cos(), radians.sin()), dim=1)
    groups, representatives = merge_patches(patches, 2)
    # 90 goes to 91 (1 degree), 50 to 52 (2 degrees); 0 stays alone.
    assert representatives.tolist() == [0, 1, 3, 5]
    assert groups.tolist() == [0, 1, 1, 2, 2, 3]


def test_means_of_groups():
    patches = torch.tensor([[1.0, 2], [3, 4], [5, 0]])
    means = mean_by_group(patches, torch.tensor([1, 0, 1]), 2)
    assert means.tolist() == [[3, 4], [3, 1]]


def test_without_merging_it_is_the_plain_network():
    for position in ("learned", "rotary"):
        vit = ViT(img_size=64, embed_dim=16, depth=4, num_heads=2, position=position)
        model = EoMT(
            backbone=vit,
            num_blocks=2,
            num_classes=3,
            num_queries=5,
            criterion=MaskClassificationCriterion(num_classes=3, matcher=HungarianMatcher()),
            postprocessing=PostProcessing(semantic_on=True),
            pixel_mean=[0.0] * 3,
            pixel_std=[1.0] * 3,
            image_size=64,
        ).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.mask_annealing.set_probs([0.0, 0.0])
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            plain, merged = model.predict(images)[-1], predict_merged(model, images, 1, 0.0)[-1]
            other = predict_merged(model, images, 1, 0.5)[-1]
        torch.testing.assert_close(merged.mask_logits, plain.mask_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(merged.class_logits, plain.class_logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(other.class_logits, plain.class_logits, rtol=1e-3, atol=1e-3)
