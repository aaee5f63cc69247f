"""Average precision of instance masks and boxes, by pycocotools."""

import contextlib
import io
import itertools
import json
import logging
import os

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eomt_d2.errors import UserError
from eomt_d2.evaluation.outputs import required_output
from eomt_d2.evaluation.tables import class_table

__all__ = ["InstanceEvaluator", "average_precision"]

logger = logging.getLogger(__name__)

_STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def average_precision(truth: COCO, detections: list[dict], iou_type: str) -> dict[str, float]:
    """Official COCO average precision, at most 100 detections per image, in percent.

    Args:
        truth: the ground truth.
        detections: entries of the COCO results format with the data set's own category ids.
            The list may be empty, which gives 0 wherever there is ground truth.
        iou_type: "segm" or "bbox".

    Returns:
        ``AP`` (mean over IoU 0.50:0.95), ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl`` and
        ``AP-<category>``; NaN where there is no ground truth.
    """
    if iou_type == "segm":
        # With a box present, pycocotools would take the box's area for "small", "medium", "large".
        detections = [{k: v for k, v in d.items() if k != "bbox"} for d in detections]
    else:
        detections = [dict(d) for d in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, _load_detections(truth, detections), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = {
        name: 100 * float(value) if value >= 0 else float("nan")
        for name, value in zip(_STATISTICS, evaluation.stats[:6], strict=True)
    }
    # (IoU thresholds, recalls, categories, area ranges, detection limits); -1 without truth.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    for index, category in enumerate(truth.loadCats(evaluation.params.catIds)):
        values = precision[:, :, index]
        values = values[values > -1]
        ap = 100 * float(np.mean(values)) if values.size else float("nan")
        metrics[f"AP-{category['name']}"] = ap
    return metrics


def _load_detections(truth: COCO, detections: list[dict]) -> COCO:
    if detections:
        return truth.loadRes(detections)
    empty = COCO()
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _complete_annotations(truth: COCO) -> None:
    """Repair, in memory, what pycocotools needs and other tools leave out or number from 0."""
    annotations = truth.dataset.get("annotations", [])
    for annotation in annotations:
        annotation.setdefault("iscrowd", 0)
        if "area" not in annotation:
            mask = truth.annToMask(annotation)
            annotation["area"] = float(mask.sum())
    # pycocotools marks "not matched" by id 0, so a match with such an annotation would be lost.
    if 0 in truth.anns:
        for annotation in annotations:
            annotation["id"] += 1
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex()


class InstanceEvaluator(COCOEvaluator):
    """AP of masks and boxes on a data set with a COCO instances JSON, by official pycocotools.

    Differs from Detectron2's evaluator, which it extends: thing ids need not be contiguous
    (ADE20K panoptic has things between stuff) nor the only entries of ``thing_classes``
    (Detectron2's COCO panoptic metadata lists all classes there), a model without a single
    detection gets 0 instead of no result, and no compiled code of Detectron2 is used. All ranks
    must call :meth:`evaluate`; the main process gets the result: ``segm`` and ``bbox``.

    Args:
        dataset_name: a registered data set; its metadata has ``json_file`` and, unless category
            ids are class indices, ``thing_dataset_id_to_contiguous_id``.
        output_folder: where ``coco_instances_results.json`` and ``instances_predictions.pth``
            are written; None writes nothing.

    Raises:
        UserError: there is no ``json_file``.
    """

    required_metadata = "json_file"

    def __init__(self, dataset_name: str, output_folder: str | None = None) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        if not metadata.get("json_file"):
            raise UserError(
                f"Evaluating instances of {dataset_name} needs a COCO instances JSON: register "
                "the data set with its json_file."
            )
        super().__init__(dataset_name, ("segm", "bbox"), True, output_folder, use_fast_impl=False)
        self._dataset_name = dataset_name
        if self._do_evaluation:
            _complete_annotations(self._coco_api)
        self.reset()

    def process(self, inputs, outputs) -> None:
        for output in outputs:
            required_output(output, "instances", self._dataset_name)
        super().process(inputs, outputs)

    def _eval_predictions(self, predictions, img_ids=None) -> None:
        detections = list(itertools.chain.from_iterable(p["instances"] for p in predictions))
        self._restore_category_ids(detections)
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            with PathManager.open(path, "w") as file:
                json.dump(detections, file)
        if not self._do_evaluation:
            logger.info("%s has no annotations to compare with.", self._dataset_name)
            return
        for task in self._tasks:
            metrics = average_precision(self._coco_api, detections, task)
            self._results[task] = metrics
            classes = [(k[3:], v) for k, v in metrics.items() if k.startswith("AP-")]
            logger.info("Results of %s by class:\n%s", task, class_table(classes, ["AP"]))
            summary = [("all", *(metrics[k] for k in _STATISTICS))]
            logger.info("Results of %s:\n%s", task, class_table(summary, _STATISTICS))

    def _restore_category_ids(self, detections: list[dict]) -> None:
        contiguous_ids = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous_ids is None:
            return
        dataset_ids = {index: category for category, index in contiguous_ids.items()}
        for detection in detections:
            index = detection["category_id"]
            if index not in dataset_ids:
                raise UserError(
                    f"The model predicts an instance of class {index}, which is not a thing class "
                    f"of {self._dataset_name}: check MODEL.SEM_SEG_HEAD.NUM_CLASSES and the "
                    "model's thing ids."
                )
            detection["category_id"] = dataset_ids[index]
