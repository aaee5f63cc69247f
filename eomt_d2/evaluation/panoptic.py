"""Panoptic quality, with its value for every class."""

import importlib.util
import itertools
import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from eomt_d2.errors import UserError
from eomt_d2.evaluation.background import BackgroundWork
from eomt_d2.evaluation.outputs import required_output
from eomt_d2.evaluation.packages import evaluation_module
from eomt_d2.evaluation.tables import class_table

__all__ = ["PanopticEvaluator", "panoptic_metrics"]

logger = logging.getLogger(__name__)


class ImageResult(NamedTuple):
    """What is kept of one image: no pixels.

    Attributes:
        annotation: its entry of the COCO panoptic results: ``image_id``, ``file_name``,
            ``segments_info``.
        counts: by category id the sum of IoUs and the numbers of true positives, false positives
            and false negatives; None if the image is not in the ground truth.
    """

    annotation: dict[str, Any]
    counts: dict[int, tuple[float, int, int, int]] | None


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


class PanopticEvaluator(DatasetEvaluator):
    """PQ of a data set in COCO panoptic format, computed by the official panopticapi.

    An image is compared with its ground truth in the background while the model works on the next
    ones, and only its counts are kept; the official script would first have a PNG of every image.
    The counts are added in the order of the ground truth, so that the result does not depend on
    how many threads and processes there were.

    Differs from Detectron2's evaluator, besides, in that it reports every class, leaves the model's
    result untouched (other evaluators and the visualizer read it too), works when a data set has
    only things or only stuff, and takes images of the same base name from several folders. All
    ranks must call :meth:`evaluate`; the main process gets the result.

    Args:
        dataset_name: a registered data set; its metadata has ``panoptic_json``,
            ``panoptic_root``, ``thing_dataset_id_to_contiguous_id`` and
            ``stuff_dataset_id_to_contiguous_id``.
        output_folder: where ``predictions.json`` is written; None writes nothing.
        threads: that compare in the background; None means this process's share of the cores.
    """

    required_metadata = "panoptic_json"
    evaluation_module = "panopticapi.evaluation"

    def __init__(
        self, dataset_name: str, output_folder: str | None = None, threads: int | None = None
    ) -> None:
        self._pq = _silent_copy(evaluation_module(self.evaluation_module))
        self._dataset_name = dataset_name
        self._metadata = metadata = MetadataCatalog.get(dataset_name)
        self._thing_ids = {v: k for k, v in metadata.thing_dataset_id_to_contiguous_id.items()}
        self._stuff_ids = {v: k for k, v in metadata.stuff_dataset_id_to_contiguous_id.items()}
        self._output_folder = output_folder
        self._truth_folder = PathManager.get_local_path(metadata.panoptic_root)
        with PathManager.open(metadata.panoptic_json) as file:
            self._truth = json.load(file)
        self._categories = {entry["id"]: entry for entry in self._truth["categories"]}
        self._truth_of = {entry["image_id"]: entry for entry in self._truth["annotations"]}
        self._threads = threads
        self._work: BackgroundWork | None = None
        self.reset()

    def reset(self) -> None:
        if self._work is not None:
            self._work.stop()
        self._work = BackgroundWork(self._threads)

    def process(self, inputs, outputs) -> None:
        for entry, output in zip(inputs, outputs, strict=True):
            ids, segments = required_output(output, "panoptic_seg", self._dataset_name)
            # A copy in any case: the model's result may change before the comparison is made.
            ids = ids.to(device="cpu", dtype=torch.int32, copy=True).numpy()
            if segments is None:
                ids, segments = self._segments_of_labels(ids)
            base_name = os.path.splitext(os.path.basename(entry["file_name"]))[0]
            annotation = {
                "image_id": entry["image_id"],
                "file_name": f"{base_name}.png",
                "segments_info": [self._result_segment(segment) for segment in segments],
            }
            self._work.submit(self._compare, annotation, ids)

    def _segments_of_labels(self, labels: np.ndarray) -> tuple[np.ndarray, list[dict]]:
        """Segments of a map of ``class * label_divisor + instance``, -1 where void, which some
        models of Detectron2 give instead; void gets id 0."""
        things = self._metadata.thing_dataset_id_to_contiguous_id.values()
        segments = []
        for label in np.unique(labels[labels != -1]).tolist():
            category = label // self._metadata.label_divisor
            segments.append(
                {"id": label + 1, "category_id": category, "isthing": category in things}
            )
        return labels + 1, segments

    def _result_segment(self, segment: Mapping[str, Any]) -> dict[str, int]:
        category = int(segment["category_id"])
        isthing = segment.get("isthing")
        if isthing is not None:
            ids = self._thing_ids if isthing else self._stuff_ids
            if category not in ids:
                raise UserError(
                    f"The model predicts {'thing' if isthing else 'stuff'} class {category}, "
                    f"which {self._dataset_name} does not have: check "
                    "MODEL.SEM_SEG_HEAD.NUM_CLASSES and the model's thing ids."
                )
            category = ids[category]
        return {"id": int(segment["id"]), "category_id": int(category)}

    def _compare(self, annotation: dict[str, Any], ids: np.ndarray) -> ImageResult:
        """Counts of one image; runs in a thread."""
        truth = self._truth_of.get(annotation["image_id"])
        if truth is None:
            return ImageResult(annotation, None)
        truth_file = os.path.join(self._truth_folder, truth["file_name"])
        if not os.path.isfile(truth_file):
            raise UserError(
                f"The ground truth {truth_file} of {self._dataset_name} is missing: put it there, "
                "or correct the data set's panoptic_root."
            )
        # panopticapi takes files, of any format that Pillow knows; this one lives for the call.
        descriptor, path = tempfile.mkstemp(prefix="panoptic_", suffix=".ppm")
        try:
            with open(descriptor, "wb") as file:
                file.write(_portable_pixmap(ids))
            # It writes areas into the segments.
            segments = [dict(segment) for segment in annotation["segments_info"]]
            folder, name = os.path.split(path)
            pair = (truth, {**annotation, "file_name": name, "segments_info": segments})
            statistics = self._pq.pq_compute_single_core(
                0, [pair], self._truth_folder, folder, self._categories
            )
        finally:
            os.unlink(path)
        counts = {
            category: (float(part.iou), part.tp, part.fp, part.fn)
            for category, part in statistics.pq_per_cat.items()
        }
        return ImageResult(annotation, counts)

    def evaluate(self) -> OrderedDict | None:
        results = self._work.results()
        comm.synchronize()
        gathered = comm.gather(results)
        if not comm.is_main_process():
            return None
        results = list(itertools.chain.from_iterable(gathered))
        if self._output_folder is not None:
            self._write_predictions([result.annotation for result in results])
        metrics = panoptic_metrics(self._total(results), self._categories)
        names = [category["name"] for category in self._categories.values()]
        rows = [(n, metrics[f"PQ-{n}"], metrics[f"SQ-{n}"], metrics[f"RQ-{n}"]) for n in names]
        logger.info("Panoptic results by class:\n%s", class_table(rows, ["PQ", "SQ", "RQ"]))
        rows = [
            (name, *(metrics[f"{key}{suffix}"] for key in ("PQ", "SQ", "RQ")))
            for name, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st"))
        ]
        logger.info("Panoptic results:\n%s", class_table(rows, ["PQ", "SQ", "RQ"]))
        return OrderedDict(panoptic_seg=metrics)

    def _total(self, results: Iterable[ImageResult]) -> Any:
        """The ``PQStat`` of all images of the ground truth."""
        counts_of = {result.annotation["image_id"]: result.counts for result in results}
        missing = [image_id for image_id in self._truth_of if image_id not in counts_of]
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(self._truth_of)} images of "
                f"{self._metadata.panoptic_json} were not predicted (the first is {missing[0]}): "
                "evaluate the whole data set, or register one whose JSON lists only its images."
            )
        total = self._pq.PQStat()
        for image_id in self._truth_of:
            for category, (iou, tp, fp, fn) in counts_of[image_id].items():
                part = total[category]
                part.iou += iou
                part.tp += tp
                part.fp += fp
                part.fn += fn
        return total

    def _write_predictions(self, annotations: list[dict]) -> None:
        names = set()
        for number, annotation in enumerate(annotations):
            if annotation["file_name"] in names:
                annotation["file_name"] = f"{number}_{annotation['file_name']}"
            names.add(annotation["file_name"])
        PathManager.mkdirs(self._output_folder)
        path = os.path.join(self._output_folder, "predictions.json")
        with PathManager.open(path, "w") as file:
            json.dump({**self._truth, "annotations": annotations}, file)


def _portable_pixmap(ids: np.ndarray) -> bytes:
    """(height, width) int32 segment ids as an uncompressed image of the same colours as in a COCO
    panoptic PNG: id = red + 256 green + 65536 blue."""
    height, width = ids.shape
    colours = ids.astype("<i4", copy=False).view(np.uint8).reshape(height, width, 4)[..., :3]
    return b"P6 %d %d 255\n" % (width, height) + colours.tobytes()


def _silent_copy(module: ModuleType) -> ModuleType:
    """An instance of ``module`` of its own, in which ``print`` says nothing.

    The official scripts report their progress on every call. In a thread they cannot be silenced by
    redirecting ``sys.stdout``, which would take what other threads print as well.
    """
    copy = importlib.util.module_from_spec(module.__spec__)
    copy.print = lambda *args, **kwargs: None
    module.__spec__.loader.exec_module(copy)
    return copy
