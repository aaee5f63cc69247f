from unittest import mock

import pytest
import torch
from torch import nn

from eomt_d2.modeling.criterion import (
    MaskClassificationCriterion,
    dice_loss,
    mask_cross_entropy,
)
from eomt_d2.modeling.matcher import HungarianMatcher
from eomt_d2.modeling.structures import MaskPrediction, MaskTarget
from tests.modeling.draws import Draws, center_only, same_points_for_all

LN2, LN3 = 0.6931472, 1.0986123
ALL = torch.ones(4, 4, dtype=torch.bool)


def make_criterion(num_classes, num_points=4, **kwargs):
    return MaskClassificationCriterion(
        num_classes=num_classes,
        matcher=HungarianMatcher(num_points=num_points),
        num_points=num_points,
        **kwargs,
    )


def hand_made_prediction():
    """Two queries, two classes. Sigmoids: 3/4 and 1/4 everywhere.

    Class probabilities: (1/4, 1/2, 1/4) and (1/3, 1/3, 1/3).
    """
    masks = torch.tensor([LN3, -LN3]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    classes = torch.tensor([[[0.0, LN2, 0.0], [0.0, 0.0, 0.0]]])
    return MaskPrediction(masks, classes)


def random_batch(num_segments, num_queries=6, num_classes=5, num_predictions=3):
    predictions = [
        MaskPrediction(
            torch.randn(len(num_segments), num_queries, 8, 8) * 3,
            torch.randn(len(num_segments), num_queries, num_classes + 1),
        )
        for _ in range(num_predictions)
    ]
    targets = [
        MaskTarget(torch.randint(num_classes, (count,)), torch.rand(count, 32, 32) > 0.6)
        for count in num_segments
    ]
    return predictions, targets


def test_mask_terms_by_hand():
    # Sigmoids 3/4 at four points, two of them inside the mask.
    logits = torch.full((1, 4), LN3)
    targets = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    # (2 ln(4/3) + 2 ln 4) / 4 and 1 - (2 * 3/2 + 1) / (3 + 2 + 1).
    assert mask_cross_entropy(logits, targets).tolist() == pytest.approx([0.8369882])
    assert dice_loss(logits, targets).tolist() == pytest.approx([1 / 3])


def test_loss_by_hand():
    target = MaskTarget(torch.tensor([1]), ALL[None])
    with mock.patch("torch.rand", center_only):
        losses = make_criterion(2)([hand_made_prediction()], [target])
    # Query 0 is matched. Class: ln 2 with weight 1, "no object" ln 3 with weight 0.1;
    # 2 * (0.6931472 + 0.1098612) / 1.1 = 1.4600153.
    assert losses["loss_ce"].item() == pytest.approx(1.4600153, abs=1e-5)
    # 5 * -ln(3/4) = 5 * 0.2876821.
    assert losses["loss_mask"].item() == pytest.approx(1.4384104, abs=1e-5)
    # Four points: 5 * (1 - (2 * 3 + 1) / (3 + 4 + 1)) = 5/8.
    assert losses["loss_dice"].item() == pytest.approx(0.625, abs=1e-5)
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice"}
    assert all(loss.shape == () and loss.dtype == torch.float32 for loss in losses.values())


def test_more_segments_than_queries_by_hand():
    # Only min(Q, M) = 2 of three equal segments are matched, and 2 is the normaliser.
    target = MaskTarget(torch.tensor([1, 1, 1]), ALL.expand(3, 4, 4))
    with mock.patch("torch.rand", center_only):
        losses = make_criterion(2)([hand_made_prediction()], [target])
    # Sigmoids 3/4 and 1/4: 5 * (-ln(3/4) - ln(1/4)) / 2 = 5 * (0.2876821 + 1.3862944) / 2.
    assert losses["loss_mask"].item() == pytest.approx(4.1849410, abs=1e-5)
    # 5 * (1/8 + (1 - (2 * 1 + 1) / (1 + 4 + 1))) / 2 = 5 * (1/8 + 1/2) / 2.
    assert losses["loss_dice"].item() == pytest.approx(1.5625, abs=1e-5)
    # Both queries have class 1: 2 * (ln 2 + ln 3) / 2.
    assert losses["loss_ce"].item() == pytest.approx(1.7917595, abs=1e-5)


def test_dividing_by_all_segments_by_hand():
    # As above, but the sums of the two matched masks are divided by 3 segments.
    target = MaskTarget(torch.tensor([1, 1, 1]), ALL.expand(3, 4, 4))
    with mock.patch("torch.rand", center_only):
        losses = make_criterion(2, normalizer="segments")([hand_made_prediction()], [target])
    assert losses["loss_mask"].item() == pytest.approx(8.3698819 / 3, abs=1e-5)
    assert losses["loss_dice"].item() == pytest.approx(3.125 / 3, abs=1e-5)
    assert losses["loss_ce"].item() == pytest.approx(1.7917595, abs=1e-5)


def test_loss_weights_and_names_of_several_predictions():
    target = MaskTarget(torch.tensor([1]), ALL[None])
    criterion = MaskClassificationCriterion(
        num_classes=2,
        matcher=HungarianMatcher(num_points=4),
        class_weight=1.0,
        mask_weight=1.0,
        dice_weight=8.0,
        no_object_weight=1.0,
        num_points=4,
    )
    other = MaskPrediction(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 3))
    with mock.patch("torch.rand", center_only):
        losses = criterion([other, hand_made_prediction()], [target])
    assert list(losses) == [
        *("loss_ce_0", "loss_mask_0", "loss_dice_0"),
        *("loss_ce", "loss_mask", "loss_dice"),
    ]
    expected = {
        # All logits 0: ln 3, ln 2 and 8 * (1 - (2 * 2 + 1) / (2 + 4 + 1)).
        "loss_ce_0": LN3,
        "loss_mask_0": LN2,
        "loss_dice_0": 16 / 7,
        # As in test_loss_by_hand with these weights; (ln 2 + ln 3) / 2.
        "loss_ce": 0.8958797,
        "loss_mask": 0.2876821,
        "loss_dice": 1.0,
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected)


