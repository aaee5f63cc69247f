"""The transformer block of a plain ViT: attention, feed-forward, LayerScale, stochastic depth."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pos_embed import Rotary, apply_rotary

__all__ = ["Attention", "Block", "DropPath", "LayerScale", "Mlp", "SubLNSwiGLU", "SwiGLU"]


class Attention(nn.Module):
    """Multi-head self-attention whose first rows may be masked.

    Args:
        dim: embedding dimension C, a multiple of ``num_heads``.
        num_heads: number of heads.
        key_bias: False leaves the keys without a bias (DINOv3, EVA-02); those of queries and
            values stay.
    """

    def __init__(self, dim: int, num_heads: int, *, key_bias: bool = True):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"The embedding dimension {dim} is no multiple of {num_heads} heads.")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=key_bias)
        if not key_bias:
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None = None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: (B, T, C) tokens.
            rotary: turns queries and keys of the last N tokens; its head_dim is C / heads.
            query_mask: (B, Q, T) bool; True where one of the first Q tokens may attend. The other
                T - Q tokens attend everywhere, so they are computed without a mask and can use
                the fastest kernel; a (T, T) mask never exists ("split attention").

        Returns:
            (B, T, C).
        """
        q, k, v = self._project(x)
        if rotary is not None:
            q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
        if query_mask is None:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            num_queries = query_mask.shape[1]
            queries, context = q.split((num_queries, q.shape[2] - num_queries), dim=2)
            out = torch.cat(
                (
                    F.scaled_dot_product_attention(queries, k, v, attn_mask=query_mask[:, None]),
                    F.scaled_dot_product_attention(context, k, v),
                ),
                dim=2,
            )
        return self.proj(out.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bias = self.qkv.bias
        if bias is None:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias)
        # The gradient of unbind, one stack, is then laid out as the linear layer takes it.
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).unbind(2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class Mlp(nn.Module):
    """Linear, exact GELU, linear. Takes and gives (..., dim)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """silu(gate) * up, linear; gate and up come packed from one layer. Takes and gives (..., dim).

    Arxiv 2002.05202; the form of DINOv2's giant model.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * up)


class SubLNSwiGLU(nn.Module):
    """LayerNorm of silu(gate) * up, linear. Takes and gives (..., dim).

    EVA-02's network (arXiv 2303.11331, section 2.1): gate and up come from a layer each, and the
    LayerNorm between hidden layer and output is the "sub-LN" of arXiv 2210.06423.
    """

    def __init__(self, dim: int, hidden_dim: int, *, norm_eps: float = 1e-6):
        super().__init__()
        self.fc1_g = nn.Linear(dim, hidden_dim)
        self.fc1_x = nn.Linear(dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim, eps=norm_eps)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(F.silu(self.fc1_g(x)) * self.fc1_x(x)))


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (arXiv 2103.17239, section 2.1)."""

    def __init__(self, dim: int, init_value: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drops a residual branch per image while training.

    Args:
        rate: probability in [0, 1) that the branch of an image is dropped. Branches that stay are
            divided by 1 - rate.
    """

    def __init__(self, rate: float):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"A drop path rate lies in [0, 1), not {rate}.")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype).div_(1 - self.rate)


class Block(nn.Module):
    """Pre-norm transformer block; parameter names are timm's.

    Args:
        dim: embedding dimension C.
        num_heads: attention heads.
        mlp_ratio: hidden width of the feed-forward network over ``dim``.
        ffn: "mlp", "swiglu" or "swiglu_subln".
        layer_scale_init: initial LayerScale factor; 0 leaves LayerScale out.
        drop_path_rate: stochastic depth rate of both branches.
        norm_eps: epsilon of the LayerNorms.
        key_bias: see :class:`Attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        ffn: str = "mlp",
        layer_scale_init: float = 1e-5,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
        key_bias: bool = True,
    ):
        super().__init__()
        ffns: dict[str, Callable[[int, int], nn.Module]] = {
            "mlp": Mlp,
            "swiglu": SwiGLU,
            "swiglu_subln": partial(SubLNSwiGLU, norm_eps=norm_eps),
        }
        if ffn not in ffns:
            raise ValueError(
                f"Unknown feed-forward network {ffn!r}: choose from {', '.join(ffns)}."
            )

        def scale() -> nn.Module:
            return LayerScale(dim, layer_scale_init) if layer_scale_init else nn.Identity()

        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, key_bias=key_bias)
        self.ls1 = scale()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = ffns[ffn](dim, round(dim * mlp_ratio))
        self.ls2 = scale()
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None = None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, T, C) to (B, T, C); for ``rotary`` and ``query_mask`` see :class:`Attention`."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), rotary, query_mask)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
