import itertools
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from eomt_d2.modeling.matcher import HungarianMatcher, matching_cost
from eomt_d2.modeling.structures import MaskPrediction, MaskTarget
from tests.modeling.draws import Draws

WEIGHTS = dict(class_weight=2.0, mask_weight=5.0, dice_weight=5.0)

LEFT = torch.tensor([[1, 1, 0, 0]]).expand(4, 4) > 0
RIGHT = ~LEFT
NONE = torch.zeros(4, 4, dtype=torch.bool)


def logits_of(*masks):
    """(1, Q, h, w) confident logits of boolean masks."""
    return torch.stack([mask.float() * 20 - 10 for mask in masks])[None]


def match_one(mask_logits, class_logits, target, num_points=64):
    matcher = HungarianMatcher(num_points=num_points)
    [[(queries, segments)]] = matcher.match([MaskPrediction(mask_logits, class_logits)], [target])
    return queries.tolist(), segments.tolist()


def random_batch(num_images=3, num_queries=6, num_classes=4, num_segments=(3, 0, 9)):
    prediction = MaskPrediction(
        torch.randn(num_images, num_queries, 8, 8) * 3,
        torch.randn(num_images, num_queries, num_classes + 1),
    )
    targets = [
        MaskTarget(torch.randint(num_classes, (count,)), torch.rand(count, 32, 32) > 0.5)
        for count in num_segments
    ]
    return prediction, targets


def test_cost_by_hand():
    # Softmax of (0, 0) is 1/2; the sigmoid of ln 3 is 3/4 at each of four points, two in the mask.
    cost = matching_cost(
        torch.zeros(1, 2),
        torch.full((1, 4), 3.0).log(),
        torch.tensor([0]),
        torch.tensor([[1.0, 1.0, 0.0, 0.0]]),
        **WEIGHTS,
    )
    # class: -1/2.   BCE: (2 ln(4/3) + 2 ln 4) / 4 = 0.8369882.
    # dice: 1 - (2 * (3/4 + 3/4) + 1) / (3 + 2 + 1) = 1/3.
    # 2 * -1/2 + 5 * 0.8369882 + 5 / 3 = 4.851608.
    assert cost.shape == (1, 1)
    assert cost.item() == pytest.approx(4.851608, abs=1e-5)


@pytest.mark.parametrize("num_points", [1, 32, 75, 200])
@pytest.mark.parametrize("scale", [0.01, 5.0, 200.0])
def test_cost_equals_the_plain_formulas(num_points, scale):
    """Every pair by itself, in float64. Logits of up to hundreds, where sigmoids are 0 and 1."""
    classes, logits = torch.randn(4, 3), torch.randn(4, num_points) * scale
    labels, masks = torch.tensor([2, 0]), (torch.rand(2, num_points) > 0.5).float()
    expected = torch.empty(4, 2, dtype=torch.float64)
    for q, m in itertools.product(range(4), range(2)):
        x, t = logits[q].double(), masks[m].double()
        p = x.sigmoid()
        dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        expected[q, m] = (
            -2 * classes[q].double().softmax(0)[labels[m]]
            + 5 * F.binary_cross_entropy_with_logits(x, t)
            + 5 * dice
        )
    cost = matching_cost(classes, logits, labels, masks, **WEIGHTS)
    torch.testing.assert_close(cost.double(), expected, rtol=1e-5, atol=1e-5)


def test_cost_is_finite():
    inf, nan = float("inf"), float("nan")
    labels, masks = torch.tensor([0]), torch.tensor([[0.0, 0.0]])
    # Softmax of an infinite logit is NaN; a NaN cost becomes 0.
    broken = matching_cost(torch.tensor([[inf, 0.0]]), torch.zeros(1, 2), labels, masks, **WEIGHTS)
    assert broken.item() == 0.0
    broken = matching_cost(torch.zeros(1, 2), torch.tensor([[nan, 0.0]]), labels, masks, **WEIGHTS)
    assert broken.item() == 0.0
    huge = matching_cost(torch.zeros(1, 2), torch.full((1, 2), 1e12), labels, masks, **WEIGHTS)
    assert huge.item() == 1e10


def test_masks_decide():
    target = MaskTarget(torch.tensor([0, 0]), torch.stack([LEFT, RIGHT]))
    # Queries: right, nothing, left. Their classes are alike.
    pairs = match_one(logits_of(RIGHT, NONE, LEFT), torch.zeros(1, 3, 3), target)
    assert pairs == ([0, 2], [1, 0])


