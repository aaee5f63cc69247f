"""The transformer decoder of Mask2Former: queries read maps through masked cross-attention.

Shapes: B images, Q queries, C channels, N keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mask_product import predict_masks
from .masked_attention import MaskAnnealing, cross_attention_mask
from .position_encoding import sine_position_encoding
from .structures import MaskPrediction, Prediction

__all__ = ["MaskedTransformerDecoder"]


class Attention(nn.Module):
    """Multi-head attention; parameters are named and initialised as nn.MultiheadAttention's, but a
    mask need not be repeated for every head.

    Args:
        dim: C, a multiple of ``num_heads``.
        num_heads: number of heads.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"Attention over {dim} channels cannot have {num_heads} heads.")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            queries: (B, Q, C).
            keys, values: (B, N, C).
            mask: (B, Q, N) bool, True where a query may attend; None: everywhere.

        Returns:
            (B, Q, C).
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((queries, keys, values), weights, biases, strict=True)
        )
        if mask is not None:
            mask = mask[:, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward network; post-norm (Mask2Former, section
    3.2.2). Positions are added to queries and keys, never to values."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int):
        super().__init__()
        self.cross_attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm3 = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(
        self, queries: Tensor, positions: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Queries (B, Q, C) with positions (Q, C) read keys and values (B, N, C) where the mask
        (B, Q, N) is True; gives (B, Q, C)."""
        attended = self.cross_attn(queries + positions, keys, values, mask)
        queries = self.norm1(queries + attended)
        placed = queries + positions
        queries = self.norm2(queries + self.self_attn(placed, placed, queries))
        return self.norm3(queries + self.linear2(F.relu(self.linear1(queries))))


class MaskedTransformerDecoder(nn.Module):
    """Learned queries predict, read a map where their masks are, and predict again (Mask2Former,
    arXiv 2112.01527, section 3.2). The layers take the maps in turn, from coarse to fine.

    Args:
        num_classes: K, without "no object".
        num_queries: Q.
        num_levels: L, maps to read.
        dim: C.
        num_layers: decoder layers, at least ``num_levels``, so that each map is read.
        num_heads: attention heads.
        ffn_dim: hidden width of the feed-forward networks.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_queries: int,
        num_levels: int = 3,
        dim: int = 256,
        num_layers: int = 9,
        num_heads: int = 8,
        ffn_dim: int = 2048,
    ):
        super().__init__()
        if num_layers < num_levels:
            raise ValueError(
                f"A decoder of {num_layers} layers leaves some of its {num_levels} maps unread: "
                f"MODEL.MASK_FORMER.DEC_LAYERS must be at least {num_levels + 1}."
            )
        self.query_feat = nn.Embedding(num_queries, dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.level_embed = nn.Embedding(num_levels, dim)
        self.layers = nn.ModuleList(
            DecoderLayer(dim, num_heads, ffn_dim) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.class_head = nn.Linear(dim, num_classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim)
        )

    def forward(
        self,
        mask_features: Tensor,
        maps: list[Tensor],
        annealing: MaskAnnealing,
        all_predictions: bool = False,
    ) -> list[MaskPrediction]:
        """Predict.

        Args:
            mask_features: (B, C, h, w).
            maps: L maps (B, C, h_l, w_l), from coarse to fine.
            annealing: how often each layer masks.
            all_predictions: also the predictions that no mask needs.

        Returns:
            Predictions in the order they are made, before the layers that mask (or each layer) and
            after the last.
        """
        values = [
            x.flatten(2).transpose(1, 2) + level
            for x, level in zip(maps, self.level_embed.weight, strict=True)
        ]
        keys = [value + self._encoding(x) for value, x in zip(values, maps, strict=True)]
        queries = self.query_feat.weight.expand(len(mask_features), -1, -1)
        predictions: list[MaskPrediction] = []
        for i, layer in enumerate(self.layers):
            level, mask = i % len(maps), None
            if all_predictions or annealing.active[i]:
                predictions.append(self.predict_masks(queries, mask_features))
            if annealing.active[i]:
                logits = predictions[-1].mask_logits
                opened = annealing.opened(i, logits)
                mask = cross_attention_mask(logits, tuple(maps[level].shape[-2:]), opened)
            queries = layer(queries, self.query_embed.weight, keys[level], values[level], mask)
        return [*predictions, self.predict_masks(queries, mask_features)]

    def predict_masks(self, queries: Tensor, mask_features: Tensor) -> Prediction:
        """Queries (B, Q, C) and mask features (B, C, h, w) to masks and classes."""
        queries = self.norm(queries)
        return predict_masks(self.mask_head(queries), mask_features, self.class_head(queries))

    def _encoding(self, x: Tensor) -> Tensor:
        encoding = sine_position_encoding(tuple(x.shape[-2:]), x.shape[1], x.device)
        return encoding.to(x.dtype)