@pytest.mark.parametrize("num_segments", [(3, 1), (0, 5, 2)])
def test_agrees_with_transformers(num_segments):
    from transformers import EomtConfig
    from transformers.models.eomt.modeling_eomt import EomtLoss

    predictions, targets = random_batch(num_segments)
    config = EomtConfig(num_labels=5, train_num_points=80)
    oracle = EomtLoss(config, weight_dict={})
    draws = Draws()
    with draws.record():
        losses = make_criterion(5, num_points=80)(predictions, targets)
    # It matches and weighs up one prediction after the other; ours matches all of them first.
    with draws.replay():
        for i, prediction in enumerate(predictions):
            expected = oracle(
                masks_queries_logits=prediction.mask_logits,
                class_queries_logits=prediction.class_logits,
                mask_labels=[target.masks.float() for target in targets],
                class_labels=[target.labels for target in targets],
            )
            suffix = "" if i == len(predictions) - 1 else f"_{i}"
            for name, oracle_name, weight in (
                ("loss_ce", "loss_cross_entropy", 2),
                ("loss_mask", "loss_mask", 5),
                ("loss_dice", "loss_dice", 5),
            ):
                torch.testing.assert_close(
                    losses[name + suffix], weight * expected[oracle_name], rtol=1e-5, atol=1e-6
                )


def test_batch_equals_its_images_combined():
    num_segments = (4, 0, 2)
    predictions, targets = random_batch(num_segments)
    criterion = make_criterion(5, num_points=40)
    with mock.patch("torch.rand", same_points_for_all):
        together = criterion(predictions, targets)
        alone = [
            criterion([MaskPrediction(*(x[b : b + 1] for x in p)) for p in predictions], [target])
            for b, target in enumerate(targets)
        ]
    for name, loss in together.items():
        # Means over matched masks, and over queries of which the unmatched count a tenth.
        if name.startswith("loss_ce"):
            weights = [matched + 0.1 * (6 - matched) for matched in num_segments]
        else:
            weights = num_segments
        expected = sum(w * losses[name] for w, losses in zip(weights, alone, strict=True))
        torch.testing.assert_close(loss, expected / sum(weights))


def test_parts_of_a_batch_add_up_to_it():
    num_segments = (4, 0, 0, 9)  # of 6 queries
    predictions, targets = random_batch(num_segments)
    criterion = make_criterion(5, num_points=40)
    normalizers = criterion.normalizers(num_segments, 6, torch.device("cpu"))
    with mock.patch("torch.rand", same_points_for_all):
        together = criterion(predictions, targets)
        parts = [
            criterion(
                [MaskPrediction(*(x[part] for x in prediction)) for prediction in predictions],
                targets[part],
                normalizers,
            )
            for part in (slice(0, 1), slice(1, 3), slice(3, 4))
        ]
    for name, loss in together.items():
        torch.testing.assert_close(sum(losses[name] for losses in parts), loss)


