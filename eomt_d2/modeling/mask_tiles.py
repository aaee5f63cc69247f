"""Mask logits at the size of the original image, tile by tile, and only those that matter there.

Resized logits lie between the smallest and the largest of the logits they are made from. So the
network's small maps tell which masks can be seen in which part of the image, and most masks are
seen in a few parts only; the others need not be resized there.

Whatever is as large as many masks is made in pieces of :func:`chunk_numel` numbers, so that the
memory depends neither on the number of masks nor, but for a number per tile and mask, on the image.

Shapes: Q masks, n those in use, (h, w) their grid, T tiles.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunking import chunk_numel
from .mask_resize import MaskGeometry, finite, row_bands, source_rows

__all__ = ["MaskTiles", "Tile"]

# What rounding may add to a resized number, relative to the largest it is made from; generous.
SLACK = 1e-5


class Tile(NamedTuple):
    """A rectangle of the original image.

    Attributes:
        rows, columns: in pixels of the original image.
        source_rows, source_columns: the part of the (h, w) grid that its logits are made from.
    """

    rows: slice
    columns: slice
    source_rows: slice
    source_columns: slice


class MaskTiles:
    """Both resizes of :class:`MaskGeometry` in one step, for a tile of the image at a time.

    A bilinear resize is a linear map of each axis, so both are one matrix per axis, and a tile's
    logits are two small matrix products. They equal the two resizes one after the other to
    rounding.

    Args:
        mask_logits: (Q, h, w) float of any precision.
        geometry: the sizes that the masks pass through.
        side: of a tile in pixels; by default 128 on a CPU, whose cache should hold a tile, and as
            much as :func:`chunk_numel` allows on other devices.
        masks: (n,) int64, indices of the masks to use, which are not copied; by default all, and
            n is Q. What follows counts them from 0 to n - 1.
    """

    def __init__(
        self,
        mask_logits: Tensor,
        geometry: MaskGeometry,
        side: int | None = None,
        masks: Tensor | None = None,
    ):
        self._logits, self._masks = mask_logits.detach(), masks
        self._num_masks = len(mask_logits if masks is None else masks)
        device, grid = mask_logits.device, tuple(mask_logits.shape[1:])
        if side is None:
            side = 128
            if device.type != "cpu":
                side = max(side, math.isqrt(chunk_numel(device) // max(1, self._num_masks)))
        sizes = list(zip(grid, *geometry, strict=True))
        self._vertical, self._horizontal = (_resize_matrix(*axis, device) for axis in sizes)
        rows, columns = (_spans(*axis, side) for axis in sizes)
        self._source_rows, self._source_columns = (
            [cells for _, cells in x] for x in (rows, columns)
        )
        self.tiles = [Tile(r[0], c[0], r[1], c[1]) for r in rows for c in columns]

    def highest(self) -> Tensor:
        """(T, n) float32: what no resized logit of a mask exceeds in a tile."""
        num_rows, num_columns = len(self._source_rows), len(self._source_columns)
        highest = torch.empty(
            (num_rows, num_columns, self._num_masks), dtype=torch.float32, device=self._device
        )
        # A piece holds the logits of one row of tiles, and then the largest of all rows of tiles.
        height = max(num_rows, *(rows.stop - rows.start for rows in self._source_rows))
        for part in self._pieces(height):
            strips = [self._strip(part, rows).amax(1) for rows in self._source_rows]
            strips = finite(torch.stack(strips))
            for i, columns in enumerate(self._source_columns):
                highest[:, i, part] = strips[..., columns].amax(2)
        highest = highest.flatten(0, 1)
        return highest.add_(highest.abs(), alpha=SLACK)

    def surely_reached(self, value: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """What the best of the masks reaches at every pixel of a tile.

        Args:
            value: what masks are compared by; logits (m, ...) of the masks of a slice, and that
                slice, to the same shape, of each mask a function that never falls.

        Returns:
            (T,) float32, at most the largest value of each pixel.
        """
        # A pixel is made from at most three neighbouring cells of each axis, as two neighbouring
        # pixels of the padded input are at most one cell apart.
        reached = []
        for rows in self._source_rows:
            rows, best = slice(max(0, rows.start - 1), rows.stop + 1), None
            for part in self._pieces(rows.stop - rows.start):
                lowest = finite(self._strip(part, rows))
                for axis in (1, 2):
                    lowest = _smallest_of_three(lowest, axis)
                values = value(lowest.sub_(lowest.abs(), alpha=SLACK), part).amax(0)
                best = values if best is None else torch.maximum(best, values)
            reached += [best[:, columns].amin() for columns in self._source_columns]
        return torch.stack(reached)

    @property
    def _device(self) -> torch.device:
        return self._logits.device

    def _pieces(self, height: int) -> list[slice]:
        """Masks to take together if ``height`` rows of each are needed at a time."""
        numel = height * self._logits.shape[2]
        return row_bands(self._num_masks, numel, chunk_numel(self._device))

    def _strip(self, part: slice, rows: slice) -> Tensor:
        """(m, rows, w) of some masks, of the logits' own precision."""
        strip = self._logits[:, rows]
        return strip[part] if self._masks is None else strip.index_select(0, self._masks[part])

    def visible(self, visible: Tensor) -> Iterator[tuple[Tile, Tensor, Tensor]]:
        """The masks of each tile at the size of the original image.

        Args:
            visible: (T, n) bool; which masks matter in which tile. The host waits for it once.

        Yields:
            For each tile with such masks the tile, their m indices in ascending order, (m,) int64,
            and their logits, (m, rows, columns) float32. A tile in which very many masks can be
            seen comes in bands of rows.
        """
        counts = visible.sum(1).tolist()
        # Sorted on the device, so that no tile sends its list of indices there.
        order = visible.byte().sort(dim=1, descending=True, stable=True).indices
        for tile, count, masks in zip(self.tiles, counts, order, strict=True):
            if count:
                height, width = (x.stop - x.start for x in (tile.rows, tile.columns))
                for band in row_bands(height, count * width, chunk_numel(self._device)):
                    first = tile.rows.start
                    part = tile._replace(rows=slice(first + band.start, first + band.stop))
                    yield part, masks[:count], self._resize(part, masks[:count])

    def _resize(self, tile: Tile, masks: Tensor) -> Tensor:
        masks = masks if self._masks is None else self._masks.index_select(0, masks)
        logits = self._logits[:, tile.source_rows, tile.source_columns].index_select(0, masks)
        logits = finite(logits)
        vertical = self._vertical[tile.rows, tile.source_rows]
        horizontal = self._horizontal[tile.columns, tile.source_columns]
        with torch.autocast(logits.device.type, enabled=False):
            return vertical @ logits @ horizontal.T


