from functools import partial

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks

from eomt_d2.modeling import postprocessing
from eomt_d2.modeling.mask_tiles import MaskTiles
from eomt_d2.modeling.postprocessing import (
    MaskGeometry,
    PostProcessing,
    instance_inference,
    panoptic_inference,
    semantic_inference,
    semantic_labels,
    semantic_scores,
)

LN3, LN9 = 1.0986123, 2.1972246  # logits of 3/4 and 9/10
INF = float("inf")


def same_size(height, width):
    return MaskGeometry((height, width), (height, width), (height, width))


def logit(probabilities):
    """Mask logits (Q, 1, n) of rows of probabilities."""
    return torch.tensor(probabilities, dtype=torch.float64).logit().float()[:, None]


def classes(*probabilities):
    """Class logits (Q, K + 1) of rows of probabilities, given exactly where they are halves."""
    return torch.tensor(probabilities).log()


def panoptic(masks, class_logits, **settings):
    """Panoptic result of (Q, 1, n) mask logits at their own size, as plain lists."""
    settings = dict(thing_ids={0}) | settings
    segment_map, segments = panoptic_inference(
        masks, class_logits, same_size(*masks.shape[1:]), **settings
    )
    assert segment_map.dtype == torch.int32
    assert [segment["id"] for segment in segments] == list(range(1, len(segments) + 1))
    return segment_map[0].tolist(), segments


# Two classes: 0 is a thing, 1 is stuff.
THING, STUFF, NOTHING = (0.96, 0.02, 0.02), (0.02, 0.96, 0.02), (0.02, 0.02, 0.96)


