"""Check a registered data set as training, or evaluation, would use it."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from eomt_d2.data.build import images_with_segments
from eomt_d2.data.checking.image import image_faults
from eomt_d2.data.datasets.coco_format import load_coco_instances
from eomt_d2.data.datasets.faults import Fault
from eomt_d2.data.datasets.loading import load_with_report
from eomt_d2.data.datasets.preparation import map_files
from eomt_d2.data.ground_truth import GROUND_TRUTH_KEYS, ground_truth_kind
from eomt_d2.data.mapper import MaskClassificationMapper
from eomt_d2.errors import UserError

__all__ = ["DatasetCheck", "check_dataset"]


class DatasetCheck(NamedTuple):
    """What came out for one data set.

    Attributes:
        name: of the data set.
        role: "TRAIN" or "TEST".
        num_images: images that could be loaded from its annotation files.
        num_checked: of these, how many files were read.
        faults: errors first, then by file.
    """

    name: str
    role: str
    num_images: int
    num_checked: int
    faults: list[Fault]


def check_dataset(
    cfg: CfgNode,
    name: str,
    role: str,
    tasks: tuple[str, ...] = (),
    *,
    num_workers: int | None = None,
    limit: int | None = None,
) -> DatasetCheck:
    """Load a data set and read all its images and ground truth, with the training's own readers.

    Args:
        cfg: of the training.
        name: a registered data set.
        role: "TRAIN": its ground truth is what INPUT.DATASET_MAPPER_NAME says. "TEST": it is that
            of ``tasks``.
        tasks: "panoptic", "instance", "semantic", those that it is evaluated on.
        num_workers: processes that read (None: one per core, up to 8).
        limit: read the files of so many images only.
    """
    faults: list[Fault] = []
    skip_empty = role == "TRAIN" and cfg.INPUT.EMPTY_SAMPLES == "redraw"
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = (name,)  # for the metadata
    mapper = MaskClassificationMapper(cfg, is_train=True)

    with _collected(name, faults.append):
        loaded = load_with_report(name, faults.append)
        if not isinstance(loaded, list):
            raise UserError(
                f"The data set {name} is a PyTorch Dataset, which cannot be checked; register a "
                "function that gives a list."
            )
        entries = loaded
        faults += _faults_of_whole(entries, name)
        if role == "TRAIN":
            requested = cfg.INPUT.DATASET_MAPPER_NAME
            trained = [ground_truth_kind(entry, requested) for entry in entries]
            if entries and skip_empty:
                with _collected(name, faults.append):
                    images_with_segments(entries, trained, (name,))
            kinds: list[tuple[str, ...]] = [(kind,) for kind in trained]
        else:
            entries = _with_instances(entries, name, tasks, faults.append)
            kinds = [
                tuple(task for task in tasks if GROUND_TRUTH_KEYS[task] in entry)
                for entry in entries
            ]
        work = list(zip(entries, kinds, strict=True))[:limit]
        read = partial(_faults_of_image, mapper=mapper, skip_empty=skip_empty)
        for found in map_files(read, work, name, num_workers):
            faults += found
        return DatasetCheck(name, role, len(entries), len(work), _sorted(faults))
    return DatasetCheck(name, role, 0, 0, _sorted(faults))


class _collected:
    """Takes a UserError of the block for a fault of the data set and goes on after the block."""

    def __init__(self, name: str, report: Callable[[Fault], None]):
        self._name = name
        self._report = report

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> bool:
        if isinstance(error, UserError):
            self._report(Fault("error", self._name, str(error)))
            return True
        return False


def _faults_of_image(
    work: tuple[dict, tuple[str, ...]], mapper: MaskClassificationMapper, skip_empty: bool
) -> list[Fault]:
    entry, kinds = work
    return image_faults(entry, mapper, kinds, skip_empty)


def _sorted(faults: list[Fault]) -> list[Fault]:
    return sorted(dict.fromkeys(faults))


def _faults_of_whole(entries: list[dict], name: str) -> Iterator[Fault]:
    """What no single entry shows."""
    if not entries:
        yield Fault("error", name, f"The data set {name} has no usable image; see above or below.")
    for key, severity in (("image_id", "error"), ("file_name", "warning")):
        counts = Counter(str(entry[key]) for entry in entries if key in entry)
        for value, count in counts.items():
            if count > 1:
                yield Fault(
                    severity,
                    value if key == "file_name" else name,
                    f"{count} images of {name} have the {key} {value}; keep one of them.",
                )


def _with_instances(
    entries: list[dict], name: str, tasks: tuple[str, ...], report: Callable[[Fault], None]
) -> list[dict]:
    """Panoptic data sets are evaluated as instances by another annotation file of theirs."""
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    if "instance" not in tasks or not json_file or not image_root:
        return entries
    if any("annotations" in entry for entry in entries):
        return entries
    with _collected(name, report):
        records = load_coco_instances(json_file, image_root, metadata.as_dict(), report)
        instances = {record["image_id"]: record["annotations"] for record in records}
        return [
            {**entry, "annotations": instances[entry["image_id"]]}
            if entry["image_id"] in instances
            else entry
            for entry in entries
        ]
    return entries