def test_queries_and_segments_in_any_order():
    predictions, targets = random_batch((4,), num_predictions=1)
    queries, segments = torch.randperm(6), torch.randperm(4)
    shuffled_prediction = MaskPrediction(*(x[:, queries] for x in predictions[0]))
    shuffled_target = MaskTarget(*(x[segments] for x in targets[0]))
    criterion = make_criterion(5, num_points=40)
    with mock.patch("torch.rand", same_points_for_all):
        losses = criterion(predictions, targets)
        shuffled = criterion([shuffled_prediction], [shuffled_target])
    torch.testing.assert_close(losses, shuffled)


class TwoHeads(nn.Module):
    """The smallest network: query features in, masks and classes out."""

    def __init__(self, num_classes=2):
        super().__init__()
        self.mask_head = nn.Linear(3, 16)
        self.class_head = nn.Linear(3, num_classes + 1)

    def forward(self, queries):
        masks = self.mask_head(queries).unflatten(-1, (4, 4))
        return MaskPrediction(masks, self.class_head(queries))


def empty_target():
    return MaskTarget(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 16, 16) > 0)


def test_images_without_segments_reach_every_parameter():
    network = TwoHeads()
    nn.init.zeros_(network.class_head.weight)
    nn.init.zeros_(network.class_head.bias)
    losses = make_criterion(2)([network(torch.randn(2, 5, 3))], [empty_target()] * 2)
    # Uniform classes: 2 ln 3, whatever the weight of "no object".
    assert losses["loss_ce"].item() == pytest.approx(2 * LN3)
    assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0.0
    sum(losses.values()).backward()
    for parameter in network.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    assert not network.mask_head.weight.grad.any()
    assert network.class_head.bias.grad.any()


def test_images_without_segments_survive_infinite_masks():
    # 0 * logits.sum() would be NaN here.
    masks = torch.full((1, 2, 4, 4), float("inf"), requires_grad=True)
    prediction = MaskPrediction(masks, torch.zeros(1, 2, 3, requires_grad=True))
    losses = make_criterion(2)([prediction], [empty_target()])
    sum(losses.values()).backward()
    assert [losses["loss_mask"].item(), losses["loss_dice"].item()] == [0.0, 0.0]
    assert torch.equal(masks.grad, torch.zeros_like(masks))


def test_no_queries_matched_and_no_weight_for_no_object():
    criterion = MaskClassificationCriterion(
        num_classes=2, matcher=HungarianMatcher(num_points=4), no_object_weight=0.0, num_points=4
    )
    losses = criterion([hand_made_prediction()], [empty_target()])
    assert [loss.item() for loss in losses.values()] == [0.0, 0.0, 0.0]


def test_half_precision_and_autocast_do_not_change_the_loss():
    predictions, targets = random_batch((3, 2))
    half = [MaskPrediction(*(x.half() for x in prediction)) for prediction in predictions]
    exact = [MaskPrediction(*(x.float() for x in prediction)) for prediction in half]
    criterion, draws = make_criterion(5, num_points=40), Draws()
    with draws.record():
        expected = criterion(exact, targets)
    with draws.replay(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = criterion(half, targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected[name])


def test_gradient_reaches_the_matched_masks_only():
    [(masks, classes)], targets = random_batch((2,), num_predictions=1)
    masks.requires_grad_()
    criterion = make_criterion(5, num_points=200)
    with mock.patch("torch.rand", same_points_for_all):
        [[(queries, _)]] = criterion.matcher.match([MaskPrediction(masks, classes)], targets)
        sum(criterion([MaskPrediction(masks, classes)], targets).values()).backward()
    reached = masks.grad.abs().sum((0, 2, 3)).nonzero().flatten()
    assert reached.tolist() == queries.tolist()


def test_checkpoints_do_not_carry_the_loss_settings():
    assert make_criterion(2).state_dict() == {}


@pytest.mark.parametrize(
    "setting, message",
    [
        (dict(oversample_ratio=0.5), "oversample_ratio is 0.5"),
        (dict(importance_sample_ratio=1.5), "importance_sample_ratio is 1.5"),
        (dict(normalizer="queries"), "normalizer is 'queries'"),
    ],
)
def test_impossible_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        MaskClassificationCriterion(num_classes=2, matcher=HungarianMatcher(), **setting)


@pytest.mark.cuda
def test_cuda_equals_cpu():
    predictions, targets = random_batch((3, 0, 2))
    criterion, draws = make_criterion(5, num_points=80), Draws()
    with draws.record():
        expected = criterion(predictions, targets)
    with draws.replay():
        losses = criterion.cuda()(
            [MaskPrediction(*(x.cuda() for x in prediction)) for prediction in predictions],
            [MaskTarget(*(x.cuda() for x in target)) for target in targets],
        )
    for name, loss in losses.items():
        torch.testing.assert_close(loss.cpu(), expected[name], rtol=1e-4, atol=1e-5)
