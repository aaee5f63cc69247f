"""Average precision of instance masks and boxes, by pycocotools or faster-coco-eval."""

import contextlib
import io
import itertools
import json
import logging
import os

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode, Instances
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO

from eomt_d2.errors import UserError
from eomt_d2.evaluation.average_precision import STATISTICS, average_precision, import_package
from eomt_d2.evaluation.outputs import required_output
from eomt_d2.evaluation.run_length import encode_masks
from eomt_d2.evaluation.tables import class_table

__all__ = ["InstanceEvaluator", "coco_results"]

logger = logging.getLogger(__name__)


def coco_results(instances: Instances, image_id: int | str) -> list[dict]:
    """Detections of one image in the COCO results format.

    Args:
        instances: ``pred_boxes`` (x0, y0, x1, y1 in pixels), ``scores``, ``pred_classes`` and, if
            there are masks, ``pred_masks`` (N, height, width) bool; on any device.
        image_id: the image's id in the data set.

    Returns:
        N dicts: ``image_id``, ``category_id`` (the class index), ``bbox`` (x, y, width, height),
        ``score`` and ``segmentation`` (run lengths), all of plain Python types.
    """
    boxes = instances.pred_boxes.tensor.cpu()
    boxes = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    columns = {
        "category_id": instances.pred_classes.tolist(),
        "bbox": boxes.tolist(),
        "score": instances.scores.tolist(),
    }
    if instances.has("pred_masks"):
        columns["segmentation"] = encode_masks(instances.pred_masks)
    rows = zip(*columns.values(), strict=True)
    return [{"image_id": image_id, **dict(zip(columns, row, strict=True))} for row in rows]


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
    """AP of masks and boxes on a data set with a COCO instances JSON.

    Computed by the official pycocotools, or by faster-coco-eval, which gives the same numbers.
    Masks are kept as run lengths.

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
        coco_evaluator: ``TEST.COCO_EVALUATOR``, "pycocotools" or "faster_coco_eval".

    Raises:
        UserError: there is no ``json_file``, or the chosen package is not installed.
    """

    required_metadata = "json_file"

    def __init__(
        self,
        dataset_name: str,
        output_folder: str | None = None,
        coco_evaluator: str = "pycocotools",
    ) -> None:
        import_package(coco_evaluator)
        metadata = MetadataCatalog.get(dataset_name)
        if not metadata.get("json_file"):
            raise UserError(
                f"Evaluating instances of {dataset_name} needs a COCO instances JSON: register "
                "the data set with its json_file."
            )
        super().__init__(dataset_name, ("segm", "bbox"), True, output_folder, use_fast_impl=False)
        self._dataset_name = dataset_name
        self._coco_evaluator = coco_evaluator
        if self._do_evaluation:
            _complete_annotations(self._coco_api)
        self.reset()

    def process(self, inputs, outputs) -> None:
        for entry, output in zip(inputs, outputs, strict=True):
            instances = required_output(output, "instances", self._dataset_name)
            image_id = entry["image_id"]
            detections = coco_results(instances, image_id)
            self._predictions.append({"image_id": image_id, "instances": detections})

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
            metrics = average_precision(self._coco_api, detections, task, self._coco_evaluator)
            self._results[task] = metrics
            classes = [(k[3:], v) for k, v in metrics.items() if k.startswith("AP-")]
            logger.info("Results of %s by class:\n%s", task, class_table(classes, ["AP"]))
            summary = [("all", *(metrics[k] for k in STATISTICS))]
            logger.info("Results of %s:\n%s", task, class_table(summary, STATISTICS))

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
