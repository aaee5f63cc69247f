"""Panoptic, instance and semantic results from the logits of one image (MaskFormer, section 3.3).

All functions run on the logits' device and take float logits of any precision. Shapes: Q queries,
K classes, (h, w) the logits' grid, (height, width) the original image in pixels.
"""

from collections.abc import Collection

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .chunking import chunk_numel
from .mask_resize import MaskGeometry, finite, resize_rows, row_bands, source_rows
from .mask_tiles import MaskTiles

__all__ = [
    "MaskGeometry",
    "PostProcessing",
    "panoptic_inference",
    "instance_inference",
    "semantic_scores",
    "semantic_inference",
    "semantic_labels",
]


def panoptic_inference(
    mask_logits: Tensor,
    class_logits: Tensor,
    geometry: MaskGeometry,
    *,
    thing_ids: Collection[int],
    score_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
) -> tuple[Tensor, list[dict]]:
    """Give each pixel to the query with the largest score * sigmoid(mask logit).

    A query takes part if its most likely class is not "no object" and more likely than
    ``score_threshold``. Its segment is the pixels it wins and whose sigmoid is at least 0.5. The
    segment is dropped if it is empty, or if the query wins less than ``overlap_threshold`` times
    the number of pixels whose sigmoid is at least 0.5. Segments of one stuff class are merged.

    Args:
        mask_logits: (Q, h, w).
        class_logits: (Q, K + 1), the last class being "no object".
        geometry: the sizes that the masks pass through.
        thing_ids: contiguous ids of the thing classes.
        score_threshold: in [0, 1], exclusive.
        overlap_threshold: in [0, 1], inclusive.

    Returns:
        Detectron2's panoptic result: the (height, width) int32 map of segment ids, 0 being void,
        and for each segment, in the order of ids 1, 2, ..., a dict with ``id``, ``category_id``
        (contiguous), ``isthing`` (bool) and ``area`` (pixels).
    """
    num_classes = class_logits.shape[-1] - 1
    scores, labels = class_logits.float().softmax(-1).max(-1)
    keep = (labels != num_classes) & (scores > score_threshold)
    # Dropped queries cost nothing from here on.
    kept = keep.nonzero().squeeze(1)
    scores, labels = scores[kept], labels[kept]

    num_kept, device = len(labels), mask_logits.device
    owners = torch.full(geometry.output_size, num_kept, dtype=torch.int32, device=device)
    if num_kept == 0:
        return torch.zeros_like(owners), []

    # Pixels per query: of its own mask, won from the others, and both.
    counts = torch.zeros((num_kept, 3), dtype=torch.int64, device=device)
    tiles = MaskTiles(mask_logits, geometry, masks=kept)
    for tile, queries, logits in tiles.visible(_may_own_or_win(tiles, scores)):
        inside = logits >= 0
        # Not argmax, which takes 30 times as long on a CPU.
        winners = logits.sigmoid_().mul_(scores[queries, None, None]).max(0).indices
        in_own_mask = inside.gather(0, winners[None])[0]
        won = winners == torch.arange(len(queries), device=device)[:, None, None]
        pixels = torch.stack([x.sum((1, 2)) for x in (inside, won, won & inside)], dim=1)
        counts.index_add_(0, queries, pixels)
        queries = queries.int().index_select(0, winners.flatten()).view_as(winners)
        owners[tile.rows, tile.columns] = queries.where(in_own_mask, num_kept)

    segments, segment_of_stuff = [], {}
    segment_ids = [0] * (num_kept + 1)
    table = torch.cat((labels[:, None], counts), dim=1).tolist()
    for query, (label, num_own, num_won, num_both) in enumerate(table):
        if num_both == 0 or num_won / num_own < overlap_threshold:
            continue
        is_thing = label in thing_ids
        segment = segment_of_stuff.get(label)
        if segment is None:
            segment = dict(id=len(segments) + 1, category_id=label, isthing=is_thing, area=0)
            segments.append(segment)
            if not is_thing:
                segment_of_stuff[label] = segment
        segment["area"] += num_both
        segment_ids[query] = segment["id"]
    segment_ids = torch.tensor(segment_ids, dtype=torch.int32, device=device)
    # In place and piece by piece: indices are widened to 8 bytes.
    height, width = geometry.output_size
    for rows in row_bands(height, width, chunk_numel(device)):
        band = owners[rows]
        band.copy_(segment_ids.index_select(0, band.flatten()).view_as(band))
    return owners, segments


