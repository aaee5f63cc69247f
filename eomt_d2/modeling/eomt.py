"""EoMT, the Encoder-only Mask Transformer (arXiv 2503.19108): "Your ViT is Secretly an Image
Segmentation Model". Learned queries join the patch tokens for the last blocks of a plain ViT."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import Tensor, nn

from .backbone.presets import PRESETS
from .backbone.vit import ViT
from .mask_classification import MaskClassificationModel
from .mask_product import predict_masks
from .masked_attention import MaskAnnealing
from .structures import MaskPrediction, Prediction
from .upscale import UpscaleBlock, num_upscale_blocks


@META_ARCH_REGISTRY.register()
class EoMT(MaskClassificationModel):
    """A ViT whose last n blocks also see Q queries; n + 1 times they predict classes and masks.

    Args:
        backbone: the ViT, C channels.
        num_blocks: n, 1 to the ViT's depth.
        masked_attention: False trains without masks, on the last prediction alone.
        kwargs: see :class:`MaskClassificationModel`.
    """

    @configurable
    def __init__(self, *, backbone: ViT, num_blocks: int, masked_attention: bool = True, **kwargs):
        super().__init__(size_divisibility=backbone.size_divisibility, **kwargs)
        if not 1 <= num_blocks <= len(backbone.blocks):
            raise ValueError(f"MODEL.EOMT.NUM_BLOCKS {num_blocks}: 1 to {len(backbone.blocks)}.")
        dim = backbone.embed_dim
        self.backbone, self.num_blocks = backbone, num_blocks
        self.query_embed = nn.Embedding(self.num_queries, dim)
        self.class_head = nn.Linear(dim, self.num_classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)
        )
        blocks = num_upscale_blocks(backbone.patch_size)
        self.upscale = nn.Sequential(*[UpscaleBlock(dim) for _ in range(blocks)])
        self.mask_annealing = MaskAnnealing(num_blocks) if masked_attention else None

    @classmethod
    def from_config(cls, cfg) -> dict:
        args = {**super().from_config(cfg), "backbone": build_backbone(cfg)}
        preset = PRESETS.get(cfg.MODEL.VIT.NAME, {})
        args["num_blocks"] = cfg.MODEL.EOMT.NUM_BLOCKS or preset.get("num_query_blocks", 0)
        args["masked_attention"] = cfg.MODEL.EOMT.MASKED_ATTENTION
        return args

    def predict(self, images: Tensor, all_predictions: bool = False) -> list[MaskPrediction]:
        """Normalised images (B, 3, H, W) to predictions, the last one final (section 3.1)."""
        vit, annealing, predictions = self.backbone, self.mask_annealing, []
        grid = vit.grid_size(*images.shape[-2:])
        tokens, rotary = vit.embed(images)
        for block in vit.blocks[: -self.num_blocks]:
            tokens = vit.run_block(block, tokens, rotary)
        queries = self.query_embed.weight.expand(len(images), -1, -1)
        tokens = torch.cat((queries, tokens), dim=1)
        for i, block in enumerate(vit.blocks[-self.num_blocks :]):
            mask = None
            if annealing is not None and (all_predictions or annealing.active[i]):
                predictions.append(self.predict_masks(tokens, grid))
                masks = predictions[-1].mask_logits
                mask = annealing.mask(i, masks, grid, vit.num_prefix_tokens)
            tokens = vit.run_block(block, tokens, rotary, mask)
        return [*predictions, self.predict_masks(tokens, grid)]

    def predict_masks(self, tokens: Tensor, grid: tuple[int, int]) -> Prediction:
        """Tokens [queries | prefix | patches] (B, T, C) to the masks and classes they hold."""
        tokens = self.backbone.norm(tokens)
        sizes = (self.num_queries, self.backbone.num_prefix_tokens, grid[0] * grid[1])
        queries, _, patches = tokens.split(sizes, dim=1)
        pixels = self.upscale(patches.transpose(1, 2).unflatten(2, grid))
        return predict_masks(self.mask_head(queries), pixels, self.class_head(queries))
