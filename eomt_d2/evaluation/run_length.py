"""COCO's run-length encoding of many masks at once, without copying them off their device."""

import numpy as np
import torch
from pycocotools import mask as mask_util
from torch import Tensor

__all__ = ["encode_masks"]

# Pixels that are looked at in one go on a GPU: 64 Mi, for which about 256 MiB of memory are enough.
_PIXELS_AT_ONCE = 2**26


def encode_masks(masks: Tensor) -> list[dict]:
    """Encode masks as pycocotools does, to the same strings.

    The encoding (pycocotools' ``maskApi``) lists the lengths of runs of 0 and 1 down the columns,
    one column after the other, beginning with 0. Here the ends of the runs are found row by row, as
    masks lie in memory, and brought into that order afterwards; a mask has a million pixels but
    only some thousand ends. Of masks on a GPU only the ends travel to the CPU.

    Args:
        masks: (N, height, width) bool, or numbers of which all but 0 are inside; any device.

    Returns:
        N dicts with ``size`` [height, width] and ``counts``, the compressed string (str, so that
        it can be written as JSON).
    """
    height, width = masks.shape[1:]
    if masks.dtype != torch.bool:
        masks = masks != 0
    find = _run_ends_numpy if masks.device.type == "cpu" else _run_ends_torch
    encoded = []
    for part in masks.split(max(1, _PIXELS_AT_ONCE // max(1, height * width))):
        for ends in find(part):
            runs = np.diff(ends, prepend=0, append=height * width)
            raw = {"size": [height, width], "counts": runs.tolist()}
            rle = mask_util.frPyObjects(raw, height, width)
            encoded.append({"size": rle["size"], "counts": rle["counts"].decode()})
    return encoded


def _run_ends_numpy(masks: Tensor) -> list[np.ndarray]:
    """For each of (N, height, width) bool masks the sorted column-major positions at which the
    value differs from the one before (the first one from 0); int64."""
    height, width = masks.shape[1:]
    changes = np.empty((height, width), dtype=bool)
    ends = []
    # One mask at a time stays in the cache.
    for mask in masks.numpy():
        changes[0, :1] = mask[0, :1]
        np.logical_xor(mask[0, 1:], mask[-1, :-1], out=changes[0, 1:])
        np.logical_xor(mask[1:], mask[:-1], out=changes[1:])
        rows, columns = np.divmod(np.flatnonzero(changes), width)
        ends.append(np.sort(columns * height + rows))
    return ends


def _run_ends_torch(masks: Tensor) -> list[np.ndarray]:
    """The same as :func:`_run_ends_numpy` on any device."""
    number, height, width = masks.shape
    changes = torch.empty_like(masks)
    changes[:, 0, :1] = masks[:, 0, :1]
    torch.logical_xor(masks[:, 0, 1:], masks[:, -1, :-1], out=changes[:, 0, 1:])
    torch.logical_xor(masks[:, 1:], masks[:, :-1], out=changes[:, 1:])
    index, rows, columns = changes.nonzero(as_tuple=True)
    pixels = height * width
    positions = (index * pixels + columns * height + rows).sort().values.cpu().numpy()
    borders = np.searchsorted(positions, np.arange(number + 1) * pixels)
    return [positions[borders[i] : borders[i + 1]] - i * pixels for i in range(number)]