def _may_own_or_win(tiles: MaskTiles, scores: Tensor) -> Tensor:
    """(T, Q) bool: whether a query, given the scores (Q,), may have or win a pixel of a tile."""
    highest = tiles.highest()
    # Sigmoid and product round too; where all is tiny, nothing is excluded.
    reached = tiles.surely_reached(
        lambda logits, queries: logits.sigmoid() * scores[queries, None, None]
    )
    return (highest >= 0) | (highest.sigmoid() * scores * (1 + 1e-5) >= reached[:, None])


def instance_inference(
    mask_logits: Tensor,
    class_logits: Tensor,
    geometry: MaskGeometry,
    *,
    max_instances: int = 100,
    thing_ids: Collection[int] | None = None,
) -> Instances:
    """The best pairs of query and class, one instance each; a query may appear several times.

    The score is the class probability times the mean sigmoid of the mask's pixels
    (``sum(sigmoid * mask) / (sum(mask) + 1e-6)``); pairs are chosen by class probability alone.

    Args:
        mask_logits: (Q, h, w). A pixel belongs to the mask where the resized logit is > 0.
        class_logits: (Q, K + 1), the last class being "no object".
        geometry: the sizes that the masks pass through.
        max_instances: pairs kept, at most Q * K.
        thing_ids: in panoptic models the contiguous ids of the thing classes. Other pairs are
            dropped, after the best have been chosen. None keeps all.

    Returns:
        Instances of N <= ``max_instances`` with ``pred_masks`` (N, height, width) bool,
        ``pred_boxes`` (the masks' own boxes, zero for empty masks), ``pred_classes`` (N,) int64
        and ``scores`` (N,) float32, by descending class probability.
    """
    num_queries, num_classes = class_logits.shape[0], class_logits.shape[1] - 1
    probabilities = class_logits.float().softmax(-1)[:, :-1].flatten()
    scores, pairs = probabilities.topk(min(max_instances, num_queries * num_classes))
    queries, labels = pairs // num_classes, pairs % num_classes
    if thing_ids is not None:
        is_thing = torch.zeros(num_classes, dtype=torch.bool)
        is_thing[list(thing_ids)] = True
        keep = is_thing.to(labels.device)[labels]
        scores, queries, labels = scores[keep], queries[keep], labels[keep]

    size, device = geometry.output_size, mask_logits.device
    tiles = MaskTiles(mask_logits, geometry, masks=queries)
    masks = torch.zeros((len(labels), *size), dtype=torch.bool, device=device)
    area = torch.zeros(len(labels), dtype=torch.int64, device=device)
    sigmoid_sum = torch.zeros(len(labels), device=device)
    # Rows and columns with a pixel of the mask.
    used_rows, used_columns = (
        torch.zeros((len(labels), side), dtype=torch.bool, device=device) for side in size
    )
    for tile, pairs, logits in tiles.visible(tiles.highest() > 0):
        inside = logits > 0
        area.index_add_(0, pairs, inside.sum((1, 2)))
        sigmoid_sum.index_add_(0, pairs, logits.sigmoid_().mul_(inside).sum((1, 2)))
        masks[:, tile.rows, tile.columns].index_copy_(0, pairs, inside)
        used_rows[pairs, tile.rows] |= inside.any(2)
        used_columns[pairs, tile.columns] |= inside.any(1)

    result = Instances(size)
    result.pred_masks = masks
    result.pred_boxes = _boxes(used_rows, used_columns)
    result.pred_classes = labels
    result.scores = scores * sigmoid_sum / (area + 1e-6)
    return result


def _boxes(rows: Tensor, columns: Tensor) -> Boxes:
    """Boxes of N masks from the rows (N, height) and columns (N, width), bool, that they use; zero
    for empty masks."""
    limits = []
    for used in (columns, rows):
        positions = torch.arange(used.shape[1], device=used.device)
        first = positions.where(used, used.shape[1]).amin(1)
        last = (positions + 1).where(used, 0).amax(1)
        limits.append((first.minimum(last), last))
    (x0, x1), (y0, y1) = limits
    return Boxes(torch.stack([x0, y0, x1, y1], dim=1).float())


