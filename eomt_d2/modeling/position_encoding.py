"""Fixed encoding of the position in a map."""

import math

import torch
from torch import Tensor

__all__ = ["sine_position_encoding"]


def sine_position_encoding(shape: tuple[int, int], dim: int, device: torch.device) -> Tensor:
    """Sines and cosines of both coordinates of every pixel (DETR, arXiv 2005.12872, appendix A.4).

    Pixel i of n has the coordinate 2 pi (i + 1) / (n + 1e-6). Features 2k and 2k + 1 of an axis are
    sine and cosine of the coordinate over 10000^(4k / dim); y comes before x.

    Args:
        shape: (h, w) of the map.
        dim: number of features, a multiple of 4.
        device: where the result is made.

    Returns:
        (h * w, dim) float32, pixels in row-major order.

    Raises:
        ValueError: if ``dim`` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"A sine position encoding has a multiple of 4 features, not {dim}.")
    periods = 10000.0 ** (4 * torch.arange(dim // 4, device=device).float() / dim)
    features = []
    for n in shape:
        coordinates = 2 * math.pi * torch.arange(1, n + 1, device=device).float() / (n + 1e-6)
        angles = coordinates[:, None] / periods
        features.append(torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1))
    y, x = features
    height, width = shape
    grid = (y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1))
    return torch.cat(grid, dim=-1).flatten(0, 1)
