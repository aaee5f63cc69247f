"""Masks seen at points: bilinear sampling and the choice of uncertain points.

Points are (x, y) in [0, 1]^2, relative to the extent of the map: (0, 0) is the outer corner of the
first pixel, (1, 1) that of the last. The maps are zero outside.

Shapes: N masks of (h, w) or (H, W) pixels, C channels, P points.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunking import chunk_numel

__all__ = ["sample_binary_masks", "sample_many_channels", "sample_points", "uncertain_points"]


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Sample maps bilinearly, zeros outside, ``align_corners=False``.

    Args:
        maps: (N, C, h, w) float.
        points: (N, P, 2) of the same dtype, (x, y) in [0, 1].

    Returns:
        (N, C, P), differentiable with respect to ``maps``.
    """
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(maps, grid, align_corners=False)[..., 0]


def sample_many_channels(maps: Tensor, points: Tensor) -> Tensor:
    """What :func:`sample_points` gives, to rounding, for maps of hundreds of channels.

    A point becomes a weighted sum of four rows of the table (pixels, channels), which are read one
    after the other; ``grid_sample`` jumps from channel to channel. On a CPU, with 200 channels,
    this takes a tenth of the time.

    Args:
        maps: (N, C, h, w) float, finite where a result is expected to be. Any memory layout;
            channels-last saves a copy.
        points: (N, P, 2) float32, (x, y) in [0, 1].

    Returns:
        (N, C, P) float32, in memory (N, P, C).
    """
    num_maps, channels, height, width = maps.shape
    corners, weights = _corners(points, height, width)
    corners = corners + (height * width) * torch.arange(num_maps, device=maps.device)[:, None, None]
    table = maps.float().permute(0, 2, 3, 1).contiguous()
    sampled = F.embedding_bag(
        corners.flatten(0, 1),
        table.view(-1, channels),
        per_sample_weights=weights.flatten(0, 1),
        mode="sum",
    )
    return sampled.unflatten(0, points.shape[:2]).mT


def _corners(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each point, and how much each counts.

    Args:
        points: (..., 2) float32, (x, y) in [0, 1].
        height, width: of the map.

    Returns:
        Row-major indices (..., 4) int64 and weights (..., 4) float32. A corner outside of the map
        weighs nothing; its index is that of the nearest pixel inside.
    """
    last = torch.tensor([width - 1, height - 1], device=points.device)
    # Pixel centres lie at whole numbers.
    positions = points * (last + 1) - 0.5
    low = positions.floor()
    share = positions - low
    low = low.long()
    # (..., [low, high], [x, y])
    ends = torch.stack([low, low + 1], dim=-2)
    shares = torch.stack([1 - share, share], dim=-2) * ((ends >= 0) & (ends <= last))
    ends = torch.minimum(ends.clamp(min=0), last)
    indices = ends[..., :, None, 1] * width + ends[..., None, :, 0]
    weights = shares[..., :, None, 1] * shares[..., None, :, 0]
    return indices.flatten(-2), weights.flatten(-2)


def sample_binary_masks(masks: Tensor, points: Tensor, indices: Tensor | None = None) -> Tensor:
    """Sample boolean masks as :func:`sample_points` samples maps.

    Only a few masks at a time exist as floats; those of a whole batch can be GBs. Measured against
    gathering the four pixels around each point: as fast, and with less memory.

    Args:
        masks: (M, H, W) bool.
        points: (N, P, 2) float32.
        indices: (N,) int64, the mask that each row of points belongs to. Default: row i belongs
            to mask i, N = M.

    Returns:
        (N, P) float32.
    """
    chunk = max(1, chunk_numel(masks.device) // (masks.shape[-2] * masks.shape[-1]))
    if indices is not None:
        selections = (masks[chunk_indices] for chunk_indices in indices.split(chunk))
    else:
        selections = masks.split(chunk)
    return torch.cat(
        [
            sample_points(selected[:, None].float(), chunk_points)[:, 0]
            for selected, chunk_points in zip(selections, points.split(chunk), strict=True)
        ]
    )


def uncertain_points(
    mask_logits: Tensor, num_points: int, oversample_ratio: float, importance_sample_ratio: float
) -> Tensor:
    """Draw the points at which the mask losses are computed (PointRend, section 3.1, training).

    Of ``int(oversample_ratio * P)`` uniform candidates the ``int(importance_sample_ratio * P)``
    with the smallest \\|logit\\| are kept; fresh uniform points complete them to P.

    Random numbers: ``torch.rand(N, int(oversample_ratio * P), 2)`` for the candidates, then
    ``torch.rand(N, P - int(importance_sample_ratio * P), 2)`` for the fresh points.

    Args:
        mask_logits: (N, h, w) float32. N may be 0.
        num_points: P.
        oversample_ratio: candidates per point, at least 1.
        importance_sample_ratio: share of the points chosen by uncertainty, in [0, 1].

    Returns:
        (N, P, 2) float32, without gradient.
    """
    num_masks, device = len(mask_logits), mask_logits.device
    num_uncertain = int(importance_sample_ratio * num_points)
    with torch.no_grad():
        candidates = torch.rand(num_masks, int(oversample_ratio * num_points), 2, device=device)
        logits = sample_points(mask_logits[:, None], candidates)[:, 0]
        chosen = logits.abs().topk(num_uncertain, dim=1, largest=False, sorted=False).indices
        uncertain = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        fresh = torch.rand(num_masks, num_points - num_uncertain, 2, device=device)
        return torch.cat([uncertain, fresh], dim=1)
