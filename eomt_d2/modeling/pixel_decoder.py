"""From the backbone's maps to what the transformer decoder reads: maps of one width at several
strides as keys, and one fine map to compare queries with.

Shapes: B images, C channels of the decoder, L key maps ordered from coarse to fine, S pixels of
all of them together.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec
from torch import Tensor, nn

from .deformable_attention import MSDeformAttn, pixel_centers
from .position_encoding import sine_position_encoding

__all__ = ["MSDeformAttnPixelDecoder", "PixelProjection"]


class PixelProjection(nn.Module):
    """One 1x1 convolution per map and nothing else: no pixel decoder (EoMT, section 3.1, step 2).

    Args:
        input_shape: channels and strides of the backbone's maps by name.
        mask_feature: name of the map that queries are compared with.
        key_features: names of the maps that queries attend to.
        dim: C.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        mask_feature: str,
        key_features: Sequence[str],
        dim: int,
    ):
        super().__init__()
        self.mask_feature = mask_feature
        self.key_features = coarse_to_fine(input_shape, key_features)
        self.mask_features = nn.Conv2d(input_shape[mask_feature].channels, dim, 1)
        self.input_proj = nn.ModuleList(
            nn.Conv2d(input_shape[name].channels, dim, 1) for name in self.key_features
        )
        for convolution in (self.mask_features, *self.input_proj):
            weight_init.c2_xavier_fill(convolution)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The backbone's maps to the map of mask features (B, C, h, w) and the L key maps, each
        (B, C, h_l, w_l), from coarse to fine."""
        keys = [
            projection(features[name])
            for name, projection in zip(self.key_features, self.input_proj, strict=True)
        ]
        return self.mask_features(features[self.mask_feature]), keys


class EncoderLayer(nn.Module):
    """Deformable self-attention over all key maps, then a feed-forward network; post-norm."""

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int):
        super().__init__()
        self.self_attn = MSDeformAttn(dim, num_heads, num_levels, num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        reference_points: Tensor,
        shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Tokens (B, S, C) to the same; positions (S, C) are added to the queries only."""
        attended = self.self_attn(tokens + positions, reference_points, tokens, shapes)
        tokens = self.norm1(tokens + attended)
        return self.norm2(tokens + self.linear2(F.relu(self.linear1(tokens))))


class MSDeformAttnPixelDecoder(nn.Module):
    """The pixel decoder of Mask2Former (arXiv 2112.01527, section 3.2.1 and 4.1).

    A deformable encoder over the key maps; the finest of them is then upsampled and joined with
    the map of mask features as in a feature pyramid network. It runs in float32 under autocast, as
    published.

    Args:
        input_shape, mask_feature, key_features, dim: see :class:`PixelProjection`.
        num_layers: encoder layers, at least 1.
        num_heads: attention heads.
        num_points: points per head and level.
        ffn_dim: hidden width of the feed-forward networks.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        mask_feature: str,
        key_features: Sequence[str],
        dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        ffn_dim: int = 1024,
    ):
        super().__init__()
        self.dim = dim
        self.mask_feature = mask_feature
        self.key_features = coarse_to_fine(input_shape, key_features)
        num_levels = len(self.key_features)
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(input_shape[name].channels, dim, 1), nn.GroupNorm(32, dim))
            for name in self.key_features
        )
        self.level_embed = nn.Parameter(torch.empty(num_levels, dim))
        self.layers = nn.ModuleList(
            EncoderLayer(dim, num_heads, num_levels, num_points, ffn_dim) for _ in range(num_layers)
        )
        self.lateral = Conv2d(
            input_shape[mask_feature].channels, dim, 1, bias=False, norm=nn.GroupNorm(32, dim)
        )
        self.output = Conv2d(
            dim, dim, 3, padding=1, bias=False, norm=nn.GroupNorm(32, dim), activation=F.relu
        )
        self.mask_features = nn.Conv2d(dim, dim, 1)

        nn.init.normal_(self.level_embed)
        for projection, _ in self.input_proj:
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        for convolution in (self.lateral, self.output, self.mask_features):
            weight_init.c2_xavier_fill(convolution)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`PixelProjection.forward`; the results are float32."""
        fine = features[self.mask_feature]
        with _no_autocast(fine.device.type):
            keys = [
                projection(_float(features[name]))
                for name, projection in zip(self.key_features, self.input_proj, strict=True)
            ]
            keys = self._encode(keys)
            lateral = self.lateral(_float(fine))
            upsampled = F.interpolate(
                keys[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False
            )
            return self.mask_features(self.output(lateral + upsampled)), keys

    def _encode(self, maps: list[Tensor]) -> list[Tensor]:
        shapes = [(x.shape[-2], x.shape[-1]) for x in maps]
        device = maps[0].device
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        positions = torch.cat(
            [
                sine_position_encoding(shape, self.dim, device) + level
                for shape, level in zip(shapes, self.level_embed, strict=True)
            ]
        )
        centers = pixel_centers(shapes, device)
        for layer in self.layers:
            tokens = layer(tokens, positions, centers, shapes)
        levels = tokens.transpose(1, 2).split([h * w for h, w in shapes], dim=2)
        return [x.unflatten(2, shape) for x, shape in zip(levels, shapes, strict=True)]


def coarse_to_fine(input_shape: Mapping[str, ShapeSpec], names: Sequence[str]) -> list[str]:
    """Names of maps, the one with the largest stride first."""
    return sorted(names, key=lambda name: -input_shape[name].stride)


def _no_autocast(device_type: str) -> AbstractContextManager:
    # The meta device, on which operations are counted, has no autocast to switch off.
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _float(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
