"""A plain Vision Transformer as a Detectron2 backbone."""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .pos_embed import (
    Rotary,
    eva02_rotary_embedding,
    resample_position_embedding,
    rotary_embedding,
)
from .presets import PRESETS
from .vit_block import Block

__all__ = ["ViT"]

# How each choice of ``position`` turns queries and keys.
_ROTARY = {"learned": None, "rotary": rotary_embedding, "eva02": eva02_rotary_embedding}


class PatchEmbed(nn.Module):
    """(B, 3, H, W) images to (B, N, C) patch tokens in row-major order."""

    def __init__(self, patch_size: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


@BACKBONE_REGISTRY.register()
class ViT(Backbone):
    """Plain Vision Transformer (arXiv 2010.11929) with register tokens (arXiv 2309.16588).

    Parameter names are timm's, so timm's DINOv2 files load by prefix alone. Tokens are ordered
    [class | registers | patches]; the learned position embedding covers patches only.

    Args:
        embed_dim: embedding dimension C.
        depth: number of blocks.
        num_heads: attention heads per block.
        patch_size: side of a patch in pixels.
        img_size: side in pixels of the square image whose patch grid the learned position
            embedding is stored for. Other grids get it resampled.
        mlp_ratio: hidden width of the feed-forward networks over ``embed_dim``.
        ffn: "mlp" (GELU), "swiglu" (DINOv2's giant) or "swiglu_subln" (EVA-02's).
        num_registers: register tokens; 0 leaves ``reg_token`` out.
        layer_scale_init: initial LayerScale factor; 0 leaves LayerScale out.
        drop_path_rate: stochastic depth rate of the last block; earlier ones rise to it linearly.
        norm_eps: epsilon of every LayerNorm.
        position: "learned", "rotary" (DINOv3's) or "eva02" (learned, and EVA-02's rotary).
        rotary_rescale: training draws one factor exp(U(-ln r, ln r)) per forward for all rotary
            coordinates; 1 draws nothing.
        key_bias: whether keys have a bias.
        activation_checkpointing: recompute blocks in the backward pass to save memory.
        final_norm: False leaves the norm after the last block out, for networks that read the
            blocks' tokens themselves: a parameter that gets no gradient stops distributed training.
    """

    @configurable
    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        patch_size: int = 16,
        img_size: int = 640,
        mlp_ratio: float = 4.0,
        ffn: str = "mlp",
        num_registers: int = 4,
        layer_scale_init: float = 1e-5,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
        position: str = "learned",
        rotary_rescale: float = 1.0,
        key_bias: bool = True,
        activation_checkpointing: bool = False,
        final_norm: bool = True,
    ):
        super().__init__()
        if img_size % patch_size:
            raise ValueError(f"The image size {img_size} is no multiple of the patch {patch_size}.")
        if position not in _ROTARY:
            raise ValueError(
                f"Unknown position embedding {position!r}: choose from {', '.join(_ROTARY)}."
            )
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.num_prefix_tokens = 1 + num_registers
        self.activation_checkpointing = activation_checkpointing
        self.rotary_rescale = rotary_rescale
        self._rotary_embedding = _ROTARY[position]
        self._native_grid = (img_size // patch_size,) * 2
        self._resampled: dict[tuple[int, int], Tensor] = {}

        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        if num_registers:
            self.reg_token = nn.Parameter(torch.zeros(1, num_registers, embed_dim))
        else:
            self.reg_token = None
        if position in ("learned", "eva02"):
            num_patches = self._native_grid[0] * self._native_grid[1]
            self.pos_embed = nn.Parameter(torch.zeros(1, num_patches, embed_dim))
        else:
            self.pos_embed = None
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                ffn=ffn,
                layer_scale_init=layer_scale_init,
                drop_path_rate=drop_path_rate * i / max(depth - 1, 1),
                norm_eps=norm_eps,
                key_bias=key_bias,
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps) if final_norm else nn.Identity()
        self._initialise()

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec | None = None) -> dict:
        """Constructor arguments from ``cfg.MODEL.VIT``: the preset, overridden key by key."""
        vit = cfg.MODEL.VIT
        if vit.NAME and vit.NAME not in PRESETS:
            raise ValueError(
                f"MODEL.VIT.NAME {vit.NAME!r} is not a known preset: choose from "
                f"{', '.join(PRESETS)}, or '' to give MODEL.VIT.EMBED_DIM, DEPTH and NUM_HEADS."
            )
        args = dict(PRESETS.get(vit.NAME, {}))
        args.pop("num_query_blocks", None)
        overrides = {
            "embed_dim": vit.EMBED_DIM or None,
            "depth": vit.DEPTH or None,
            "num_heads": vit.NUM_HEADS or None,
            "mlp_ratio": vit.MLP_RATIO or None,
            "ffn": vit.FFN or None,
            "position": vit.POSITION or None,
            "num_registers": vit.NUM_REGISTERS if vit.NUM_REGISTERS >= 0 else None,
            "layer_scale_init": vit.LAYER_SCALE_INIT if vit.LAYER_SCALE_INIT >= 0 else None,
        }
        args.update({key: value for key, value in overrides.items() if value is not None})
        missing = [key for key in ("embed_dim", "depth", "num_heads") if key not in args]
        if missing:
            keys = ", ".join(f"MODEL.VIT.{key.upper()}" for key in missing)
            raise ValueError(f"Without a preset in MODEL.VIT.NAME, {keys} must be given.")
        return {
            **args,
            "patch_size": vit.PATCH_SIZE,
            "img_size": vit.IMG_SIZE or cfg.INPUT.IMAGE_SIZE,
            "drop_path_rate": vit.DROP_PATH_RATE,
            "activation_checkpointing": vit.ACTIVATION_CHECKPOINTING,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W) to {"vit": (B, C, H / patch, W / patch)}, final norm
        included. H and W are multiples of the patch size."""
        grid = self.grid_size(*images.shape[-2:])
        tokens, rotary = self.embed(images)
        for block in self.blocks:
            tokens = self.run_block(block, tokens, rotary)
        return {"vit": self.patch_map(self.norm(tokens), grid)}

    def patch_map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, P + N, C) [class | registers | patches] to the map (B, C, h, w) of patches."""
        return tokens[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)

    def embed(self, images: Tensor) -> tuple[Tensor, Rotary | None]:
        """Images to the tokens that enter the first block.

        Args:
            images: (B, 3, H, W) normalised; H and W are multiples of the patch size.

        Returns:
            (B, P + N, C) tokens [class | registers | patches], and what turns queries and keys of
            the N patches in every block, or None if nothing does.
        """
        grid = self.grid_size(*images.shape[-2:])
        patches = self.patch_embed(images)
        if self.pos_embed is not None:
            patches = patches + self._position_embedding(grid)
        prefix: Tensor = self.cls_token
        if self.reg_token is not None:
            prefix = torch.cat((prefix, self.reg_token), dim=1)
        tokens = torch.cat((prefix.expand(len(images), -1, -1), patches), dim=1)
        return tokens, self._rotary(grid, images.device)

    def run_block(
        self,
        block: Block,
        tokens: Tensor,
        rotary: Rotary | None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        """Run one of ``self.blocks``, with activation checkpointing if that is on."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, tokens, rotary, query_mask, use_reentrant=False)
        return block(tokens, rotary, query_mask)

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Patch grid (h, w) of an image; ValueError if its sides are no multiples of a patch."""
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"An image of {height} x {width} pixels cannot be cut into patches of "
                f"{self.patch_size}: pad it to multiples of {self.patch_size}."
            )
        return height // self.patch_size, width // self.patch_size

    def output_shape(self) -> dict[str, ShapeSpec]:
        """One map, "vit", at the stride of a patch."""
        return {"vit": ShapeSpec(channels=self.embed_dim, stride=self.patch_size)}

    @property
    def size_divisibility(self) -> int:
        """Sides of the input are multiples of this."""
        return self.patch_size

    def train(self, mode: bool = True) -> "ViT":
        self._resampled.clear()
        return super().train(mode)

    def _apply(self, fn, *args, **kwargs):
        self._resampled.clear()
        return super()._apply(fn, *args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self._resampled.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def _position_embedding(self, grid: tuple[int, int]) -> Tensor:
        if grid == self._native_grid:
            return self.pos_embed
        # A compiled network must not keep what it makes: CUDA graphs use the memory again.
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return resample_position_embedding(self.pos_embed, self._native_grid, grid)
        if grid not in self._resampled:
            self._resampled[grid] = resample_position_embedding(
                self.pos_embed, self._native_grid, grid
            )
        return self._resampled[grid]

    def _rotary(self, grid: tuple[int, int], device: torch.device) -> Rotary | None:
        if self._rotary_embedding is None:
            return None
        scale = 1.0
        if self.training and self.rotary_rescale != 1:
            # One factor for both axes and the whole batch (DINOv3's published recipe).
            scale = self.rotary_rescale ** torch.empty(1, device=device).uniform_(-1, 1)
        head_dim = self.embed_dim // self.blocks[0].attn.num_heads
        return self._rotary_embedding(grid, head_dim, scale=scale, device=device)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for token in (self.cls_token, self.reg_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
