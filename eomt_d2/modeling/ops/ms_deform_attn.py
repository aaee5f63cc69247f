"""Multi-scale deformable attention: sampling a few points of several maps per query.

Deformable DETR, arXiv 2010.04159, section 4.1 (equation 3).

Shapes: B images, L levels of (h_l, w_l) pixels, S = sum of h_l * w_l tokens, Q queries, H heads of
D channels, P points per level.
"""

import functools
import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ms_deform_attn", "ms_deform_attn_reference"]

logger = logging.getLogger(__name__)


def ms_deform_attn(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sums of values sampled bilinearly, zeros outside, ``align_corners=False``.

    On CUDA the kernels of :mod:`.ms_deform_attn_triton` do it where Triton can be imported; where
    it cannot, in float64 and on any other device it is :func:`ms_deform_attn_reference`. Both
    accumulate half precision in float32.

    Args:
        value: (B, S, H, D) float, the levels one after the other, each in row-major order.
        spatial_shapes: (h, w) of each level.
        locations: (B, Q, H, L, P, 2) float, (x, y) relative to the extent of the map: (0, 0) is
            the outer corner of the first pixel, (1, 1) that of the last. In half precision a
            location is off by a part of a pixel: give float32.
        weights: (B, Q, H, L, P) float.

    Returns:
        (B, Q, H * D) in the dtype of ``value``; differentiable with respect to all three tensors.

    Raises:
        ValueError: if the tensors do not fit each other.
    """
    _check_shapes(value, spatial_shapes, locations, weights)
    if value.is_cuda and value.dtype != torch.float64 and _triton_is_there():
        flat = [side for shape in spatial_shapes for side in shape]
        return torch.ops.eomt_d2.ms_deform_attn(value, flat, locations, weights)
    return ms_deform_attn_reference(value, spatial_shapes, locations, weights)


def ms_deform_attn_reference(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """:func:`ms_deform_attn` in plain PyTorch, for any device and dtype."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    batch, _, heads, _ = value.shape
    sizes = [height * width for height, width in spatial_shapes]
    out = 0
    for level, tokens in enumerate(value.to(dtype).split(sizes, dim=1)):
        # Heads join the batch: each has points of its own.
        maps = tokens.flatten(2).transpose(1, 2).reshape(batch * heads, -1, *spatial_shapes[level])
        grid = 2 * locations[:, :, :, level].to(dtype).transpose(1, 2).flatten(0, 1) - 1
        sampled = F.grid_sample(maps, grid, align_corners=False)  # (B * H, D, Q, P)
        weight = weights[:, :, :, level].to(dtype).transpose(1, 2).flatten(0, 1)
        out = out + (sampled * weight[:, None]).sum(-1)
    return out.reshape(batch, -1, out.shape[-1]).transpose(1, 2).to(value.dtype)


@torch.compiler.assume_constant_result
def _triton_is_there() -> bool:
    return _import_kernels()


@functools.cache
def _import_kernels() -> bool:
    """Import the kernels, which registers their operator, at the first use on a GPU."""
    try:
        from . import ms_deform_attn_triton  # noqa: F401
    except ImportError as error:
        logger.warning(
            "Triton cannot be imported (%s): deformable attention runs in plain PyTorch, which is "
            "slower.",
            error,
        )
        return False
    return True


def _check_shapes(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> None:
    tokens = sum(height * width for height, width in spatial_shapes)
    batch, _, heads, _ = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    if (
        value.shape[1] != tokens
        or locations.shape != (batch, queries, heads, len(spatial_shapes), points, 2)
        or weights.shape != locations.shape[:-1]
    ):
        raise ValueError(
            f"Values {tuple(value.shape)} of levels {list(spatial_shapes)}, locations "
            f"{tuple(locations.shape)} and weights {tuple(weights.shape)} do not fit each other."
        )