def _smallest_of_three(x: Tensor, axis: int) -> Tensor:
    """Each number, or the smaller of its two neighbours along an axis if that is smaller."""
    inner = x.shape[axis] - 1
    smallest, lower, upper = x.clone(), x.narrow(axis, 0, inner), x.narrow(axis, 1, inner)
    for part, other in (
        (smallest.narrow(axis, 1, inner), lower),
        (smallest.narrow(axis, 0, inner), upper),
    ):
        torch.minimum(part, other, out=part)
    return smallest


def _resize_matrix(grid: int, padded: int, image: int, output: int, device) -> Tensor:
    """(output, grid) float32: along one axis the resize from ``grid`` to ``padded``, the crop to
    ``image`` and the resize to ``output``. Each column is what becomes of one unit cell."""
    resize = partial(F.interpolate, mode="linear", align_corners=False)
    cells = torch.eye(grid, device=device)[None]
    return resize(resize(cells, size=padded)[..., :image], size=output)[0].T.contiguous()


def _spans(grid: int, padded: int, image: int, output: int, side: int) -> list[tuple[slice, slice]]:
    """Along one axis the tiles' pixels, and for each the cells of the grid that it is made from."""
    spans = []
    for start in range(0, output, side):
        pixels = slice(start, min(start + side, output))
        cells = source_rows(grid, padded, source_rows(image, output, pixels))
        # One more on each side: two ways to round a position may differ by a cell of weight ~0.
        spans.append((pixels, slice(max(0, cells.start - 1), min(grid, cells.stop + 1))))
    return spans
