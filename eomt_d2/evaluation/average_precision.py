"""COCO average precision, by either of two packages."""

import contextlib
import io
from types import ModuleType

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eomt_d2.evaluation.packages import evaluation_module

__all__ = ["COCO_EVALUATORS", "STATISTICS", "average_precision", "import_package"]

STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# Values of TEST.COCO_EVALUATOR, which are names of modules.
COCO_EVALUATORS = ("pycocotools", "faster_coco_eval")


def import_package(name: str) -> ModuleType:
    """Import one of ``COCO_EVALUATORS``.

    Raises:
        UserError: it is not installed; the message holds the command that installs it.
    """
    if name not in COCO_EVALUATORS:
        raise ValueError(f"{name!r} is not one of {COCO_EVALUATORS}")
    return evaluation_module(name)


def average_precision(
    truth: COCO, detections: list[dict], iou_type: str, package: str = "pycocotools"
) -> dict[str, float]:
    """Official COCO average precision, at most 100 detections per image and class, in percent.

    Args:
        truth: the ground truth.
        detections: entries of the COCO results format with the data set's own category ids.
            The list may be empty, which gives 0 wherever there is ground truth.
        iou_type: "segm" or "bbox".
        package: one of ``COCO_EVALUATORS``. "faster_coco_eval" matches and accumulates in C++;
            its numbers are those of pycocotools.

    Returns:
        ``AP`` (mean over IoU 0.50:0.95), ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl`` and
        ``AP-<category>``; NaN where there is no ground truth.
    """
    if iou_type == "segm":
        # With a box present, either package would take the box's area for "small", "medium",
        # "large".
        detections = [{k: v for k, v in d.items() if k != "bbox"} for d in detections]
    else:
        # Copies all the same: both packages add keys.
        detections = [dict(d) for d in detections]
    evaluate = _by_pycocotools if package == "pycocotools" else _by_faster_coco_eval
    evaluation = evaluate(truth, detections, iou_type)
    metrics = {
        name: 100 * float(value) if value >= 0 else float("nan")
        for name, value in zip(STATISTICS, evaluation.stats[:6], strict=True)
    }
    # (IoU thresholds, recalls, categories, area ranges, detection limits); -1 without truth.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    for index, category in enumerate(truth.loadCats(evaluation.params.catIds)):
        values = precision[:, :, index]
        values = values[values > -1]
        ap = 100 * float(np.mean(values)) if values.size else float("nan")
        metrics[f"AP-{category['name']}"] = ap
    return metrics


def _by_pycocotools(truth: COCO, detections: list[dict], iou_type: str) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        if detections:
            found = truth.loadRes(detections)
        else:
            # loadRes looks at the first one.
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _by_faster_coco_eval(truth: COCO, detections: list[dict], iou_type: str):
    package = import_package("faster_coco_eval")
    # It wants image ids that are integers; ADE20K's are names. Ranks keep the order, which decides
    # between equal scores.
    rank_of = {image_id: rank for rank, image_id in enumerate(sorted(truth.imgs), start=1)}
    # It also adds keys of its own to annotations.
    annotations = [
        {**annotation, "image_id": rank_of[annotation["image_id"]]}
        for annotation in truth.dataset["annotations"]
    ]
    images = [{**image, "id": rank_of[image["id"]]} for image in truth.dataset["images"]]
    copy = package.COCO({**truth.dataset, "images": images, "annotations": annotations})
    for detection in detections:
        detection["image_id"] = rank_of[detection["image_id"]]
    evaluation = package.COCOeval_faster(copy, copy.loadRes(detections), iou_type)
    evaluation.run()
    return evaluation