def semantic_scores(mask_logits: Tensor, class_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """``sum over queries of softmax(class)[without no object] * sigmoid(mask)`` per pixel.

    The logits are resized to the network's input before the sigmoid; the scores are what is
    cropped, averaged over windows and resized to the original image later.

    Args:
        mask_logits: (Q, h, w).
        class_logits: (Q, K + 1), the last class being "no object".
        size: (H, W) of the network's input, or of the window, in pixels.

    Returns:
        (K, H, W) float32.
    """
    weights = class_logits.float().softmax(-1)[:, :-1].T
    height = mask_logits.shape[1]
    scores = weights.new_empty(len(weights), *size)
    with torch.autocast(scores.device.type, enabled=False):
        for rows in row_bands(size[0], len(mask_logits) * size[1], chunk_numel(scores.device)):
            source = source_rows(height, size[0], rows)
            logits = resize_rows(
                finite(mask_logits[:, source]),
                size,
                rows,
                source_height=height,
                source_start=source.start,
            )
            scores[:, rows] = (weights @ logits.sigmoid_().flatten(1)).unflatten(1, (-1, size[1]))
    return scores


def semantic_inference(scores: Tensor, output_size: tuple[int, int]) -> Tensor:
    """Class scores of the original image.

    Args:
        scores: (K, H, W) float32 of the image without padding, from :func:`semantic_scores`.
        output_size: (height, width).

    Returns:
        (K, height, width) float32.
    """
    return resize_rows(scores, output_size, slice(0, output_size[0]))


def semantic_labels(scores: Tensor, output_size: tuple[int, int]) -> Tensor:
    """The best class of each pixel, K times smaller than the scores and never holding them all.

    Args:
        scores: as for :func:`semantic_inference`.
        output_size: (height, width).

    Returns:
        (height, width) int64, equal to ``semantic_inference(...).argmax(0)`` but for pixels whose
        two best classes are equal to rounding.
    """
    size = tuple(scores.shape[1:])
    tiles = MaskTiles(scores, MaskGeometry(size, size, output_size))
    labels = torch.empty(output_size, dtype=torch.int64, device=scores.device)
    may_win = tiles.highest() >= tiles.surely_reached(lambda x, _: x)[:, None]
    for tile, classes, resized in tiles.visible(may_win):
        best = resized.max(0).indices
        labels[tile.rows, tile.columns] = classes[best]
    return labels


class PostProcessing:
    """The results that are switched on, from one image's logits.

    Args:
        panoptic_on, instance_on, semantic_on: results to make.
        semantic_output: "scores" or "labels".
        score_threshold, overlap_threshold: see :func:`panoptic_inference`.
        max_instances: see :func:`instance_inference`.
        thing_ids: contiguous ids of the thing classes in panoptic models, else None.

    Raises:
        ValueError: if ``semantic_output`` is unknown or panoptic results lack ``thing_ids``.
    """

    def __init__(
        self,
        *,
        panoptic_on: bool = False,
        instance_on: bool = False,
        semantic_on: bool = False,
        semantic_output: str = "scores",
        score_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
        max_instances: int = 100,
        thing_ids: Collection[int] | None = None,
    ) -> None:
        if semantic_output not in ("scores", "labels"):
            raise ValueError(f"semantic_output is {semantic_output!r}, not 'scores' or 'labels'")
        if panoptic_on and thing_ids is None:
            raise ValueError("panoptic results need thing_ids, the ids of the thing classes")
        self.panoptic_on = panoptic_on
        self.instance_on = instance_on
        self.semantic_on = semantic_on
        self.semantic_output = semantic_output
        self.score_threshold = score_threshold
        self.overlap_threshold = overlap_threshold
        self.max_instances = max_instances
        self.thing_ids = thing_ids

    def __call__(
        self, class_logits: Tensor, mask_logits: Tensor, geometry: MaskGeometry
    ) -> dict[str, object]:
        """Results of one image.

        Args:
            class_logits: (Q, K + 1).
            mask_logits: (Q, h, w).
            geometry: the sizes that the masks pass through.

        Returns:
            ``panoptic_seg``, ``instances``, ``sem_seg`` or ``sem_seg_labels``.
        """
        results = {}
        if self.panoptic_on:
            results["panoptic_seg"] = panoptic_inference(
                mask_logits,
                class_logits,
                geometry,
                thing_ids=self.thing_ids,
                score_threshold=self.score_threshold,
                overlap_threshold=self.overlap_threshold,
            )
        if self.instance_on:
            results["instances"] = instance_inference(
                mask_logits,
                class_logits,
                geometry,
                max_instances=self.max_instances,
                thing_ids=self.thing_ids,
            )
        if self.semantic_on:
            height, width = geometry.image_size
            scores = semantic_scores(mask_logits, class_logits, geometry.input_size)
            results |= self.semantic(scores[:, :height, :width], geometry.output_size)
        return results

    def semantic(self, scores: Tensor, output_size: tuple[int, int]) -> dict[str, Tensor]:
        """Semantic results from (K, H, W) scores, which window inference averages by itself."""
        if self.semantic_output == "labels":
            return {"sem_seg_labels": semantic_labels(scores, output_size)}
        return {"sem_seg": semantic_inference(scores, output_size)}
