"""faster-coco-eval against the official pycocotools: the same numbers.

They round differently in the last bits (pycocotools adds 2.2e-16 to the denominator of every
precision): found are differences of about 1e-14 percent points, allowed here are 1e-10.
"""

import contextlib
import copy
import io
import json
import math

import numpy as np
import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from eomt_d2.evaluation.average_precision import average_precision, import_package
from eomt_d2.evaluation.synthetic import draw_instances


def coco(content):
    truth = COCO()
    truth.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def both(content, detections, iou_type):
    """Results of both packages, which must leave the detections and the ground truth alone."""
    truth = coco(content)
    before = copy.deepcopy((truth.dataset["images"], detections))
    faster = average_precision(truth, detections, iou_type, "faster_coco_eval")
    assert (truth.dataset["images"], detections) == before
    assert not any("rle" in annotation for annotation in truth.dataset["annotations"])
    return average_precision(truth, detections, iou_type, "pycocotools"), faster


def assert_same(official, faster):
    assert faster == pytest.approx(official, rel=0, abs=1e-10, nan_ok=True)


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
@pytest.mark.parametrize(
    "seed, options",
    [
        # Many per class, so that ranks, ties and matches of second choice matter.
        (0, {"detections": 60, "classes": 3, "objects": 12}),
        # More than the 100 detections of an image and class that count.
        (1, {"detections": 250, "classes": 1, "images": 6}),
        # Most classes without any ground truth or detection.
        (2, {"detections": 20, "classes": 80}),
        # Few detections: images with objects but none, recall that stays low.
        (3, {"detections": 2, "classes": 4}),
    ],
)
def test_same_on_drawn_detections(iou_type, seed, options):
    options = {"images": 25, "size": (240, 320), **options}
    content, detections = draw_instances(seed, **options)
    official, faster = both(content, detections, iou_type)
    assert_same(official, faster)
    # What makes the comparison worth something.
    assert 1 < official["AP"] < 99
    assert any(annotation["iscrowd"] for annotation in content["annotations"])
    if seed == 0:
        assert len({official[key] for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")}) == 6


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_same_where_all_scores_are_equal(iou_type):
    """Then the order of the detections decides, and that of the images."""
    content, detections = draw_instances(4, 20, 30, classes=2, size=(240, 320))
    for detection in detections:
        detection["score"] = 0.5
    official, faster = both(content, detections, iou_type)
    assert_same(official, faster)
    backwards = average_precision(coco(content), detections[::-1], iou_type, "faster_coco_eval")
    assert backwards["AP"] != faster["AP"]


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_same_without_detections_or_truth(iou_type):
    content, detections = draw_instances(5, 4, 5, classes=2, size=(60, 80))
    official, faster = both(content, [], iou_type)
    assert_same(official, faster)
    assert official["AP"] == 0
    official, faster = both({**content, "annotations": []}, detections, iou_type)
    assert_same(official, faster)
    assert all(math.isnan(value) for value in official.values())


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_same_with_names_as_image_ids_out_of_order(iou_type):
    """As in ADE20K, whose image ids are file names; here they also sort unlike their numbers."""
    content, detections = draw_instances(6, 12, 30, classes=2, size=(240, 320))
    for image in content["images"]:
        image["id"] = f"val_{image['id']}"
    for entry in [*content["annotations"], *detections]:
        entry["image_id"] = f"val_{entry['image_id']}"
        entry["score"] = 0.5
    content["images"].reverse()
    assert_same(*both(content, detections, iou_type))


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_same_with_an_ignore_flag_beside_iscrowd(iou_type):
    """pycocotools overwrites "ignore" with "iscrowd"."""
    content, detections = draw_instances(7, 12, 30, classes=2, size=(240, 320))
    for annotation in content["annotations"][::3]:
        annotation["ignore"] = 1
    assert_same(*both(content, detections, iou_type))


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_same_on_real_annotations(test_data, iou_type):
    """COCO's own polygons and crowds; detections are their masks, shifted by some pixels, and
    masks of other images."""
    path = test_data / "coco" / "annotations" / "instances_val2017_mini.json"
    content = json.loads(path.read_text())
    truth = coco(content)
    random = np.random.default_rng(0)
    detections = []
    for annotation in truth.dataset["annotations"]:
        mask = truth.annToMask(annotation)
        for score in random.uniform(0.05, 1, 3):
            shifted = np.roll(mask, random.integers(-4, 5, 2), axis=(0, 1))
            rle = mask_util.encode(np.asfortranarray(shifted))
            box = mask_util.toBbox(rle).tolist()
            rle["counts"] = rle["counts"].decode()
            category = annotation["category_id"] if random.random() < 0.9 else 1
            detections.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": category,
                    "bbox": box,
                    "segmentation": rle,
                    "score": round(float(score), 1),
                }
            )
    official, faster = both(content, detections, iou_type)
    assert_same(official, faster)
    assert 10 < official["AP"] < 90


def test_an_unknown_package_is_refused():
    with pytest.raises(ValueError, match="'hotcoco' is not one of"):
        import_package("hotcoco")
