"""Whatever the logits and segments: a one-to-one pairing that nothing drawn at random beats."""

from unittest import mock

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eomt_d2.modeling.matcher import HungarianMatcher, matching_cost
from eomt_d2.modeling.structures import MaskPrediction, MaskTarget

QUICK = settings(max_examples=60, derandomize=True, database=None, deadline=None)
EXTREMES = st.sampled_from([0.0, 1e4, -1e4, 3e38, -3e38, *map(float, ("inf", "-inf", "nan"))])


@st.composite
def batches(draw):
    """Predictions of 1 to 3 layers, with some extreme numbers, and targets of 1 to 3 images."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    num_images, num_queries, num_classes = (draw(st.integers(1, n)) for n in (3, 7, 4))
    grid, size = ([draw(st.integers(1, n)) for _ in "hw"] for n in (5, 12))

    def logits(*shape):
        x = torch.randn(shape, generator=generator) * draw(st.sampled_from([0.1, 3.0, 300.0]))
        for _ in range(draw(st.integers(0, 2))):
            place = torch.randint(x.numel(), (), generator=generator)
            x.view(-1)[place] = draw(EXTREMES)
        return x.to(draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])))

    predictions = [
        MaskPrediction(
            logits(num_images, num_queries, *grid), logits(num_images, num_queries, num_classes + 1)
        )
        for _ in range(draw(st.integers(1, 3)))
    ]
    # Layers share their precision.
    dtype = predictions[0].mask_logits.dtype
    predictions = [MaskPrediction(*(x.to(dtype) for x in prediction)) for prediction in predictions]
    targets = []
    for _ in range(num_images):
        count = draw(st.integers(0, 9))
        labels = torch.randint(num_classes, (count,), generator=generator)
        share = draw(st.sampled_from([0.0, 0.5, 1.0]))
        targets.append(MaskTarget(labels, torch.rand(count, *size, generator=generator) < share))
    return predictions, targets


@given(batch=batches(), num_points=st.integers(1, 40))
@QUICK
def test_a_pairing_is_one_to_one(batch, num_points):
    predictions, targets = batch
    matches = HungarianMatcher(num_points=num_points).match(predictions, targets)
    assert len(matches) == len(predictions)
    for prediction, pairs in zip(predictions, matches, strict=True):
        num_queries = prediction.class_logits.shape[1]
        assert len(pairs) == len(targets)
        for (queries, segments), target in zip(pairs, targets, strict=True):
            assert queries.dtype == segments.dtype == torch.int64
            assert len(queries) == len(segments) == min(num_queries, len(target.labels))
            assert queries.tolist() == sorted(set(queries.tolist()))
            assert len(set(segments.tolist())) == len(segments)
            assert set(queries.tolist()) <= set(range(num_queries))
            assert set(segments.tolist()) <= set(range(len(target.labels)))


@given(batch=batches(), seed=st.integers(0, 2**32 - 1))
@QUICK
def test_no_random_pairing_is_cheaper(batch, seed):
    predictions, targets = batch
    costs = []

    def recorded(*args, **kwargs):
        costs.append(matching_cost(*args, **kwargs))
        return costs[-1]

    with mock.patch("eomt_d2.modeling.matcher.matching_cost", recorded):
        matches = HungarianMatcher(num_points=8).match(predictions, targets)
    rng = np.random.default_rng(seed)
    for image, cost_of_layers in enumerate(costs):
        for pairs, cost in zip(matches, cost_of_layers.double(), strict=True):
            assert cost.isfinite().all()
            queries, segments = pairs[image]
            found = cost[queries, segments].sum().item()
            for _ in range(10):
                rows, columns = (rng.permutation(n)[: len(queries)] for n in cost.shape)
                other = cost[rows, columns].sum().item()
                # Sums of costs up to 1e10 are rounded.
                assert found <= other + 1e-12 * cost.abs().sum().item()
