"""Cityscapes: thin evaluators over the official cityscapesscripts.

Detectron2's own ones cannot be used on its main branch, where they import a package of its
authors' company (facebookresearch/detectron2#5436). These need nothing of them, and hand the
scripts explicit pairs of files: the scripts' own search takes whatever lies in a folder, and
leaves files behind in the working directory.
"""

import abc
import contextlib
import copy
import io
import itertools
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image

from eomt_d2.errors import UserError
from eomt_d2.evaluation.background import BackgroundWork
from eomt_d2.evaluation.outputs import required_output, semantic_labels_of
from eomt_d2.evaluation.packages import evaluation_module
from eomt_d2.evaluation.panoptic import PanopticEvaluator
from eomt_d2.evaluation.tables import class_table

__all__ = [
    "CityscapesInstanceEvaluator",
    "CityscapesPanopticEvaluator",
    "CityscapesSemanticEvaluator",
]

logger = logging.getLogger(__name__)


class CityscapesPanopticEvaluator(PanopticEvaluator):
    """PQ computed by cityscapesscripts instead of panopticapi; otherwise the same."""

    evaluation_module = "cityscapesscripts.evaluation.evalPanopticSemanticLabeling"


class _CityscapesEvaluator(DatasetEvaluator, abc.ABC):
    """Collects predictions as PNGs, which are made in the background; the main process writes them
    out for the official script.

    Args:
        dataset_name: a registered data set; its metadata has ``gt_dir``, the folder that holds
            one folder of ground truth per city.
        output_folder: accepted like every evaluator's; nothing is kept.
    """

    required_metadata = "gt_dir"
    script: str
    truth_suffix: str

    def __init__(self, dataset_name: str, output_folder: str | None = None) -> None:
        self._script = evaluation_module(self.script)
        self._labels = evaluation_module("cityscapesscripts.helpers.labels")
        self._metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._work: BackgroundWork | None = None
        self.reset()

    def reset(self) -> None:
        if self._work is not None:
            self._work.stop()
        self._work = BackgroundWork()

    def process(self, inputs, outputs) -> None:
        for entry, output in zip(inputs, outputs, strict=True):
            # <city>_<sequence>_<frame>, the part that all files of a frame share.
            frame = os.path.basename(entry["file_name"]).replace("_leftImg8bit.png", "")
            self._work.submit(self._prediction, frame, self._read(output))

    def _prediction(self, frame: str, read: Any) -> tuple[str, Any]:
        return frame, self._encode(read)

    def evaluate(self) -> OrderedDict | None:
        results = self._work.results()
        comm.synchronize()
        gathered = comm.gather(results)
        if not comm.is_main_process():
            return None
        predictions = list(itertools.chain.from_iterable(gathered))
        if not predictions:
            raise UserError(f"{self._dataset_name} has no images to evaluate.")
        truth_folder = PathManager.get_local_path(self._metadata.gt_dir)
        truth_files = [
            os.path.join(truth_folder, frame.partition("_")[0], f"{frame}_{self.truth_suffix}")
            for frame, _ in predictions
        ]
        for path in truth_files:
            if not os.path.isfile(path):
                raise UserError(
                    f"The ground truth {path} of {self._dataset_name} is missing: unpack "
                    "gtFine_trainvaltest.zip of Cityscapes there."
                )
        with tempfile.TemporaryDirectory(prefix="cityscapes_eval_") as folder:
            files = [self._write(prediction, frame, folder) for frame, prediction in predictions]
            arguments = copy.copy(self._script.args)
            arguments.quiet = True
            arguments.JSONOutput = False
            # The script compares this by prefix with absolute paths.
            arguments.predictionPath = os.path.abspath(folder)
            with _official_script():
                return self._run(files, truth_files, arguments)

    @abc.abstractmethod
    def _read(self, output: dict) -> Any:
        """One image's prediction, on the CPU, as a copy of what the model gave."""

    @abc.abstractmethod
    def _encode(self, read: Any) -> Any:
        """What :meth:`_read` gave, in a form that is cheap to gather; runs in a thread."""

    @abc.abstractmethod
    def _write(self, prediction: Any, frame: str, folder: str) -> str:
        """Write what :meth:`_encode` gave as the official script reads it; returns the file."""

    @abc.abstractmethod
    def _run(self, files: list[str], truth_files: list[str], arguments: Any) -> OrderedDict:
        """Results of the official script over pairs of files."""