def test_classes_decide():
    target = MaskTarget(torch.tensor([1, 0]), torch.stack([LEFT, LEFT]))
    class_logits = torch.tensor([[[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]]])
    pairs = match_one(logits_of(LEFT, LEFT), class_logits, target)
    assert pairs == ([0, 1], [1, 0])


def test_total_cost_is_minimal_not_each_cost():
    # Both segments like query 0 best (costs -0.98 and -0.90), but giving it to segment 0
    # leaves segment 1 with query 1 (-0.05): -1.03 in all, against -0.90 - 0.50 = -1.40.
    target = MaskTarget(torch.tensor([0, 0]), torch.stack([LEFT, RIGHT]))
    costs = torch.tensor([[[-0.98, -0.90], [-0.50, -0.05]]])
    with mock.patch("eomt_d2.modeling.matcher.matching_cost", return_value=costs):
        pairs = match_one(logits_of(LEFT, RIGHT), torch.zeros(1, 2, 2), target)
    assert pairs == ([0, 1], [1, 0])


def test_more_segments_than_queries():
    target = MaskTarget(torch.tensor([0, 0, 0]), torch.stack([RIGHT, ~NONE, LEFT]))
    pairs = match_one(logits_of(LEFT, RIGHT), torch.zeros(1, 2, 2), target)
    assert pairs == ([0, 1], [2, 0])


def test_image_without_segments_beside_one_with():
    prediction, targets = random_batch(num_images=2, num_segments=(0, 2))
    [[(queries, segments), (other_queries, _)]] = HungarianMatcher(num_points=16).match(
        [prediction], targets
    )
    assert queries.shape == segments.shape == (0,)
    assert queries.dtype == segments.dtype == torch.int64
    assert len(other_queries) == 2


def test_nan_and_infinite_logits_still_give_a_matching():
    prediction, targets = random_batch()
    prediction.mask_logits[0, 2] = float("inf")
    prediction.mask_logits[1:, 1] = float("nan")
    prediction.class_logits[2, 3] = float("inf")
    [matches] = HungarianMatcher(num_points=16).match([prediction], targets)
    assert [len(queries) for queries, _ in matches] == [3, 0, 6]
    for queries, segments in matches:
        assert len(set(queries.tolist())) == len(set(segments.tolist())) == len(queries)


def test_half_precision_and_autocast_do_not_change_the_matching():
    prediction, targets = random_batch()
    half = MaskPrediction(*(logits.half() for logits in prediction))
    exact = MaskPrediction(*(logits.float() for logits in half))
    draws, matcher = Draws(), HungarianMatcher(num_points=50)
    with draws.record():
        [expected] = matcher.match([exact], targets)
    with draws.replay(), torch.autocast("cpu", dtype=torch.bfloat16):
        [matches] = matcher.match([half], targets)
    for pair, expected_pair in zip(matches, expected, strict=True):
        assert torch.equal(torch.stack(pair), torch.stack(expected_pair))


def test_several_predictions_equal_one_after_another():
    batches = [random_batch() for _ in range(3)]
    predictions, targets = [prediction for prediction, _ in batches], batches[0][1]
    matcher = HungarianMatcher(num_points=40)
    torch.manual_seed(1)
    together = matcher.match(predictions, targets)
    # One draw of (1, P, 2) per image, prediction by prediction.
    torch.manual_seed(1)
    alone = [matcher.match([prediction], targets)[0] for prediction in predictions]
    for matches, expected in zip(together, alone, strict=True):
        for pair, expected_pair in zip(matches, expected, strict=True):
            assert torch.equal(torch.stack(pair), torch.stack(expected_pair))


def test_agrees_with_transformers():
    from transformers.models.eomt.modeling_eomt import EomtHungarianMatcher

    prediction, targets = random_batch()
    oracle = EomtHungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=300)
    torch.manual_seed(5)
    [matches] = HungarianMatcher(num_points=300).match([prediction], targets)
    torch.manual_seed(5)
    expected = oracle(
        masks_queries_logits=prediction.mask_logits,
        class_queries_logits=prediction.class_logits,
        mask_labels=[target.masks.float() for target in targets],
        class_labels=[target.labels for target in targets],
    )
    for pair, expected_pair in zip(matches, expected, strict=True):
        assert torch.equal(torch.stack(pair), torch.stack([*expected_pair]))
