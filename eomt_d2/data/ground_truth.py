"""Ground truth of one image as few integer maps instead of one full mask per segment.

Panoptic and semantic segments do not overlap, so one map says everything. Instances may overlap
(each is the union of its own polygons): they are packed into as few maps ("layers") as a greedy
search finds, of which almost every image needs one or two. Augmenting the layers gives exactly
what augmenting every mask by itself would give, at a fraction of the cost.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pycocotools.mask as mask_util

from eomt_d2.data.image_reading import read_id_png, read_label_map
from eomt_d2.data.segmentation import encoded_mask
from eomt_d2.errors import UserError

__all__ = [
    "GROUND_TRUTH_KEYS",
    "GroundTruth",
    "ground_truth_kind",
    "has_segments",
    "instance_ground_truth",
    "panoptic_ground_truth",
    "semantic_ground_truth",
]

# Kind of ground truth -> the key of Detectron2's dataset dicts that holds it, richest first.
GROUND_TRUTH_KEYS = {
    "panoptic": "pan_seg_file_name",
    "instance": "annotations",
    "semantic": "sem_seg_file_name",
}
# Of a panoptic PNG: three bytes a pixel.
NUM_SEGMENT_IDS = 1 << 24


class GroundTruth(NamedTuple):
    """The M segments of one image, without crowds.

    Attributes:
        classes: (M,) int64 contiguous class indices.
        layers: maps (H, W) of unsigned integers. Segment m is where its layer has the value
            m + 1; no other layer has that value. 0, and values above M, are in no segment.
    """

    classes: np.ndarray
    layers: tuple[np.ndarray, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.layers[0].shape

    def nonempty(self) -> np.ndarray:
        """The indices, ascending, of the segments that have at least one pixel."""
        segments = np.concatenate([self._segments_in(layer) for layer in self.layers])
        return np.sort(segments)

    def masks(self, segments: Sequence[int], height: int, width: int) -> np.ndarray:
        """Masks of some segments on a canvas that extends the layers right and bottom.

        Args:
            segments: n segment indices in [0, M).
            height, width: size of the canvas in pixels, at least that of the layers.

        Returns:
            (n, height, width) bool.
        """
        segments = np.asarray(segments, np.int64)
        masks = np.zeros((len(segments), height, width), bool)
        rows, columns = self.size
        content = masks[:, :rows, :columns]
        first, *others = self.layers
        # Values of the layer's own type: comparing with wider ones would widen every pixel.
        values = (segments + 1).astype(first.dtype)
        np.equal(first, values[:, None, None], out=content)
        for layer in others:
            for position in np.flatnonzero(np.isin(segments, self._segments_in(layer))):
                np.equal(layer, values[position], out=content[position])
        return masks

    def label_map(self, ignore_value: int) -> np.ndarray:
        """The class of every pixel, (H, W) int64, where there is a single layer; ``ignore_value``
        outside of all segments."""
        (layer,) = self.layers
        label_of_index = np.full(np.iinfo(layer.dtype).max + 1, ignore_value)
        label_of_index[1 : len(self.classes) + 1] = self.classes
        return label_of_index[layer]

    def _segments_in(self, layer: np.ndarray) -> np.ndarray:
        values = np.unique(layer.reshape(-1)[run_starts(layer)]).astype(np.int64)
        return values[(values > 0) & (values <= len(self.classes))] - 1


def run_starts(id_map: np.ndarray) -> np.ndarray:
    """Where, in row-major order, a value differs from the one before it; 0 is the first.

    Maps of segments change in few places, so what is looked up for every run instead of every
    pixel costs next to nothing.
    """
    flat = id_map.reshape(-1)
    return np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))


def ground_truth_kind(dataset_dict: dict, requested: str) -> str:
    """Which ground truth of an image to train on.

    Args:
        dataset_dict: an image in Detectron2's dataset format.
        requested: ``INPUT.DATASET_MAPPER_NAME``: "panoptic", "instance", "semantic", or "auto"
            for the first of these three that the image has.

    Raises:
        UserError: ``requested`` is none of these, or the image has no such ground truth.
    """
    if requested != "auto" and requested not in GROUND_TRUTH_KEYS:
        raise UserError(
            f'INPUT.DATASET_MAPPER_NAME is "{requested}"; it has to be one of auto, '
            f"{', '.join(GROUND_TRUTH_KEYS)}."
        )
    kinds = GROUND_TRUTH_KEYS if requested == "auto" else (requested,)
    for kind in kinds:
        if GROUND_TRUTH_KEYS[kind] in dataset_dict:
            return kind
    name = dataset_dict.get("file_name", "an image")
    if requested == "panoptic" and {"annotations", "sem_seg_file_name"} <= dataset_dict.keys():
        raise UserError(
            f"{name} comes from a data set of Detectron2's separated panoptic form, whose things "
            "and stuff are numbered apart; use the standard form (the same name without "
            '"_separated").'
        )
    raise UserError(
        f"{name} has no {'' if requested == 'auto' else requested + ' '}ground truth to train on "
        f"(its entry lacks {' and '.join(GROUND_TRUTH_KEYS[kind] for kind in kinds)}); set "
        "INPUT.DATASET_MAPPER_NAME to what the data set has, or DATASETS.TRAIN to another one."
    )


def has_segments(dataset_dict: dict, kind: str) -> bool:
    """Whether an image lists any segment that is not a crowd.

    Semantic ground truth lists nothing: only reading its file can tell, so the answer is True.
    """
    if kind == "semantic":
        return True
    listed = dataset_dict["segments_info" if kind == "panoptic" else "annotations"]
    return any(not segment.get("iscrowd", 0) for segment in listed)


def panoptic_ground_truth(dataset_dict: dict) -> GroundTruth:
    """Read a COCO panoptic PNG with its ``segments_info`` (contiguous ``category_id``).

    Crowds and void (id 0) are in no segment. Segments keep the order of ``segments_info``.

    Raises:
        UserError: the PNG is unreadable or has an id that ``segments_info`` does not list, or that
            lists an id twice or one that no PNG can have.
    """
    file_name = dataset_dict["pan_seg_file_name"]
    ids = read_id_png(file_name)
    listed = dataset_dict["segments_info"]
    _check_segment_ids(listed, file_name)
    segments = [segment for segment in listed if not segment.get("iscrowd", 0)]
    crowds = [segment for segment in listed if segment.get("iscrowd", 0)]
    starts = run_starts(ids)
    run_ids = ids.reshape(-1)[starts]
    index_of_id = {0: 0}
    index_of_id |= {segment["id"]: index for index, segment in enumerate(segments, start=1)}
    index_of_id |= {crowd["id"]: len(segments) + 1 for crowd in crowds}
    known = np.array(sorted(index_of_id))
    indices = np.array([index_of_id[i] for i in known.tolist()], _index_dtype(len(segments) + 1))
    positions = np.searchsorted(known, run_ids).clip(max=len(known) - 1)
    unlisted = known[positions] != run_ids
    if unlisted.any():
        raise UserError(
            f"{file_name} has a segment with id {run_ids[unlisted][0]} that is not in its "
            "segments_info; correct the annotation file."
        )
    lengths = np.diff(starts, append=ids.size)
    layer = np.repeat(indices[positions], lengths).reshape(ids.shape)
    classes = np.array([segment["category_id"] for segment in segments], np.int64)
    return GroundTruth(classes, (layer,))


def semantic_ground_truth(
    dataset_dict: dict, *, ignore_value: int, num_classes: int | None = None
) -> GroundTruth:
    """Read a label map; each class in it is one segment, in ascending order.

    Args:
        dataset_dict: an image in Detectron2's dataset format, with ``sem_seg_file_name``.
        ignore_value: the label of pixels that are in no segment.
        num_classes: if known, labels from there on are refused.

    Raises:
        UserError: the file is unreadable or has a label beyond the classes.
    """
    file_name = dataset_dict["sem_seg_file_name"]
    labels = read_label_map(file_name)
    present = np.flatnonzero(np.bincount(labels.reshape(-1)))
    present = present[present != ignore_value]
    if num_classes is not None and len(present) and present[-1] >= num_classes:
        raise UserError(
            f"{file_name} has the label {present[-1]}, but the data set has {num_classes} classes "
            f"(0 to {num_classes - 1}; {ignore_value} is ignored); prepare its labels so that "
            "they start from 0."
        )
    index_of_label = np.zeros(np.iinfo(labels.dtype).max + 1, _index_dtype(len(present)))
    index_of_label[present] = np.arange(1, len(present) + 1)
    return GroundTruth(present.astype(np.int64), (index_of_label.take(labels),))


def instance_ground_truth(dataset_dict: dict, height: int, width: int) -> GroundTruth:
    """Rasterise instance annotations (polygons or RLE), packing them into layers.

    The mask of an instance is the union of its polygons, rasterised by pycocotools, whatever
    other instances cover. Crowds are in no segment.

    Args:
        dataset_dict: an image in Detectron2's dataset format, with ``annotations``.
        height, width: size of the image in pixels.

    Raises:
        UserError: an annotation has no usable segmentation, or an RLE is of another size.
    """
    name = dataset_dict["file_name"]
    annotations = [item for item in dataset_dict["annotations"] if not item.get("iscrowd", 0)]
    dtype = _index_dtype(len(annotations))
    # pycocotools stores columns one after the other; so do these.
    layers = [np.zeros((width, height), dtype)]
    for index, annotation in enumerate(annotations, start=1):
        rle = encoded_mask(annotation.get("segmentation"), height, width, name)
        left, top, box_width, box_height = mask_util.toBbox(rle).astype(int)
        box = np.s_[left : left + box_width, top : top + box_height]
        mask = mask_util.decode(rle).T[box].view(bool)
        for layer in layers:
            if not np.logical_and(layer[box], mask).any():
                break
        else:
            layer = np.zeros((width, height), dtype)
            layers.append(layer)
        np.copyto(layer[box], index, where=mask)
    layers = [np.ascontiguousarray(layer.T) for layer in layers]
    classes = np.array([item["category_id"] for item in annotations], np.int64)
    return GroundTruth(classes, tuple(layers))


def _check_segment_ids(segments: Sequence[dict], file_name: str) -> None:
    ids = [segment["id"] for segment in segments]
    for segment_id in ids:
        # Of an id below 0, NumPy would make another one.
        if not isinstance(segment_id, int) or not 0 < segment_id < NUM_SEGMENT_IDS:
            raise UserError(
                f"The segments_info of {file_name} has the id {segment_id!r}; an id has to be a "
                f"whole number from 1 to {NUM_SEGMENT_IDS - 1}, the colour of its segment."
            )
    if len(set(ids)) < len(ids):
        twice = next(segment_id for segment_id in ids if ids.count(segment_id) > 1)
        raise UserError(
            f"The segments_info of {file_name} has the id {twice} twice; correct the annotation "
            "file."
        )


def _index_dtype(largest: int) -> np.dtype:
    return np.min_scalar_type(largest)
