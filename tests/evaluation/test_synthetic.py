import numpy as np
from pycocotools import mask as mask_util

from eomt_d2.evaluation.synthetic import draw_instances, draw_panoptic


def test_instances_have_what_makes_evaluation_hard():
    content, detections = draw_instances(0, 60, detections=30, classes=5)
    by_image = {image["id"]: [] for image in content["images"]}
    for detection in detections:
        by_image[detection["image_id"]].append(detection)
    assert [i for i, found in by_image.items() if not found] == [20, 40, 60]
    assert {len(found) for found in by_image.values()} == {0, 30}
    scores = [detection["score"] for detection in detections]
    assert len(set(scores)) <= 101 < len(scores), "ties"
    areas = np.array([annotation["area"] for annotation in content["annotations"]])
    for low, high in ((1, 32**2), (32**2, 96**2), (96**2, 480 * 640)):
        assert ((areas >= low) & (areas < high)).any()
    crowds = sum(annotation["iscrowd"] for annotation in content["annotations"])
    assert 0 < crowds < len(areas) / 10


def test_boxes_and_areas_are_those_of_the_masks():
    content, detections = draw_instances(1, 2, detections=5, size=(60, 80))
    for entry in [*content["annotations"], *detections]:
        mask = mask_util.decode(entry["segmentation"])
        assert mask.shape == (60, 80)
        assert entry.get("area", mask.sum()) == mask.sum()
        if mask.any():
            rows, columns = np.nonzero(mask)
            left, top = columns.min(), rows.min()
            box = [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
            assert entry["bbox"] == box


def test_panoptic_images_list_exactly_their_segments():
    for image in draw_panoptic(2, 5, things=3, stuff=6, size=(60, 80)):
        assert image.truth.shape == image.predicted.shape == (60, 80)
        assert set(np.unique(image.truth)) - {0} == set(image.truth_classes)
        assert set(np.unique(image.predicted)) - {0} == set(image.predicted_classes)
        stuff = {c for i, c in image.truth_classes.items() if i >= 4096}
        assert stuff <= set(range(3, 9)) and stuff
        overlap = (image.truth == image.predicted).mean()
        assert 0.5 < overlap < 1


def test_a_seed_gives_the_same_again():
    assert draw_instances(3, 3) == draw_instances(3, 3)
    assert draw_instances(3, 3) != draw_instances(4, 3)
    for first, again in zip(draw_panoptic(5, 2), draw_panoptic(5, 2), strict=True):
        assert np.array_equal(first.truth, again.truth)
        assert np.array_equal(first.predicted, again.predicted)
        assert first[1::2] == again[1::2]