class CityscapesSemanticEvaluator(_CityscapesEvaluator):
    """mIoU and instance-weighted iIoU of 19 classes and their categories.

    Results: ``mIoU`` (also under Detectron2's name ``IoU``), ``iIoU``, ``IoU_sup``, ``iIoU_sup``
    (the same over categories) and ``IoU-<class>``. In the official script a class counts as soon
    as it is in the ground truth or predicted.
    """

    script = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
    truth_suffix = "gtFine_labelIds.png"

    def _read(self, output: dict) -> np.ndarray:
        num_classes = sum(not label.ignoreInEval for label in self._labels.labels)
        classes = semantic_labels_of(output, num_classes, self._dataset_name)
        return classes.to(torch.uint8).numpy()

    def _encode(self, read: np.ndarray) -> bytes:
        evaluated = [label for label in self._labels.labels if not label.ignoreInEval]
        label_ids = np.zeros(len(evaluated), dtype=np.uint8)
        for label in evaluated:
            label_ids[label.trainId] = label.id
        return _png(Image.fromarray(label_ids[read]))

    def _write(self, prediction: bytes, frame: str, folder: str) -> str:
        path = os.path.join(folder, f"{frame}.png")
        with open(path, "wb") as file:
            file.write(prediction)
        return path

    def _run(self, files: list[str], truth_files: list[str], arguments: Any) -> OrderedDict:
        scores = self._script.evaluateImgLists(files, truth_files, arguments)
        evaluated = [label.name for label in self._labels.labels if not label.ignoreInEval]
        mean = 100 * scores["averageScoreClasses"]
        metrics = {
            "mIoU": mean,
            "IoU": mean,
            "iIoU": 100 * scores["averageScoreInstClasses"],
            "IoU_sup": 100 * scores["averageScoreCategories"],
            "iIoU_sup": 100 * scores["averageScoreInstCategories"],
        }
        metrics.update((f"IoU-{name}", 100 * scores["classScores"][name]) for name in evaluated)
        rows = [(name, metrics[f"IoU-{name}"]) for name in evaluated]
        rows.append(("mean", mean))
        logger.info("Semantic results by class:\n%s", class_table(rows, ["IoU"]))
        return OrderedDict(sem_seg=metrics)


class CityscapesInstanceEvaluator(_CityscapesEvaluator):
    """AP of instance masks at IoU 0.50:0.95 over the 8 classes with instances.

    Results: ``AP``, ``AP50`` and ``AP-<class>``, NaN for a class without ground truth. The
    official script leaves out ground truth of less than 100 pixels.
    """

    script = "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"
    truth_suffix = "gtFine_instanceIds.png"

    def _read(self, output: dict) -> tuple[np.ndarray, int, list[int], list[float]]:
        """Masks with 8 pixels to the byte, their width, label ids and scores."""
        instances = required_output(output, "instances", self._dataset_name)
        masks = instances.pred_masks.to(device="cpu", dtype=torch.bool).numpy()
        label_ids = [self._labels.name2label[name].id for name in self._metadata.thing_classes]
        ids = [label_ids[index] for index in instances.pred_classes.tolist()]
        return np.packbits(masks, axis=2), masks.shape[2], ids, instances.scores.tolist()

    def _encode(
        self, read: tuple[np.ndarray, int, list[int], list[float]]
    ) -> list[tuple[bytes, int, float]]:
        packed, width, ids, scores = read
        return [
            (_png(Image.frombytes("1", (width, len(mask)), mask.tobytes())), label_id, score)
            for mask, label_id, score in zip(packed, ids, scores, strict=True)
        ]

    def _write(self, prediction: list[tuple[bytes, int, float]], frame: str, folder: str) -> str:
        path = os.path.join(folder, f"{frame}.txt")
        with open(path, "w") as index:
            for number, (mask, label_id, score) in enumerate(prediction):
                name = f"{frame}_{number}.png"
                with open(os.path.join(folder, name), "wb") as file:
                    file.write(mask)
                index.write(f"{name} {label_id} {score}\n")
        return path

    def _run(self, files: list[str], truth_files: list[str], arguments: Any) -> OrderedDict:
        script = self._script
        # The steps of the script's evaluateImgLists, which would also write a file "matches.json"
        # into the working directory.
        script.setInstanceLabels(arguments)
        arguments.gtInstancesFile = os.path.join(arguments.predictionPath, "gtInstances.json")
        truth = script.getGtInstances(truth_files, arguments)
        matches = script.matchGtWithPreds(files, truth_files, truth, arguments)
        averages = script.computeAverages(script.evaluateMatches(matches, arguments), arguments)
        metrics = {
            "AP": 100 * float(averages["allAp"]),
            "AP50": 100 * float(averages["allAp50%"]),
        }
        rows = []
        for name, scores in averages["classes"].items():
            metrics[f"AP-{name}"] = 100 * float(scores["ap"])
            rows.append((name, metrics[f"AP-{name}"], 100 * float(scores["ap50%"])))
        rows.append(("mean", metrics["AP"], metrics["AP50"]))
        logger.info("Instance results by class:\n%s", class_table(rows, ["AP", "AP50"]))
        return OrderedDict(segm=metrics)


def _png(image: Image.Image) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, format="PNG")
        return buffer.getvalue()


@contextlib.contextmanager
def _official_script() -> Iterator[None]:
    """Let cityscapesscripts run inside a program and on current NumPy.

    It reports a problem by printing it and calling ``sys.exit``; here this becomes an exception.
    Up to its version 2.3.0 it calls ``numpy.in1d``, which NumPy 2.4 removed; the name is lent for
    the time of the call.
    """
    name = "in1d"
    lend = not hasattr(np, name)
    printed = io.StringIO()
    if lend:
        setattr(np, name, np.isin)
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except SystemExit as error:
        message = printed.getvalue().strip().rpartition("\n")[2]
        raise UserError(f"cityscapesscripts stopped: {message.rstrip('.')}.") from error
    finally:
        if lend:
            delattr(np, name)
