"""Deformable attention as a module: where queries look is predicted from the queries."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .ops import ms_deform_attn

__all__ = ["MSDeformAttn", "pixel_centers"]


def pixel_centers(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Centres of the pixels of several maps, one map after the other, in row-major order.

    Args:
        shapes: (h, w) of each map.
        device: where the result is made.

    Returns:
        (S, 2) float32, (x, y) in (0, 1), with S the sum of h * w.
    """
    centers = []
    for shape in shapes:
        y, x = ((torch.arange(n, device=device).float() + 0.5) / n for n in shape)
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centers.append(torch.stack((grid_x, grid_y), dim=-1).flatten(0, 1))
    return torch.cat(centers)


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, section 4.1).

    Each query looks at P points of each of L maps, at predicted offsets around its reference point,
    and weighs them by a predicted softmax over all L * P points. Fresh weights look at a ring: head
    k in direction k of H, point p at p pixels.

    Args:
        dim: channels C of queries, source and output.
        num_heads: H.
        num_levels: L.
        num_points: P per level.
        value_ratio: channels of the values over ``dim`` (ViT-Adapter uses 0.5).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int = 4,
        value_ratio: float = 1.0,
    ):
        super().__init__()
        value_dim = int(dim * value_ratio)
        if value_dim % num_heads:
            raise ValueError(
                f"Deformable attention with {value_dim} value channels cannot have {num_heads} "
                f"heads: their number must divide the channels."
            )
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, value_dim)
        self.output_proj = nn.Linear(value_dim, dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The ring of offsets, equal weights, Xavier-uniform projections without bias."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        ring = torch.stack((angles.cos(), angles.sin()), dim=-1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)
        bias = ring[:, None, None] * steps[:, None]  # (H, 1, P, 2)
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.copy_(bias.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        queries: Tensor,
        reference_points: Tensor,
        source: Tensor,
        shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Attend.

        Args:
            queries: (B, Q, C).
            reference_points: (Q, 2) float32, (x, y) relative to the extent of every map.
            source: (B, S, C), the maps to look at, one after the other.
            shapes: (h, w) of each of the L maps.

        Returns:
            (B, Q, C).
        """
        values = self.value_proj(source).unflatten(-1, (self.num_heads, -1))
        points = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(queries).unflatten(-1, (*points, 2))
        # Half precision would be too coarse for a location in a large map.
        offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
        # From pixels to the extent of each map; scalars need no copy to the device.
        offsets = torch.stack(
            [
                torch.stack((offset[..., 0] / width, offset[..., 1] / height), dim=-1)
                for offset, (height, width) in zip(offsets.unbind(3), shapes, strict=True)
            ],
            dim=3,
        )
        locations = reference_points[:, None, None, None] + offsets
        weights = self.attention_weights(queries).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        attended = ms_deform_attn(values, shapes, locations, weights.unflatten(-1, points[1:]))
        return self.output_proj(attended)
