"""Panoptic quality, with its value for every class."""

import contextlib
import io
import itertools
import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from eomt_d2.errors import UserError
from eomt_d2.evaluation.outputs import required_output
from eomt_d2.evaluation.packages import evaluation_module
from eomt_d2.evaluation.tables import class_table

__all__ = ["PanopticEvaluator", "panoptic_metrics"]

logger = logging.getLogger(__name__)

# Below this many images one process is faster than starting one per core.
_MIN_IMAGES_FOR_POOL = 200


def panoptic_metrics(statistics: Any, categories: Mapping[int, Mapping]) -> dict[str, float]:
    """Average panoptic quality over all, thing and stuff classes, in percent.

    Args:
        statistics: the ``PQStat`` of panopticapi or cityscapesscripts: per category id the sum
            of IoUs and the numbers of true positives, false positives and false negatives.
        categories: by category id, ``{"name": str, "isthing": 0 or 1}``.

    Returns:
        ``PQ``, ``SQ``, ``RQ``, the same with ``_th`` and ``_st``, and ``PQ-<class>``,
        ``SQ-<class>``, ``RQ-<class>``. A class with neither ground truth nor prediction counts in
        no mean (Kirillov et al., "Panoptic Segmentation", section 4.2) and is NaN, as is the mean
        of a group without any class.
    """
    nan = float("nan")
    occurring = {}
    for label, category in categories.items():
        counts = statistics[label]
        if counts.tp + counts.fp + counts.fn > 0:
            occurring[label] = category

    metrics = {}
    per_class = {}
    for suffix, isthing in (("", None), ("_th", 1), ("_st", 0)):
        group = {k: c for k, c in occurring.items() if isthing in (None, int(c["isthing"]))}
        means = dict.fromkeys(("pq", "sq", "rq"), nan)
        if group:
            means, results = statistics.pq_average(group, isthing=None)
            per_class.update(results)
        for key in ("pq", "sq", "rq"):
            metrics[f"{key.upper()}{suffix}"] = 100 * float(means[key])
    for key in ("pq", "sq", "rq"):
        for label, category in categories.items():
            value = per_class.get(label, {}).get(key, nan)
            metrics[f"{key.upper()}-{category['name']}"] = 100 * float(value)
    return metrics


class PanopticEvaluator(COCOPanopticEvaluator):
    """PQ of a data set in COCO panoptic format, computed by the official panopticapi.

    Differs from Detectron2's evaluator, which it extends, in that it reports every class, leaves
    the model's ``segments_info`` untouched (other evaluators and the visualizer read it too),
    works when a data set has only things or only stuff, and takes images of the same base name
    from several folders. All ranks must call :meth:`evaluate`; the main process gets the result.

    Args:
        dataset_name: a registered data set; its metadata has ``panoptic_json``,
            ``panoptic_root``, ``thing_dataset_id_to_contiguous_id`` and
            ``stuff_dataset_id_to_contiguous_id``.
        output_folder: where ``predictions.json`` is written; None writes nothing.
    """

    required_metadata = "panoptic_json"
    evaluation_module = "panopticapi.evaluation"

    def __init__(self, dataset_name: str, output_folder: str | None = None) -> None:
        self._pq = evaluation_module(self.evaluation_module)
        super().__init__(dataset_name, output_folder)
        self._dataset_name = dataset_name
        self.reset()

    def process(self, inputs, outputs) -> None:
        for output in outputs:
            required_output(output, "panoptic_seg", self._dataset_name)
        super().process(inputs, outputs)

    def _convert_category_id(self, segment_info: Mapping[str, Any]) -> dict[str, int]:
        category = int(segment_info["category_id"])
        isthing = segment_info.get("isthing")
        if isthing is not None:
            ids = (
                self._thing_contiguous_id_to_dataset_id
                if isthing
                else self._stuff_contiguous_id_to_dataset_id
            )
            if category not in ids:
                raise UserError(
                    f"The model predicts {'thing' if isthing else 'stuff'} class {category}, "
                    f"which {self._dataset_name} does not have: check "
                    "MODEL.SEM_SEG_HEAD.NUM_CLASSES and the model's thing ids."
                )
            category = ids[category]
        return {"id": int(segment_info["id"]), "category_id": int(category)}

    def evaluate(self) -> OrderedDict | None:
        comm.synchronize()
        gathered = comm.gather(self._predictions)
        if not comm.is_main_process():
            return None
        predictions = list(itertools.chain.from_iterable(gathered))

        with PathManager.open(self._metadata.panoptic_json) as file:
            truth = json.load(file)
        categories = {category["id"]: category for category in truth["categories"]}
        with tempfile.TemporaryDirectory(prefix="panoptic_eval_") as folder:
            annotations = _write_predictions(predictions, folder)
            if self._output_dir is not None:
                path = os.path.join(self._output_dir, "predictions.json")
                with PathManager.open(path, "w") as file:
                    json.dump({**truth, "annotations": annotations}, file)
            statistics = self._compare(truth["annotations"], annotations, folder, categories)

        metrics = panoptic_metrics(statistics, categories)
        names = [category["name"] for category in categories.values()]
        rows = [(n, metrics[f"PQ-{n}"], metrics[f"SQ-{n}"], metrics[f"RQ-{n}"]) for n in names]
        logger.info("Panoptic results by class:\n%s", class_table(rows, ["PQ", "SQ", "RQ"]))
        rows = [
            (name, *(metrics[f"{key}{suffix}"] for key in ("PQ", "SQ", "RQ")))
            for name, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st"))
        ]
        logger.info("Panoptic results:\n%s", class_table(rows, ["PQ", "SQ", "RQ"]))
        return OrderedDict(panoptic_seg=metrics)

    def _compare(self, truth, annotations, folder, categories):
        by_image = {annotation["image_id"]: annotation for annotation in annotations}
        missing = [t["image_id"] for t in truth if t["image_id"] not in by_image]
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(truth)} images of {self._metadata.panoptic_json} were "
                f"not predicted (the first is {missing[0]}): evaluate the whole data set, or "
                "register one whose JSON lists only its images."
            )
        pairs = [(t, by_image[t["image_id"]]) for t in truth]
        arguments = (PathManager.get_local_path(self._metadata.panoptic_root), folder, categories)
        with contextlib.redirect_stdout(io.StringIO()):
            if len(pairs) < _MIN_IMAGES_FOR_POOL:
                return self._pq.pq_compute_single_core(0, pairs, *arguments)
            return self._pq.pq_compute_multi_core(pairs, *arguments)


def _write_predictions(predictions: list[dict], folder: str) -> list[dict]:
    """Write the PNGs into ``folder`` and return the entries without them."""
    annotations = []
    names = set()
    for number, prediction in enumerate(predictions):
        annotation = {key: value for key, value in prediction.items() if key != "png_string"}
        if annotation["file_name"] in names:
            annotation["file_name"] = f"{number}_{annotation['file_name']}"
        names.add(annotation["file_name"])
        with open(os.path.join(folder, annotation["file_name"]), "wb") as file:
            file.write(prediction["png_string"])
        annotations.append(annotation)
    return annotations
