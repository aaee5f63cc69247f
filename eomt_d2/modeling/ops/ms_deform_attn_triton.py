"""Multi-scale deformable attention as Triton kernels, wrapped in a PyTorch operator.

Importing this needs Triton and registers ``torch.ops.eomt_d2.ms_deform_attn``, which autograd and
``torch.compile`` know. See :mod:`.ms_deform_attn` for the meaning of the arguments and the letters.

A program of the kernels works on a block of queries of one head of one image, with the D channels
of the head as the second axis. All sums are float32, whatever the dtypes of the inputs; offsets
into tensors are 64-bit. The gradient of the values is summed with atomic additions, so its last
bits may change from run to run.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["ms_deform_attn_triton"]

# Numbers per block of (queries, channels).
_BLOCK_NUMEL = 1024


@triton.jit
def _program(num_queries, num_heads, BLOCK_Q: tl.constexpr):
    """Image, head (both 64-bit) and queries of this program."""
    pid = tl.program_id(0)
    num_blocks = tl.cdiv(num_queries, BLOCK_Q)
    head = pid % num_heads
    queries = (pid // num_heads % num_blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    return (pid // num_heads // num_blocks).to(tl.int64), head.to(tl.int64), queries


@triton.jit
def _pixel(location, side):
    """The first of two neighbouring pixels on one axis, and the weight of the second.

    Beyond two pixels outside everything is zero, and so are its gradients; the clamp keeps far
    locations from overflowing the integer.
    """
    position = tl.minimum(tl.maximum(location.to(tl.float32) * side - 0.5, -2.0), side + 1.0)
    first = tl.floor(position)
    return first.to(tl.int32), position - first


@triton.jit
def _token_mask(y, x, height, width, valid):
    return valid & (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def _load_token(value, token, inside, stride, channels, valid_channels):
    offsets = token.to(tl.int64)[:, None] * stride + channels[None, :]
    mask = inside[:, None] & valid_channels[None, :]
    return tl.load(value + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _add_to_token(grad_value, token, inside, stride, channels, valid_channels, grad):
    offsets = token.to(tl.int64)[:, None] * stride + channels[None, :]
    mask = inside[:, None] & valid_channels[None, :]
    tl.atomic_add(grad_value + offsets, grad, mask=mask, sem="relaxed")


@triton.jit
def _forward_kernel(
    value, levels, locations, weights, out,
    num_tokens, num_queries, num_heads, head_dim,
    NUM_LEVELS: tl.constexpr, NUM_POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    image, head, queries = _program(num_queries, num_heads, BLOCK_Q)
    channels = tl.arange(0, BLOCK_D)
    valid, valid_channels = queries < num_queries, channels < head_dim
    rows = (image * num_queries + queries) * num_heads + head
    value += (image * num_tokens * num_heads + head) * head_dim
    stride = num_heads * head_dim

    total = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for level in range(NUM_LEVELS):
        height = tl.load(levels + 3 * level)
        width = tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in range(NUM_POINTS):
            sample = (rows * NUM_LEVELS + level) * NUM_POINTS + point
            weight = tl.load(weights + sample, mask=valid, other=0.0).to(tl.float32)
            x, right = _pixel(tl.load(locations + 2 * sample, mask=valid, other=0.0), width)
            y, lower = _pixel(tl.load(locations + 2 * sample + 1, mask=valid, other=0.0), height)
            for dy in tl.static_range(2):
                for dx in tl.static_range(2):
                    share = (lower if dy else 1 - lower) * (right if dx else 1 - right)
                    inside = _token_mask(y + dy, x + dx, height, width, valid)
                    token = start + (y + dy) * width + x + dx
                    pixel = _load_token(value, token, inside, stride, channels, valid_channels)
                    total += (weight * share)[:, None] * pixel
    tl.store(
        out + rows[:, None] * head_dim + channels[None, :],
        total.to(out.dtype.element_ty),
        mask=valid[:, None] & valid_channels[None, :],
    )


@triton.jit
def _backward_kernel(
    grad_out, value, levels, locations, weights, grad_value, grad_locations, grad_weights,
    num_tokens, num_queries, num_heads, head_dim,
    NUM_LEVELS: tl.constexpr, NUM_POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    image, head, queries = _program(num_queries, num_heads, BLOCK_Q)
    channels = tl.arange(0, BLOCK_D)
    valid, valid_channels = queries < num_queries, channels < head_dim
    rows = (image * num_queries + queries) * num_heads + head
    first_value = (image * num_tokens * num_heads + head) * head_dim
    value += first_value
    grad_value += first_value
    stride = num_heads * head_dim

    grad = tl.load(
        grad_out + rows[:, None] * head_dim + channels[None, :],
        mask=valid[:, None] & valid_channels[None, :],
        other=0.0,
    ).to(tl.float32)
    for level in range(NUM_LEVELS):
        height = tl.load(levels + 3 * level)
        width = tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in range(NUM_POINTS):
            sample = (rows * NUM_LEVELS + level) * NUM_POINTS + point
            weight = tl.load(weights + sample, mask=valid, other=0.0).to(tl.float32)
            x, right = _pixel(tl.load(locations + 2 * sample, mask=valid, other=0.0), width)
            y, lower = _pixel(tl.load(locations + 2 * sample + 1, mask=valid, other=0.0), height)
            grad_weight = tl.zeros((BLOCK_Q,), tl.float32)
            grad_x = tl.zeros((BLOCK_Q,), tl.float32)
            grad_y = tl.zeros((BLOCK_Q,), tl.float32)
            for dy in tl.static_range(2):
                for dx in tl.static_range(2):
                    share_y = lower if dy else 1 - lower
                    share_x = right if dx else 1 - right
                    inside = _token_mask(y + dy, x + dx, height, width, valid)
                    token = start + (y + dy) * width + x + dx
                    pixel = _load_token(value, token, inside, stride, channels, valid_channels)
                    product = tl.sum(grad * pixel, axis=1)
                    grad_weight += share_y * share_x * product
                    # The share of a pixel grows by 1 per pixel towards it, on each axis.
                    grad_x += (2 * dx - 1) * share_y * product
                    grad_y += (2 * dy - 1) * share_x * product
                    _add_to_token(
                        grad_value, token, inside, stride, channels, valid_channels,
                        (weight * share_y * share_x)[:, None] * grad,
                    )  # fmt: skip
            dtype = grad_locations.dtype.element_ty
            tl.store(grad_locations + 2 * sample, (weight * grad_x * width).to(dtype), mask=valid)
            tl.store(
                grad_locations + 2 * sample + 1, (weight * grad_y * height).to(dtype), mask=valid
            )
            tl.store(
                grad_weights + sample, grad_weight.to(grad_weights.dtype.element_ty), mask=valid
            )


@lru_cache(maxsize=64)
def _level_table(sides: tuple[int, ...], device: torch.device) -> Tensor:
    """(L, 3) int32: height, width and first token of each level. Kept, so that only the first
    batch of a size waits for the copy to the device."""
    table, start = [], 0
    for height, width in zip(sides[::2], sides[1::2], strict=True):
        table.append((height, width, start))
        start += height * width
    return torch.tensor(table, dtype=torch.int32, device=device)


def _launch(kernel, tensors: list[Tensor], value: Tensor, locations: Tensor) -> None:
    batch, num_tokens, num_heads, head_dim = value.shape
    _, num_queries, _, num_levels, num_points, _ = locations.shape
    block_d = triton.next_power_of_2(head_dim)
    block_q = max(1, _BLOCK_NUMEL // block_d)
    programs = batch * num_heads * triton.cdiv(num_queries, block_q)
    if programs == 0:
        return
    # Triton launches on the current device; without a GPU (its interpreter) this does nothing.
    with torch.cuda.device_of(value):
        kernel[(programs,)](
            *tensors,
            num_tokens,
            num_queries,
            num_heads,
            head_dim,
            NUM_LEVELS=num_levels,
            NUM_POINTS=num_points,
            BLOCK_Q=block_q,
            BLOCK_D=block_d,
        )


@torch.library.custom_op(
    "eomt_d2::ms_deform_attn",
    mutates_args=(),
    schema="(Tensor value, SymInt[] spatial_shapes, Tensor locations, Tensor weights) -> Tensor",
)
def ms_deform_attn_triton(value, spatial_shapes, locations, weights):
    """:func:`~.ms_deform_attn.ms_deform_attn` with ``spatial_shapes`` as (h_0, w_0, h_1, ...)."""
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    batch, _, num_heads, head_dim = value.shape
    out = value.new_empty(batch, locations.shape[1], num_heads * head_dim)
    levels = _level_table(tuple(spatial_shapes), value.device)
    _launch(_forward_kernel, [value, levels, locations, weights, out], value, locations)
    return out


@ms_deform_attn_triton.register_fake
def _(value, spatial_shapes, locations, weights):
    batch, _, num_heads, head_dim = value.shape
    return value.new_empty(batch, locations.shape[1], num_heads * head_dim)


@torch.library.custom_op(
    "eomt_d2::ms_deform_attn_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor value, SymInt[] spatial_shapes, Tensor locations, Tensor weights)"
    " -> (Tensor, Tensor, Tensor)",
)
def _backward_op(grad, value, spatial_shapes, locations, weights):
    """Gradients of value, locations and weights, each in its own dtype."""
    grad, value = grad.contiguous(), value.contiguous()
    locations, weights = locations.contiguous(), weights.contiguous()
    grad_value = torch.zeros_like(value, dtype=torch.float32)
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    levels = _level_table(tuple(spatial_shapes), value.device)
    gradients = [grad_value, grad_locations, grad_weights]
    tensors = [grad, value, levels, locations, weights, *gradients]
    _launch(_backward_kernel, tensors, value, locations)
    return grad_value.to(value.dtype), grad_locations, grad_weights


@_backward_op.register_fake
def _(grad, value, spatial_shapes, locations, weights):
    return tuple(x.new_empty(x.shape) for x in (value, locations, weights))


def _setup_context(ctx, inputs, output):
    value, ctx.spatial_shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx, grad):
    value, locations, weights = ctx.saved_tensors
    gradients = _backward_op(grad, value, ctx.spatial_shapes, locations, weights)
    return gradients[0], None, *gradients[1:]


ms_deform_attn_triton.register_autograd(_backward, setup_context=_setup_context)
