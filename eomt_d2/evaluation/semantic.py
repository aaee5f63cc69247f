"""Semantic segmentation: intersection over union from one confusion matrix."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image

from eomt_d2.errors import UserError
from eomt_d2.evaluation.background import BackgroundWork
from eomt_d2.evaluation.outputs import semantic_labels_of
from eomt_d2.evaluation.tables import class_table

__all__ = ["SemanticSegmentationEvaluator", "confusion_matrix", "semantic_metrics"]

logger = logging.getLogger(__name__)


def confusion_matrix(
    truth: np.ndarray, labels: np.ndarray, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Count pixels by true and predicted class.

    Args:
        truth: (H, W) integers: class indices in [0, K), or ``ignore_label``.
        labels: (H, W) integers: predicted class indices in [0, K).
        num_classes: K.
        ignore_label: true value of pixels that do not count at all.

    Returns:
        (K, K) int64; row = true class, column = predicted class.

    Raises:
        ValueError: the shapes differ, or ``truth`` holds something else.
    """
    if truth.shape != labels.shape:
        raise ValueError(f"the prediction is {labels.shape}, the ground truth {truth.shape}")
    pairs = truth.astype(np.int64)
    ignored = truth == ignore_label
    pairs[ignored] = 0
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < num_classes:
        unknown = np.unique(pairs[(pairs < 0) | (pairs >= num_classes)])
        raise ValueError(
            f"the ground truth holds the values {unknown.tolist()}, neither a class in "
            f"[0, {num_classes}) nor the ignored {ignore_label}"
        )
    # Ignored pixels are counted too, in a row of their own: cheaper than picking out the others.
    pairs[ignored] = num_classes
    pairs *= num_classes
    pairs += labels
    counts = np.bincount(pairs.reshape(-1), minlength=(num_classes + 1) * num_classes)
    return counts.reshape(num_classes + 1, num_classes)[:num_classes]


def semantic_metrics(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Turn a confusion matrix into the usual metrics, in percent.

    IoU of a class = its true positives / (true positives + false positives + false negatives).
    The means run over the classes that **occur in the ground truth**. A predicted class that does
    not occur there lowers the IoU of the classes it was taken for and has no IoU of its own; this
    is the definition of Detectron2's main branch (v0.6 averages it in as 0).

    Args:
        confusion: (K, K) counts from :func:`confusion_matrix`.
        class_names: K names.

    Returns:
        ``mIoU``, ``fwIoU`` (weighted by the classes' share of pixels), ``mACC`` (mean recall),
        ``pACC`` (share of correct pixels), and ``IoU-<class>``, NaN for absent classes. All are
        NaN if not a single pixel counts.
    """
    correct = np.diag(confusion).astype(np.float64)
    true_pixels = confusion.sum(axis=1).astype(np.float64)
    predicted_pixels = confusion.sum(axis=0).astype(np.float64)
    present = true_pixels > 0
    nan = float("nan")
    iou = np.full(len(class_names), nan)
    union = true_pixels + predicted_pixels - correct
    iou[present] = correct[present] / union[present]

    metrics = dict.fromkeys(("mIoU", "fwIoU", "mACC", "pACC"), nan)
    if present.any():
        total = true_pixels.sum()
        metrics["mIoU"] = 100 * float(iou[present].mean())
        metrics["fwIoU"] = 100 * float((iou[present] * true_pixels[present]).sum() / total)
        metrics["mACC"] = 100 * float((correct[present] / true_pixels[present]).mean())
        metrics["pACC"] = 100 * float(correct.sum() / total)
    metrics.update(
        (f"IoU-{name}", 100 * float(v)) for name, v in zip(class_names, iou, strict=True)
    )
    return metrics


class SemanticSegmentationEvaluator(DatasetEvaluator):
    """mIoU of a data set whose ground truth is one PNG of class indices per image.

    Takes ``sem_seg`` scores or ``sem_seg_labels`` (``TEST.SEMANTIC_OUTPUT``). The ground truth is
    read and compared in the background; only the confusion matrix is kept. Works the same on
    every Detectron2, computes no boundary IoU and writes no files. All ranks must call
    :meth:`evaluate`; the main process gets the result. See :func:`semantic_metrics` for the
    definitions.

    Args:
        dataset_name: a registered data set whose entries have ``sem_seg_file_name`` and whose
            metadata has ``stuff_classes`` (all K semantic classes) and ``ignore_label``.
        output_folder: accepted like every evaluator's; nothing is written.
        threads: that compare in the background; None means this process's share of the cores.
    """

    required_metadata = "sem_seg_root"

    def __init__(
        self, dataset_name: str, output_folder: str | None = None, threads: int | None = None
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._class_names = list(metadata.stuff_classes)
        self._ignore_label = metadata.ignore_label
        self._truth_files = {
            entry["file_name"]: entry.get("sem_seg_file_name")
            for entry in DatasetCatalog.get(dataset_name)
        }
        self._threads = threads
        self._work: BackgroundWork | None = None
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        if self._work is not None:
            self._work.stop()
        self._work = BackgroundWork(self._threads)
        self._confusion = np.zeros((len(self._class_names),) * 2, dtype=np.int64)

    def process(self, inputs, outputs) -> None:
        for entry, output in zip(inputs, outputs, strict=True):
            labels = semantic_labels_of(output, len(self._class_names), self._dataset_name)
            if labels is output.get("sem_seg_labels"):
                labels = labels.clone()  # the model's result may change before it is compared
            truth_file = self._truth_files.get(entry["file_name"])
            if truth_file is None:
                raise UserError(
                    f"{self._dataset_name} has no semantic ground truth (sem_seg_file_name) for "
                    f"{entry['file_name']}: evaluate a data set with semantic ground truth, or "
                    "set MODEL.MASK_FORMER.TEST.SEMANTIC_ON to False."
                )
            self._work.submit(self._compare, labels.numpy(), truth_file)

    def _compare(self, labels: np.ndarray, truth_file: str) -> None:
        """Count the pixels of one image; runs in a thread."""
        with PathManager.open(truth_file, "rb") as file:
            truth = np.asarray(Image.open(file))
        try:
            counts = confusion_matrix(truth, labels, len(self._class_names), self._ignore_label)
        except ValueError as error:
            raise UserError(f"Cannot compare the prediction with {truth_file}: {error}.") from error
        with self._lock:
            self._confusion += counts

    def evaluate(self) -> OrderedDict | None:
        self._work.results()
        comm.synchronize()
        parts = comm.gather(self._confusion)
        if not comm.is_main_process():
            return None
        confusion = np.sum(parts, axis=0)
        metrics = semantic_metrics(confusion, self._class_names)
        rows = [(name, metrics[f"IoU-{name}"]) for name in self._class_names]
        logger.info("Semantic results by class:\n%s", class_table(rows, ["IoU"]))
        logger.info(
            "Semantic results: %s",
            ", ".join(f"{k} {metrics[k]:.2f}" for k in ("mIoU", "fwIoU", "mACC", "pACC")),
        )
        return OrderedDict(sem_seg=metrics)
