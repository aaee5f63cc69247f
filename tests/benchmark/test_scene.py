import pytest
import torch

from eomt_d2.benchmark.scene import Scene, regions
from eomt_d2.modeling.postprocessing import MaskGeometry, panoptic_inference
from eomt_d2.modeling.structures import MaskPrediction

QUERIES, CLASSES, ACTIVE, GRID = 30, 150, 8, (40, 40)


def random_prediction(batch=2, dtype=torch.float32, grid=GRID) -> MaskPrediction:
    masks = torch.randn(batch, QUERIES, *grid, dtype=dtype)
    return MaskPrediction(masks, torch.randn(batch, QUERIES, CLASSES + 1, dtype=dtype))


@pytest.mark.parametrize("num_regions", [1, 2, 9])
def test_each_pixel_is_in_one_region(num_regions):
    inside = regions(num_regions, (24, 32))
    assert inside.shape == (num_regions, 24, 32)
    assert ((inside > 0).sum(0) == 1).all()
    assert (inside > 0).any((1, 2)).all(), "no region is empty"


def test_centres_are_in_the_image_and_not_in_the_padding():
    """Where the right half is padding, the largest margins are in the left half."""
    inside = regions(6, (32, 32), extent=(1.0, 0.5))
    pixels = inside[:, :, :16].flatten(1) > 0
    assert pixels.any(1).all()


def test_as_many_queries_find_something_as_asked_for():
    _, class_logits = Scene(ACTIVE, CLASSES).logits(QUERIES, GRID)
    scores, labels = class_logits.softmax(-1).max(-1)
    assert (scores > 0.99).all(), "all are sure"
    assert (labels != CLASSES).sum() == ACTIVE
    assert not (labels[:ACTIVE] != CLASSES).all(), "they are spread among the queries"


def test_panoptic_inference_finds_the_regions():
    prediction = Scene(ACTIVE, CLASSES).replace(random_prediction())
    segmentation, segments = panoptic_inference(
        prediction.mask_logits[1],
        prediction.class_logits[1],
        MaskGeometry((160, 160), (160, 160), (200, 200)),
        thing_ids=range(CLASSES),
    )
    assert len(segments) == ACTIVE
    assert (segmentation == 0).float().mean() < 0.1, "void is on borders alone"


def test_without_active_queries_nothing_is_found():
    _, class_logits = Scene(0, CLASSES).logits(QUERIES, GRID)
    assert (class_logits.argmax(-1) == CLASSES).all()


def test_it_takes_the_place_of_a_prediction_at_no_cost():
    scene = Scene(ACTIVE, CLASSES)
    prediction = random_prediction(dtype=torch.bfloat16)
    replaced = scene.replace(prediction)
    for ours, theirs in zip(replaced, prediction, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert torch.equal(ours[0], ours[1]), "every image has the same"
    assert scene.replace(random_prediction(dtype=torch.bfloat16)) is replaced


def test_networks_of_the_same_sizes_get_the_same_scene():
    one, two = (Scene(ACTIVE, CLASSES).replace(random_prediction()) for _ in range(2))
    assert torch.equal(one.mask_logits, two.mask_logits)
    assert torch.equal(one.class_logits, two.class_logits)