class TestPanoptic:
    def test_map_and_segments(self):
        masks = logit([[0.9, 0.9, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.9, 0.9]])
        segment_map, segments = panoptic(masks, classes(STUFF, THING))
        assert segment_map == [1, 1, 0, 2, 2]
        assert segments == [
            dict(id=1, category_id=1, isthing=False, area=2),
            dict(id=2, category_id=0, isthing=True, area=2),
        ]
        assert segments[0]["isthing"] is False and segments[1]["isthing"] is True

    def test_score_must_exceed_the_threshold(self):
        # Softmax of (0, 0, -inf) is exactly (1/2, 1/2, 0).
        masks, class_logits = logit([[0.9, 0.9]]), torch.tensor([[0.0, 0.0, -INF]])
        assert panoptic(masks, class_logits, score_threshold=0.5) == ([0, 0], [])
        assert panoptic(masks, class_logits, score_threshold=0.499)[0] == [1, 1]

    def test_default_threshold_is_published(self):
        masks = logit([[0.9, 0.1], [0.1, 0.9]])
        class_logits = classes((0.81, 0.19, 0.0), (0.79, 0.21, 0.0))
        assert panoptic(masks, class_logits)[0] == [1, 0]

    def test_no_object_wins_no_pixels(self):
        masks = logit([[0.99, 0.99], [0.6, 0.6]])
        assert panoptic(masks, classes(NOTHING, THING))[0] == [1, 1]

    def test_nothing_found(self):
        segment_map, segments = panoptic(logit([[0.9, 0.9]]), classes(NOTHING))
        assert (segment_map, segments) == ([0, 0], [])

    def test_class_score_weighs_the_mask(self):
        # Pixel 1: 0.82 * 0.70 = 0.574 against 0.98 * 0.60 = 0.588.
        masks = logit([[0.9, 0.7, 0.1], [0.1, 0.6, 0.9]])
        class_logits = classes((0.82, 0.09, 0.09), (0.98, 0.01, 0.01))
        assert panoptic(masks, class_logits, overlap_threshold=0.5)[0] == [1, 2, 2]

    def test_sigmoid_of_exactly_half_belongs_to_the_mask(self):
        masks = torch.tensor([[[5.0, 0.0, -0.001]]])
        assert panoptic(masks, classes(THING))[0] == [1, 1, 0]

    @pytest.mark.parametrize("num_lost, kept", [(1, True), (2, False)])
    def test_overlap_of_exactly_the_threshold_is_enough(self, num_lost, kept):
        # Query 0 has 5 pixels of its own and loses some to query 1: 4/5 >= 0.8, 3/5 < 0.8.
        masks = logit(
            [[0.9] * 5 + [0.1] * 9, [0.99] * num_lost + [0.01] * (5 - num_lost) + [0.9] * 9]
        )
        segment_map, segments = panoptic(masks, classes(THING, THING))
        won = segment_map[num_lost:5]
        # Pixels of a dropped query are void: they do not go to the second best.
        assert won == ([1] * 4 if kept else [0] * 3)
        assert len(segments) == (2 if kept else 1)

    def test_overlap_counts_all_pixels_won_not_only_its_own(self):
        # Query 0: own mask 4 pixels, of which 2 are lost (2/4 alone would not be enough); but it
        # also wins 6 pixels where nobody reaches one half: (2 + 6) / 4 = 2.
        masks = logit([[0.6] * 4 + [0.4] * 6, [0.9] * 2 + [0.1] * 8])
        segment_map, segments = panoptic(masks, classes(THING, THING))
        assert segment_map == [2, 2, 1, 1, 0, 0, 0, 0, 0, 0]
        assert segments[0]["area"] == 2

    @pytest.mark.parametrize(
        "masks",
        [
            # Wins the second pixel, but has no pixel of its own.
            [[0.1, 0.4], [0.9, 0.1]],
            # Has a pixel of its own, but wins none.
            [[0.6, 0.1], [0.9, 0.2]],
            # Has a pixel and wins another one.
            [[0.6, 0.4], [0.9, 0.1]],
        ],
    )
    def test_empty_segments_are_dropped(self, masks):
        segment_map, segments = panoptic(logit(masks), classes(THING, STUFF), overlap_threshold=0.0)
        assert segment_map == [1, 0]
        assert segments == [dict(id=1, category_id=1, isthing=False, area=1)]

    def test_stuff_of_a_class_is_merged_and_things_are_not(self):
        masks = logit([[0.9 if i == q else 0.1 for i in range(6)] for q in range(5)])
        masks[4, 0, 5] = 2.0
        # Classes 0 (thing), 1 and 2 (stuff).
        thing, stuff = (0.97, 0.01, 0.01, 0.01), (0.01, 0.97, 0.01, 0.01)
        other_stuff = (0.01, 0.01, 0.97, 0.01)
        class_logits = classes(stuff, thing, other_stuff, thing, stuff)
        segment_map, segments = panoptic(masks, class_logits)
        assert segment_map == [1, 2, 3, 4, 1, 1]
        assert segments == [
            dict(id=1, category_id=1, isthing=False, area=3),
            dict(id=2, category_id=0, isthing=True, area=1),
            dict(id=3, category_id=2, isthing=False, area=1),
            dict(id=4, category_id=0, isthing=True, area=1),
        ]

    def test_masks_in_the_padding_do_not_count(self):
        # The 4 x 4 input holds a 2 x 4 image; below it, query 0 has pixels in the padding only.
        masks = torch.full((2, 4, 4), -5.0)
        masks[0, 2:] = 5.0
        masks[1, :, :] = 5.0
        geometry = MaskGeometry((4, 4), (2, 4), (4, 8))
        segment_map, segments = panoptic_inference(
            masks, classes(THING, THING), geometry, thing_ids={0}
        )
        assert segment_map.tolist() == [[1] * 8] * 4
        assert segments == [dict(id=1, category_id=0, isthing=True, area=32)]

    def test_infinite_half_precision_logits(self):
        masks = torch.tensor([[[INF, -INF]], [[-INF, INF]]], dtype=torch.float16)
        assert panoptic(masks, classes(THING, STUFF).half())[0] == [1, 2]


def reference_panoptic(mask_logits, class_logits, geometry, thing_ids, threshold):
    """The definition, pixel by pixel at full size."""
    masks = full_size(mask_logits, geometry)
    scores, labels = class_logits.softmax(-1).max(-1)
    kept = [
        q for q in range(len(labels)) if labels[q] < class_logits.shape[1] - 1 and scores[q] > 0.8
    ]
    segment_map, classes_of_segments, id_of_stuff = torch.zeros(masks.shape[1:]), [], {}
    if not kept:
        return segment_map, classes_of_segments
    winners = (masks[kept].sigmoid() * scores[kept, None, None]).argmax(0)
    for k, q in enumerate(kept):
        own, won = masks[q].sigmoid() >= 0.5, winners == k
        if not (own & won).any() or won.sum() / own.sum() < threshold:
            continue
        label = int(labels[q])
        if label in id_of_stuff:
            segment_map[own & won] = id_of_stuff[label]
            continue
        classes_of_segments.append(label)
        segment_map[own & won] = len(classes_of_segments)
        if label not in thing_ids:
            id_of_stuff[label] = len(classes_of_segments)
    return segment_map, classes_of_segments


