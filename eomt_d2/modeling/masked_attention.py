"""Masked attention of queries, inside a ViT or to the maps of a decoder, and annealing it away
during training.

EoMT, arXiv 2503.19108: section 3.2 (masked attention) and 3.3 (mask annealing). Mask2Former, arXiv
2112.01527: section 3.2.1 (masked attention).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "MaskAnnealing",
    "annealing_windows",
    "attention_mask",
    "cross_attention_mask",
    "masking_probability",
]


def attention_mask(
    mask_logits: Tensor, grid: tuple[int, int], num_prefix_tokens: int, opened: Tensor | None = None
) -> Tensor:
    """Where each query may attend among the tokens [queries | prefix | patches].

    A query sees a patch only where its predicted mask, resized to the patch grid, is positive.
    Queries and prefix tokens are always visible, so a query with an empty mask is not blind.

    Args:
        mask_logits: (B, Q, h', w') float.
        grid: (h, w) patches.
        num_prefix_tokens: P, class and register tokens.
        opened: (B, Q) or (1, Q) bool; True lets a query attend everywhere.

    Returns:
        (B, Q, Q + P + h * w) bool, True where attention is allowed.
    """
    logits = F.interpolate(mask_logits.detach(), size=grid, mode="bilinear", align_corners=False)
    patches = (logits > 0).flatten(2)
    if opened is not None:
        patches = patches | opened[..., None]
    return F.pad(patches, (mask_logits.shape[1] + num_prefix_tokens, 0), value=True)


def cross_attention_mask(
    mask_logits: Tensor, shape: tuple[int, int], opened: Tensor | None = None
) -> Tensor:
    """Where each query of a decoder may attend in a map.

    A query sees a pixel only where its predicted mask, resized to the map, has a probability of at
    least 1/2. A query whose mask is empty sees everything, as nothing else is there for it to see.

    Args:
        mask_logits: (B, Q, h', w') float.
        shape: (h, w) of the map.
        opened: (B, Q) or (1, Q) bool; True lets a query attend everywhere.

    Returns:
        (B, Q, h * w) bool, True where attention is allowed.
    """
    logits = F.interpolate(mask_logits.detach(), size=shape, mode="bilinear", align_corners=False)
    pixels = (logits >= 0).flatten(2)
    everywhere = ~pixels.any(-1)
    if opened is not None:
        everywhere = everywhere | opened
    return pixels | everywhere[..., None]


class MaskAnnealing(nn.Module):
    """The probability, per query block or decoder layer, that a query is masked there.

    The probabilities are a buffer, so a checkpoint carries them: a finished EoMT (all 0) runs
    unmasked by itself, a finished Mask2Former (all 1) masked. Control flow reads only the tuples of
    booleans made from them by :meth:`set_probs` and after each load; it never waits for the device.

    Args:
        num_blocks: number of query blocks; each starts fully masked (probability 1).
        enabled: whether training anneals. False (Mask2Former as published) masks throughout,
            whatever the schedule in the config.
    """

    def __init__(self, num_blocks: int, enabled: bool = True):
        super().__init__()
        self.enabled = enabled
        self.register_buffer("probs", torch.ones(num_blocks))
        self._refresh([1.0] * num_blocks)

    @property
    def num_blocks(self) -> int:
        return len(self.active)

    @torch.no_grad()
    def set_probs(self, probs: Sequence[float]) -> None:
        """Set the masking probability of every block, each in [0, 1]."""
        if len(probs) != self.num_blocks or not all(0 <= p <= 1 for p in probs):
            raise ValueError(f"Expected {self.num_blocks} probabilities in [0, 1], got {probs}.")
        self.probs.copy_(torch.tensor(list(probs), dtype=self.probs.dtype))
        self._refresh(probs)

    def mask(
        self, block: int, mask_logits: Tensor, grid: tuple[int, int], num_prefix_tokens: int
    ) -> Tensor | None:
        """The attention mask of one query block, or None where it does not mask at all.

        With a probability strictly between 0 and 1, rows are opened at random: per image and
        query while training; from a fixed seed, alike for all images, in evaluation.

        Args and result: see :func:`attention_mask`; ``block`` counts from 0.
        """
        if not self.active[block]:
            return None
        return attention_mask(mask_logits, grid, num_prefix_tokens, self.opened(block, mask_logits))

    def opened(self, block: int, mask_logits: Tensor) -> Tensor | None:
        """The queries that are drawn to attend everywhere in one block; see :meth:`mask`.

        Args:
            block: counts from 0.
            mask_logits: (B, Q, h, w); only its device and first two sizes matter.

        Returns:
            (B, Q) or (1, Q) bool, or None where nothing is random.
        """
        if not self._random[block]:
            return None
        size, device = mask_logits.shape[:2], mask_logits.device
        if self.training:
            draw = torch.rand(size, device=device)
        else:
            draw = _fixed_draw(block, size[1], device)
        return draw >= self.probs[block]

    def _refresh(self, probs: Sequence[float]) -> None:
        self.active: tuple[bool, ...] = tuple(p > 0 for p in probs)
        self._random: tuple[bool, ...] = tuple(0 < p < 1 for p in probs)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        if not self.probs.is_meta:
            self._refresh(self.probs.tolist())


# torch.compile knows no generators; this draw is always the same.
@torch.compiler.assume_constant_result
def _fixed_draw(seed: int, num_queries: int, device: torch.device) -> Tensor:
    """(1, Q) uniform numbers in [0, 1)."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.rand((1, num_queries), device=device, generator=generator)


def masking_probability(iteration: int, start: float, end: float, power: float = 0.9) -> float:
    """Probability that a query is masked at an iteration: 1 before ``start``, then
    (1 - (iteration - start) / (end - start))^power, and 0 from ``end`` on. Iteration 0 gives 1,
    whatever the window."""
    if iteration <= 0 or iteration < start:
        return 1.0
    if iteration >= end:
        return 0.0
    return (1 - (iteration - start) / (end - start)) ** power


def annealing_windows(num_blocks: int, max_iter: int) -> list[tuple[int, int]]:
    """The published staggered annealing windows for any length of training.

    With n blocks and T iterations, block i goes from start_i = T / 6 * (1 + 3 i / (n - 1)) to
    start_i + T / 6, rounded half up: four blocks take the four middle sixths of the training one
    after the other. A single block takes the second sixth.

    Args:
        num_blocks: n >= 1.
        max_iter: T, in iterations.

    Returns:
        (start, end) in iterations for each block.
    """
    sixth = max_iter / 6
    starts = [sixth * (1 + 3 * i / max(num_blocks - 1, 1)) for i in range(num_blocks)]
    return [(math.floor(s + 0.5), math.floor(s + sixth + 0.5)) for s in starts]
