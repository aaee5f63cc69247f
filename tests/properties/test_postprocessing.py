"""Results of random logits, extreme ones too, against the definitions and what must always hold."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from eomt_d2.modeling.postprocessing import (
    MaskGeometry,
    instance_inference,
    panoptic_inference,
    semantic_inference,
    semantic_labels,
    semantic_scores,
)

QUICK = settings(max_examples=120, derandomize=True, database=None, deadline=None)
SIDES = st.integers(1, 20)
THRESHOLDS = st.sampled_from([0.0, 0.3, 0.8, 1.0])
# Far from zero there are no ties by rounding: masks are random, all empty, full or of one sign.
LEVELS = st.sampled_from(["random", "empty", "full", "infinite"])


@st.composite
def cases(draw):
    """Mask logits (Q, h, w), class logits (Q, K + 1) and sizes."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    num_queries, num_classes = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    grid = draw(SIDES), draw(SIDES)
    masks = torch.randn(num_queries, *grid, generator=generator)
    masks *= draw(st.sampled_from([0.1, 5.0, 300.0]))
    level = draw(LEVELS)
    if level == "infinite":
        masks = masks.sign() * float("inf")
        masks[masks.isnan()] = 0
    elif level != "random":
        masks = masks.abs() * (-1 if level == "empty" else 1)
    classes = torch.randn(num_queries, num_classes + 1, generator=generator)
    classes *= draw(st.sampled_from([0.1, 5.0, 1e4]))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    padded = grid[0] * draw(st.integers(1, 4)), grid[1] * draw(st.integers(1, 4))
    image = draw(st.integers(1, padded[0])), draw(st.integers(1, padded[1]))
    output = draw(st.integers(1, 150)), draw(st.integers(1, 40))
    output = output[:: draw(st.sampled_from([1, -1]))]
    return masks.to(dtype), classes.to(dtype), MaskGeometry(padded, image, output)


def resized(maps, geometry):
    """Both resizes at full size, of logits that are finite, in float64."""
    maps = maps.double().clamp(-1e30, 1e30)[None]
    resize = dict(mode="bilinear", align_corners=False)
    maps = F.interpolate(maps, size=geometry.input_size, **resize)
    maps = maps[..., : geometry.image_size[0], : geometry.image_size[1]]
    return F.interpolate(maps, size=geometry.output_size, **resize)[0]


def unclear(logits):
    """Pixels where a logit is zero to rounding."""
    return (logits.abs() <= 1e-4 * logits.abs().amax().clamp(min=1e-6)).any(0)


@given(case=cases(), score=THRESHOLDS, overlap=THRESHOLDS, things=st.sets(st.integers(0, 4)))
@QUICK
def test_panoptic(case, score, overlap, things):
    masks, classes, geometry = case
    num_classes = classes.shape[1] - 1
    segment_map, segments = panoptic_inference(
        masks, classes, geometry, thing_ids=things, score_threshold=score, overlap_threshold=overlap
    )  # fmt: skip
    assert segment_map.dtype == torch.int32 and tuple(segment_map.shape) == geometry.output_size
    assert [segment["id"] for segment in segments] == list(range(1, len(segments) + 1))
    areas = segment_map.long().flatten().bincount(minlength=len(segments) + 1).tolist()
    assert areas[1:] == [segment["area"] for segment in segments]
    assert all(area > 0 for area in areas[1:])
    probabilities = classes.float().softmax(-1)
    best, labels = probabilities.max(-1)
    sure = {int(c) for c, p in zip(labels, best, strict=True) if c < num_classes and p > score}
    for segment in segments:
        assert type(segment["isthing"]) is bool
        assert segment["isthing"] == (segment["category_id"] in things)
        assert segment["category_id"] in sure
    stuff = [segment["category_id"] for segment in segments if not segment["isthing"]]
    assert len(stuff) == len(set(stuff))
    if score == 1:
        assert not segments

    # The definition. Where it does not hang on rounding, the result is the same.
    keep = (labels < num_classes) & (best > score)
    if not keep.any():
        assert not segments
        return
    logits = resized(masks[keep], geometry)
    kept = list(zip(labels[keep].tolist(), range(len(logits)), strict=True))
    values = best[keep].double()[:, None, None] * logits.sigmoid()
    top = values.topk(min(2, len(values)), dim=0).values
    ties = (top[0] - top[-1] <= 1e-5 * top[0]) if len(values) > 1 else torch.zeros_like(top[0]) > 0
    if (ties | unclear(logits)).any():
        return
    winners, inside = values.argmax(0), logits >= 0
    expected, ids, number = torch.zeros_like(winners), {}, 0
    for label, query in kept:
        won = winners == query
        both = won & inside[query]
        if not both.any() or won.sum().item() / inside[query].sum().item() < overlap:
            continue
        if label in things or label not in ids:
            number += 1
        segment = number if label in things else ids.setdefault(label, number)
        expected[both] = segment
    assert torch.equal(segment_map.long(), expected)


@given(
    case=cases(), max_instances=st.integers(1, 60), things=st.none() | st.sets(st.integers(0, 4))
)
@QUICK
def test_instances(case, max_instances, things):
    masks, classes, geometry = case
    num_classes = classes.shape[1] - 1
    things = None if things is None else {i for i in things if i < num_classes}
    result = instance_inference(
        masks, classes, geometry, max_instances=max_instances, thing_ids=things
    )
    count = min(max_instances, len(masks) * num_classes)
    assert len(result) <= count if things is not None else len(result) == count
    assert result.image_size == geometry.output_size
    assert result.pred_masks.dtype == torch.bool
    assert tuple(result.pred_masks.shape) == (len(result), *geometry.output_size)
    assert (result.scores >= 0).all() and (result.scores <= 1 + 1e-5).all()
    assert result.pred_classes.dtype == torch.int64
    allowed = range(num_classes) if things is None else things
    assert set(result.pred_classes.tolist()) <= set(allowed)
    logits = resized(masks, geometry)
    clear = ~unclear(logits)
    plain = (logits > 0)[:, clear]
    for mask, box, score in zip(
        result.pred_masks, result.pred_boxes.tensor.tolist(), result.scores.tolist(), strict=True
    ):
        rows, columns = (mask.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
        if not rows:
            assert box == [0, 0, 0, 0] and score == 0
            continue
        assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        # It is the mask of one of the queries.
        assert (plain == mask[clear]).all(1).any()


@given(case=cases())
@QUICK
def test_semantic(case):
    masks, classes, geometry = case
    height, width = geometry.image_size
    scores = semantic_scores(masks, classes, geometry.input_size)
    plain = F.interpolate(
        masks.double().clamp(-1e30, 1e30)[None], size=geometry.input_size, mode="bilinear",
        align_corners=False,
    )[0]  # fmt: skip
    weights = classes.double().softmax(-1)[:, :-1]
    expected = torch.einsum("qk,qhw->khw", weights, plain.sigmoid())
    # A logit near zero that two of 1e30 cancel to is rounded: its sigmoid may be anything.
    if not masks.isinf().any():
        torch.testing.assert_close(scores.double(), expected, rtol=1e-3, atol=1e-3)
    scores = scores[:, :height, :width]
    whole, labels = (f(scores, geometry.output_size) for f in (semantic_inference, semantic_labels))
    assert labels.dtype == torch.int64 and tuple(labels.shape) == geometry.output_size
    assert whole.isfinite().all()
    chosen = whole.gather(0, labels[None])[0]
    assert (chosen >= whole.amax(0) - 1e-5 * whole.amax(0).abs() - 1e-7).all()
