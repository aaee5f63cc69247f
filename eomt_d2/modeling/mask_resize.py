"""Maps on their way from the network's stride to the original image, in bands of rows.

The way has two bilinear resizes and both belong to the published numbers: to the size of the
network's padded input, where the padding is cropped, and from there to the original size. A full
result, (Q, height, width) float, can be tens of GB; a band of its rows is as small as one likes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MaskGeometry", "row_bands", "source_rows", "resize_rows", "finite"]


class MaskGeometry(NamedTuple):
    """The sizes, (height, width) in pixels, which the logits of one image pass through.

    Attributes:
        input_size: the network's padded input.
        image_size: the part of it, at its top left, that is image.
        output_size: the original image, the size of the results.
    """

    input_size: tuple[int, int]
    image_size: tuple[int, int]
    output_size: tuple[int, int]


def row_bands(height: int, numel_per_row: float, max_numel: int) -> list[slice]:
    """Split ``height`` rows into bands of at most ``max_numel`` numbers and at least one row."""
    rows = max(1, int(max_numel / max(1, numel_per_row)))
    return [slice(start, min(start + rows, height)) for start in range(0, height, rows)]


def resize_rows(
    maps: Tensor,
    size: tuple[int, int],
    rows: slice,
    *,
    source_height: int | None = None,
    source_start: int = 0,
) -> Tensor:
    """Some rows of the maps resized to ``size``, without making the others.

    Equal, up to rounding, to those rows of ``F.interpolate(mode="bilinear", align_corners=False,
    antialias=False)``; a row is the same whatever band it is made in.

    Args:
        maps: (N, h, w) float32.
        size: (H, W) of the whole result.
        rows: start and stop of the rows to make.
        source_height, source_start: ``maps`` may be cut to the rows that :func:`source_rows`
            asks for; the height before the cut and the first row that is left.

    Returns:
        (N, rows, W) float32.
    """
    source_height = maps.shape[1] if source_height is None else source_height
    if source_height == size[0]:
        band = maps[:, rows.start - source_start : rows.stop - source_start]
    else:
        upper, lower, weight = _vertical_taps(source_height, size[0], rows)
        upper, lower = ((taps - source_start).to(maps.device) for taps in (upper, lower))
        weight = weight[:, None].to(maps.device)
        band = torch.lerp(maps.index_select(1, upper), maps.index_select(1, lower), weight)
    if maps.shape[2] == size[1]:
        return band
    size = (rows.stop - rows.start, size[1])
    # Maps as the batch: without any, a batch may be empty while channels may not.
    return F.interpolate(band[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def source_rows(source_height: int, height: int, rows: slice) -> slice:
    """The source rows that make ``rows`` of a map resized from ``source_height`` to ``height``."""
    if source_height == height:
        return rows
    upper, lower, _ = _vertical_taps(source_height, height, rows)
    return slice(int(upper[0]), int(lower[-1]) + 1)


def finite(mask_logits: Tensor) -> Tensor:
    """Mask logits as float32 that can be interpolated: half precision overflows to inf, and between
    two infinities lies NaN."""
    return mask_logits.float().clamp(-1e30, 1e30)


def _vertical_taps(source_height: int, height: int, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Upper and lower source row of each row, and the weight of the lower one; on the CPU."""
    centers = torch.arange(rows.start, rows.stop, dtype=torch.float32) + 0.5
    source = (centers * (source_height / height) - 0.5).clamp(min=0)
    upper = source.floor().long()
    lower = (upper + 1).clamp(max=source_height - 1)
    return upper, lower, source - upper
