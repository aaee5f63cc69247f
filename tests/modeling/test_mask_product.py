import pytest
import torch

from eomt_d2.modeling.criterion import MaskClassificationCriterion
from eomt_d2.modeling.mask_product import matched_masks, predict_masks
from eomt_d2.modeling.matcher import HungarianMatcher
from eomt_d2.modeling.structures import FactoredPrediction, MaskPrediction, MaskTarget
from tests.modeling.draws import Draws

QUERIES = [torch.tensor([1, 4]), torch.tensor([], dtype=torch.int64), torch.tensor([0])]


def make_factors(memory=torch.contiguous_format):
    embeddings = torch.randn(3, 5, 8, requires_grad=True)
    features = torch.randn(3, 8, 6, 7).contiguous(memory_format=memory).requires_grad_()
    return embeddings, features, torch.randn(3, 5, 4, requires_grad=True)


def test_masks_by_hand():
    embeddings = torch.tensor([[[1.0, 0.0], [2.0, -1.0]]])
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # 2 channels of 1 x 2 pixels
    prediction = predict_masks(embeddings, features, torch.zeros(1, 2, 3))
    # (1, 0) takes the first channel; 2 * first - second.
    assert prediction.mask_logits.tolist() == [[[[1.0, 2.0]], [[-1.0, 0.0]]]]
    assert matched_masks(prediction, [torch.tensor([1])]).tolist() == [[[-1.0, 0.0]]]


def test_factors_are_for_training_only():
    factors = make_factors()
    assert isinstance(predict_masks(*factors), FactoredPrediction)
    with torch.no_grad():
        prediction = predict_masks(*factors)
    assert type(prediction) is MaskPrediction


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_matched_masks_and_gradients_equal_selecting_them(memory):
    embeddings, features, classes = make_factors(memory)
    prediction = predict_masks(embeddings, features, classes)
    images, queries = torch.tensor([0, 0, 2]), torch.tensor([1, 4, 0])
    expected = prediction.mask_logits[images, queries]
    actual = matched_masks(prediction, QUERIES)
    torch.testing.assert_close(actual, expected)
    plain = MaskPrediction(prediction.mask_logits, classes)
    assert torch.equal(matched_masks(plain, QUERIES), expected)

    weights = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, (embeddings, features), weights)
    gradients = torch.autograd.grad(actual, (embeddings, features), weights)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert expected_gradient.abs().max() > 0.1
        torch.testing.assert_close(gradient, expected_gradient)


def test_nothing_matched_still_reaches_the_factors():
    factors = make_factors()
    none = [torch.tensor([], dtype=torch.int64)] * 3
    masks = matched_masks(predict_masks(*factors), none)
    assert masks.shape == (0, 6, 7)
    masks.sum().backward()
    for factor in factors[:2]:
        assert torch.equal(factor.grad, torch.zeros_like(factor))


def test_all_masks_can_be_differentiated_too():
    embeddings, features, classes = make_factors()
    predict_masks(embeddings, features, classes).mask_logits.sum().backward()
    torch.testing.assert_close(embeddings.grad, features.sum((2, 3))[:, None].expand(-1, 5, -1))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_equal_those_of_plain_predictions(precision):
    """Two predictions of three images; gradients with respect to everything a network makes."""
    factors = [make_factors(torch.channels_last) for _ in range(2)]
    targets = [
        MaskTarget(torch.randint(3, (count,)), torch.rand(count, 24, 28) > 0.5)
        for count in (3, 0, 9)
    ]
    criterion = MaskClassificationCriterion(
        num_classes=3, matcher=HungarianMatcher(num_points=60), num_points=60
    )
    draws = Draws()
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        predictions = [predict_masks(*tensors) for tensors in factors]
        with draws.record():
            losses = criterion(predictions, targets)
        with draws.replay():
            plain = [MaskPrediction(p.mask_logits, p.class_logits) for p in predictions]
            expected = criterion(plain, targets)
    tolerance = {} if precision == torch.float32 else dict(rtol=0.02, atol=0.02)
    torch.testing.assert_close(losses, expected, **tolerance)
    leaves = [tensor for tensors in factors for tensor in tensors]
    gradients = torch.autograd.grad(sum(losses.values()), leaves, retain_graph=True)
    expected_gradients = torch.autograd.grad(sum(expected.values()), leaves)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert expected_gradient.any()
        torch.testing.assert_close(gradient, expected_gradient, **tolerance)
