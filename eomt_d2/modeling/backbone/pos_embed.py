"""Where a patch is: learned position embeddings and their resampling, rotary embeddings."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Rotary",
    "apply_rotary",
    "eva02_rotary_embedding",
    "resample_patch_embedding",
    "resample_position_embedding",
    "rotary_embedding",
]


def resample_position_embedding(
    pos_embed: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """Resample a learned position embedding to another patch grid.

    Bicubic with antialiasing in fp32, as DINOv2 with registers was trained to be resampled.

    Args:
        pos_embed: (1, h * w, C) float, patches in row-major order, no prefix tokens.
        old_grid: (h, w) of ``pos_embed``.
        new_grid: (h', w') wanted.

    Returns:
        (1, h' * w', C) in the dtype of ``pos_embed``; the same tensor if the grids are equal.
    """
    if tuple(old_grid) == tuple(new_grid):
        return pos_embed
    if pos_embed.shape[1] != old_grid[0] * old_grid[1]:
        raise ValueError(
            f"A position embedding of {pos_embed.shape[1]} patches does not have the grid "
            f"{old_grid[0]} x {old_grid[1]}."
        )
    channels = pos_embed.shape[-1]
    maps = pos_embed.float().reshape(1, *old_grid, channels).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=new_grid, mode="bicubic", align_corners=False, antialias=True)
    return maps.permute(0, 2, 3, 1).reshape(1, -1, channels).to(pos_embed.dtype)


def resample_patch_embedding(weight: Tensor, patch_size: int) -> Tensor:
    """Resize the kernel of a patch embedding so that it embeds resized patches alike.

    The pseudo-inverse resize of FlexiViT (arXiv 2212.08013, section 3.4): with B the matrix that
    resizes an old patch to the new size, the new kernel w' minimises the distance of <w', B x> to
    <w, x>, which gives w' = pinv(B^T) w. Growing a patch loses nothing, so there equality holds.

    Args:
        weight: (C, channels, p, p) float kernel of the patch embedding.
        patch_size: p', the wanted kernel size.

    Returns:
        (C, channels, p', p') in the dtype of ``weight``.
    """
    old_size = weight.shape[-1]
    if old_size == patch_size:
        return weight
    # Each column of the resize matrix is the resized image of one unit pixel.
    basis = torch.eye(old_size**2, device=weight.device).reshape(-1, 1, old_size, old_size)
    resize = F.interpolate(
        basis,
        size=(patch_size, patch_size),
        mode="bicubic",
        align_corners=False,
        antialias=True,
    ).reshape(old_size**2, patch_size**2)
    kernels = weight.double().flatten(2) @ torch.linalg.pinv(resize.double()).T
    return kernels.reshape(*weight.shape[:2], patch_size, patch_size).to(weight.dtype)


class Rotary(NamedTuple):
    """By which angles the N patches of a grid turn the channels of their queries and keys.

    Attributes:
        cos: (N, head_dim) float32.
        sin: (N, head_dim) float32.
        interleaved: which two channels are turned together: False pairs channel i with channel
            i + head_dim / 2, True channel 2i with channel 2i + 1.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool = False


def rotary_embedding(
    grid: tuple[int, int], head_dim: int, *, scale: float | Tensor = 1.0, device=None
) -> Rotary:
    """DINOv3's axial rotary embedding (arXiv 2508.10104, section 3.2).

    The centre of each patch has coordinates in [-1, 1] on both axes. Frequency k turns it by
    2 pi * coordinate / 100^(4k / head_dim), k = 0 ... head_dim / 4 - 1: first the angles of y,
    then those of x, and all of them twice.

    Args:
        grid: (h, w) patches.
        head_dim: channels per attention head, a multiple of 4.
        scale: factor on all coordinates (the training-time rescale of DINOv3).
        device: where the result is made.

    Returns:
        The rotation of each patch, in row-major order.
    """
    y, x = (2 * (torch.arange(n, device=device).float() + 0.5) / n - 1 for n in grid)
    angles = _axial_angles(2 * math.pi * scale * y, 2 * math.pi * scale * x, 100.0, head_dim)
    angles = angles.repeat(1, 2)
    return Rotary(angles.cos(), angles.sin())


def eva02_rotary_embedding(
    grid: tuple[int, int], head_dim: int, *, scale: float | Tensor = 1.0, device=None
) -> Rotary:
    """EVA-02's axial rotary embedding (arXiv 2303.11331, section 2.1).

    Coordinates are those of its 16 x 16 patches in pre-training: patch i of n on an axis is at
    16 i / n, on any grid. Frequency k turns by coordinate / 10000^(4k / head_dim), k = 0 ...
    head_dim / 4 - 1: first the angles of y, then those of x, each for two adjacent channels.

    Args:
        grid: (h, w) patches.
        head_dim: channels per attention head, a multiple of 4.
        scale: factor on all coordinates.
        device: where the result is made.

    Returns:
        The rotation of each patch, in row-major order.
    """
    y, x = (torch.arange(n, device=device).float() * 16 / n for n in grid)
    angles = _axial_angles(scale * y, scale * x, 10000.0, head_dim).repeat_interleave(2, dim=1)
    return Rotary(angles.cos(), angles.sin(), interleaved=True)


def _axial_angles(y: Tensor, x: Tensor, base: float, head_dim: int) -> Tensor:
    """(h * w, head_dim / 2): y / base^(4k / head_dim) for each k, then x / base^(4k / head_dim)."""
    if head_dim % 4:
        raise ValueError(f"Rotary embeddings need a head dimension divisible by 4, not {head_dim}.")
    periods = base ** (4 * torch.arange(head_dim // 4, device=y.device).float() / head_dim)
    coordinates = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).reshape(-1, 2, 1)
    return (coordinates / periods).flatten(1)


def apply_rotary(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate the patch tokens of queries or keys, which are the last tokens; others stay.

    Args:
        x: (B, heads, T, head_dim) float.
        rotary: of N patches, N <= T.

    Returns:
        (B, heads, T, head_dim) in the dtype of ``x``; the rotation is computed in float32.
    """
    cos, sin, interleaved = rotary
    others, patches = x.split((x.shape[-2] - cos.shape[0], cos.shape[0]), dim=-2)
    patches = patches.float()
    if interleaved:
        first, second = patches.unflatten(-1, (-1, 2)).unbind(-1)
        quarter_turn = torch.stack((-second, first), dim=-1).flatten(-2)
    else:
        first, second = patches.chunk(2, dim=-1)
        quarter_turn = torch.cat((-second, first), dim=-1)
    rotated = patches * cos + quarter_turn * sin
    return torch.cat((others, rotated.to(x.dtype)), dim=-2)