def full_size(mask_logits, geometry):
    resize = partial(F.interpolate, mode="bilinear", align_corners=False)
    height, width = geometry.image_size
    padded = resize(mask_logits[None], geometry.input_size)[..., :height, :width]
    return resize(padded, geometry.output_size)[0]


@pytest.fixture(params=[7, 16, 128])
def tile_side(request, monkeypatch):
    """Many small tiles, some tiles, and the whole image."""
    monkeypatch.setattr(postprocessing, "MaskTiles", partial(MaskTiles, side=request.param))


@pytest.mark.usefixtures("tile_side")
@pytest.mark.parametrize("output_size", [(61, 83), (20, 27)])
class TestRandomLogitsEqualTheDefinitions:
    def logits(self, output_size):
        # Smooth blobs, which cover about a quarter of the image each.
        mask_logits = F.avg_pool2d(torch.randn(12, 12, 12) * 30, 5, stride=1) - 4
        return mask_logits, torch.randn(12, 7) * 5, MaskGeometry((32, 32), (24, 32), output_size)

    def test_panoptic(self, output_size):
        logits, things = self.logits(output_size), {0, 2, 4}
        segment_map, segments = panoptic_inference(*logits, thing_ids=things, overlap_threshold=0.4)
        expected_map, expected_classes = reference_panoptic(*logits, things, threshold=0.4)
        assert len(segments) >= 3
        assert [segment["category_id"] for segment in segments] == expected_classes
        # A pixel whose two best queries are equal to rounding may go to either.
        assert (segment_map != expected_map).sum() <= 2
        for segment in segments:
            assert segment["area"] == (segment_map == segment["id"]).sum()

    def test_instances(self, output_size):
        mask_logits, class_logits, geometry = self.logits(output_size)
        instances = instance_inference(mask_logits, class_logits, geometry, max_instances=20)
        scores, pairs = class_logits.softmax(-1)[:, :-1].flatten().topk(20)
        logits = full_size(mask_logits, geometry)[pairs // 6]
        masks = logits > 0
        quality = (logits.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
        assert (instances.pred_masks != masks).sum() <= 2
        assert torch.equal(instances.pred_classes, pairs % 6)
        torch.testing.assert_close(instances.scores, scores * quality, rtol=1e-3, atol=1e-5)

    def test_semantic(self, output_size):
        mask_logits, class_logits, _ = self.logits(output_size)
        resized = F.interpolate(mask_logits[None], output_size, mode="bilinear")[0]
        shares = class_logits.softmax(-1)[:, :-1]
        expected = torch.einsum("qk,qhw->khw", shares, resized.sigmoid())
        scores = semantic_scores(mask_logits, class_logits, output_size)
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("output_size", [(61, 83), (20, 27)])
@pytest.mark.parametrize("spread, offset", [(1.0, -1.0), (8.0, -3.0)])
def test_only_queries_without_a_pixel_are_left_out_of_a_tile(output_size, spread, offset):
    """Weak masks, where low logits win, and strong ones; each tile keeps every query that wins a
    pixel of it or has one."""
    mask_logits = F.avg_pool2d(torch.randn(12, 20, 24), 9, stride=1) * 9 * spread + offset
    scores, geometry = torch.linspace(0.3, 1, 12), MaskGeometry((48, 64), (40, 64), output_size)
    tiles = MaskTiles(mask_logits, geometry, side=5)
    kept = postprocessing._may_own_or_win(tiles, scores)
    logits = full_size(mask_logits, geometry)
    winners = (logits.sigmoid() * scores[:, None, None]).argmax(0)
    needed = torch.zeros_like(kept)
    for t, tile in enumerate(tiles.tiles):
        needed[t, winners[tile.rows, tile.columns].unique()] = True
        needed[t] |= (logits[:, tile.rows, tile.columns] >= 0).flatten(1).any(1)
    assert not (needed & ~kept).any()
    assert needed.sum(1).float().mean() > 1.1
    assert (~kept).float().mean() > 0.1


class TestInstances:
    # Query 0 is sure of two pixels of the upper row, 3/4 and 9/10; query 1 of nothing.
    MASKS = torch.tensor([[[LN3, LN9], [-LN3, -LN3]], [[-LN3, -LN3], [-LN3, 0.0]]])
    CLASSES = classes((0.6, 0.3, 0.1), (0.2, 0.1, 0.7))

    def infer(self, **settings):
        return instance_inference(self.MASKS, self.CLASSES, same_size(2, 2), **settings)

    def test_pairs_scores_masks_and_boxes(self):
        instances = self.infer(max_instances=3)
        # Class probabilities 0.6, 0.3 (query 0 again, class 1), 0.2 (query 1).
        assert instances.pred_classes.tolist() == [0, 1, 0]
        # The mean of 3/4 and 9/10 is 0.825: 0.6 * 0.825 and 0.3 * 0.825. A logit of exactly 0 is
        # outside, so the mask of query 1 is empty.
        assert instances.scores.tolist() == pytest.approx([0.495, 0.2475, 0.0], abs=1e-5)
        assert instances.pred_masks.dtype == torch.bool
        upper, empty = [[True, True], [False, False]], [[False, False], [False, False]]
        assert instances.pred_masks.tolist() == [upper, upper, empty]
        assert instances.pred_boxes.tensor.tolist() == [[0, 0, 2, 1], [0, 0, 2, 1], [0, 0, 0, 0]]
        assert instances.image_size == (2, 2)

    def test_fewer_pairs_than_asked_for(self):
        assert len(self.infer(max_instances=100)) == 4

    def test_other_classes_are_dropped_after_the_best_are_chosen(self):
        # The best two are both of query 0. Class 1 is no thing; query 1 does not move up.
        assert self.infer(max_instances=2, thing_ids={0}).pred_classes.tolist() == [0]
        assert self.infer(max_instances=4, thing_ids={0}).pred_classes.tolist() == [0, 0]

    def test_nothing_left(self):
        instances = self.infer(thing_ids=frozenset())
        assert len(instances) == 0
        assert instances.pred_masks.shape == (0, 2, 2)
        assert instances.pred_boxes.tensor.shape == (0, 4)

    def test_original_size(self):
        # The left half of a 2 x 2 image in a 4 x 4 input, enlarged to 6 x 8.
        masks = torch.full((1, 4, 4), 9.0)
        masks[:, :, 1:] = -9.0
        geometry = MaskGeometry((4, 4), (2, 2), (6, 8))
        instances = instance_inference(masks, classes((0.9, 0.1)), geometry)
        assert instances.image_size == (6, 8)
        assert instances.pred_boxes.tensor.tolist() == [[0, 0, 4, 6]]
        assert torch.equal(
            BitMasks(instances.pred_masks).get_bounding_boxes().tensor,
            instances.pred_boxes.tensor,
        )


class TestSemantic:
    def test_scores_by_hand(self):
        # Class shares (0.6, 0.3) and (0.2, 0.1), mask probabilities 3/4 and 1/4.
        masks = torch.tensor([[[LN3]], [[-LN3]]])
        scores = semantic_scores(masks, classes((0.6, 0.3, 0.1), (0.2, 0.1, 0.7)), (1, 1))
        # 0.6 * 0.75 + 0.2 * 0.25 and 0.3 * 0.75 + 0.1 * 0.25.
        assert scores.flatten().tolist() == pytest.approx([0.5, 0.25])

    def test_logits_are_resized_before_the_sigmoid(self):
        # (-4, 4) becomes (-4, -2, 2, 4); resized after the sigmoid, pixel 1 would be 0.259.
        scores = semantic_scores(torch.tensor([[[-4.0, 4.0]]]), classes((1.0, 0.0)), (1, 4))
        expected = [0.0179862, 0.1192029, 0.8807971, 0.9820138]
        assert scores.flatten().tolist() == pytest.approx(expected)

    def test_scores_are_resized_after_the_sigmoid(self):
        scores = torch.tensor([[[0.0, 1.0]]])
        resized = semantic_inference(scores, (1, 4))
        assert resized.flatten().tolist() == [0.0, 0.25, 0.75, 1.0]

    @pytest.mark.usefixtures("tile_side")
    @pytest.mark.parametrize("output_size", [(61, 83), (20, 27)])
    def test_labels_are_the_best_scores(self, output_size):
        # Smooth, so that few of the seven classes are in a tile; between two images of one class.
        scores = F.avg_pool2d(torch.rand(7, 36, 44), 5, stride=1).pow(8)
        scores[:, :, :9] = torch.tensor([0, 0, 0, 1.0, 0, 0, 0])[:, None, None]
        labels = semantic_labels(scores, output_size)
        assert labels.dtype == torch.int64
        assert labels.unique().tolist() == [0, 1, 2, 3, 4, 5, 6]
        expected = semantic_inference(scores, output_size).argmax(0)
        assert (labels != expected).sum() <= 2

    def test_the_first_of_equal_classes_is_taken(self):
        labels = semantic_labels(torch.ones(3, 4, 4), (8, 8))
        assert labels.unique().tolist() == [0]

    def test_autocast_does_not_touch_the_scores(self):
        masks, class_logits = torch.randn(4, 3, 3), torch.randn(4, 6)
        expected = semantic_scores(masks, class_logits, (8, 8))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = semantic_scores(masks, class_logits, (8, 8))
        assert torch.equal(scores, expected)


class TestPostProcessing:
    GEOMETRY = MaskGeometry((4, 4), (2, 4), (6, 9))
    LOGITS = (classes(THING, STUFF), torch.tensor([[[9.0, -9.0]], [[-9.0, 9.0]]]))

    def test_all_results_of_one_image(self):
        results = PostProcessing(
            panoptic_on=True, instance_on=True, semantic_on=True, thing_ids=frozenset({0})
        )(*self.LOGITS, self.GEOMETRY)
        assert set(results) == {"panoptic_seg", "instances", "sem_seg"}
        segment_map, segments = results["panoptic_seg"]
        assert segment_map.shape == (6, 9)
        assert [segment["category_id"] for segment in segments] == [0, 1]
        # Things only, because the model is panoptic.
        assert results["instances"].pred_classes.tolist() == [0, 0]
        assert results["sem_seg"].shape == (2, 6, 9)
        assert results["sem_seg"].argmax(0)[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]

    def test_results_where_gradients_are_enabled(self):
        settings = dict(panoptic_on=True, instance_on=True, semantic_on=True, thing_ids={0})
        logits = [x.clone().requires_grad_() for x in self.LOGITS]
        for output in ("scores", "labels"):
            results = PostProcessing(semantic_output=output, **settings)(*logits, self.GEOMETRY)
            assert len(results["panoptic_seg"][1]) == 2

    def test_semantic_scores_lose_the_padding(self):
        # Only the lower half of the input, which is padding, belongs to the mask.
        masks = torch.tensor([[[-99.0], [99.0]]])
        geometry = MaskGeometry((2, 1), (1, 1), (3, 1))
        results = PostProcessing(semantic_on=True)(classes((1.0, 0.0)), masks, geometry)
        assert results["sem_seg"].flatten().tolist() == [0.0, 0.0, 0.0]

    def test_labels_instead_of_scores(self):
        results = PostProcessing(semantic_on=True, semantic_output="labels")(
            *self.LOGITS, self.GEOMETRY
        )
        assert list(results) == ["sem_seg_labels"]
        assert results["sem_seg_labels"][5].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]

    def test_instance_models_keep_all_classes(self):
        results = PostProcessing(instance_on=True, max_instances=3)(*self.LOGITS, self.GEOMETRY)
        assert sorted(results["instances"].pred_classes.tolist()) in ([0, 0, 1], [0, 1, 1])

    def test_settings_reach_the_functions(self):
        settings = dict(panoptic_on=True, thing_ids={0})
        for threshold in (dict(score_threshold=0.97), dict(overlap_threshold=1.5)):
            _, segments = PostProcessing(**settings, **threshold)(*self.LOGITS, self.GEOMETRY)[
                "panoptic_seg"
            ]
            assert segments == []

    @pytest.mark.parametrize(
        "settings, message",
        [
            (dict(semantic_output="classes"), "semantic_output is 'classes'"),
            (dict(panoptic_on=True), "thing_ids"),
        ],
    )
    def test_impossible_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            PostProcessing(**settings)


@pytest.mark.cuda
def test_results_stay_on_the_logits_device():
    logits = [x.cuda() for x in TestPostProcessing.LOGITS]
    results = PostProcessing(panoptic_on=True, instance_on=True, semantic_on=True, thing_ids={0})(
        *logits, TestPostProcessing.GEOMETRY
    )
    instances = results["instances"]
    tensors = [results["panoptic_seg"][0], results["sem_seg"], instances.pred_boxes.tensor]
    tensors += [instances.pred_masks, instances.pred_classes, instances.scores]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
