"""Where a patch is: learned position embeddings and their resampling, rotary embeddings."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "apply_rotary",
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


def rotary_embedding(
    grid: tuple[int, int], head_dim: int, *, scale: float | Tensor = 1.0, device=None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of DINOv3's axial rotary embedding (arXiv 2508.10104, section 3.2).

    The centre of each patch has coordinates in [-1, 1] on both axes. Frequency k turns it by
    2 pi * coordinate / 100^(4k / head_dim), k = 0 ... head_dim / 4 - 1: first the angles of y,
    then those of x, and all of them twice.

    Args:
        grid: (h, w) patches.
        head_dim: channels per attention head, a multiple of 4.
        scale: factor on all coordinates (the training-time rescale of DINOv3).
        device: where the result is made.

    Returns:
        (cos, sin), each (h * w, head_dim) float32.
    """
    if head_dim % 4:
        raise ValueError(f"Rotary embeddings need a head dimension divisible by 4, not {head_dim}.")
    periods = 100.0 ** (4 * torch.arange(head_dim // 4, device=device).float() / head_dim)
    y, x = (2 * (torch.arange(n, device=device).float() + 0.5) / n - 1 for n in grid)
    coordinates = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).reshape(-1, 2) * scale
    angles = (2 * math.pi * coordinates[:, :, None] / periods).flatten(1).repeat(1, 2)
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the patch tokens of queries or keys, which are the last tokens; others stay.

    Args:
        x: (B, heads, T, head_dim) float.
        rotary: (cos, sin) of :func:`rotary_embedding`, each (N, head_dim) with N <= T.

    Returns:
        (B, heads, T, head_dim) in the dtype of ``x``; the rotation is computed in float32.
    """
    cos, sin = rotary
    others, patches = x.split((x.shape[-2] - cos.shape[0], cos.shape[0]), dim=-2)
    patches = patches.float()
    first, second = patches.chunk(2, dim=-1)
    rotated = patches * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((others, rotated.to(x.dtype)), dim=-2)
