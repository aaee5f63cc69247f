"""Named ViT sizes: the constructor arguments of :class:`~.vit.ViT`, as data.

Names are timm's. The patch size in a name is the one of the published file; the networks here use
``MODEL.VIT.PATCH_SIZE`` (16) and resample the patch embedding when they load such a file.
"""

__all__ = ["PRESETS"]

_DINOV2 = dict(num_registers=4, ffn="mlp", mlp_ratio=4.0, norm_eps=1e-6)
# Coordinates of rotary embeddings are rescaled by up to 2 in training, as in its recipe.
_DINOV3 = dict(
    num_registers=4,
    ffn="mlp",
    mlp_ratio=4.0,
    norm_eps=1e-5,
    position="rotary",
    rotary_rescale=2.0,
    key_bias=False,
)

# ``num_query_blocks`` is EoMT's number of final blocks that also see the queries (arXiv 2503.19108,
# section 4.1); it is read by the EoMT meta-architecture, not by the ViT.
PRESETS: dict[str, dict] = {
    "vit_small_patch14_reg4_dinov2": dict(
        _DINOV2, embed_dim=384, depth=12, num_heads=6, num_query_blocks=3
    ),
    "vit_base_patch14_reg4_dinov2": dict(
        _DINOV2, embed_dim=768, depth=12, num_heads=12, num_query_blocks=3
    ),
    "vit_large_patch14_reg4_dinov2": dict(
        _DINOV2, embed_dim=1024, depth=24, num_heads=16, num_query_blocks=4
    ),
    # Packed SwiGLU: fc1 gives 8192 = gate and up together, so the hidden width is 4096.
    "vit_giant_patch14_reg4_dinov2": dict(
        _DINOV2,
        embed_dim=1536,
        depth=40,
        num_heads=24,
        ffn="swiglu",
        mlp_ratio=8 / 3,
        num_query_blocks=5,
    ),
    "vit_small_patch16_dinov3": dict(
        _DINOV3, embed_dim=384, depth=12, num_heads=6, num_query_blocks=3
    ),
    "vit_base_patch16_dinov3": dict(
        _DINOV3, embed_dim=768, depth=12, num_heads=12, num_query_blocks=3
    ),
    "vit_large_patch16_dinov3": dict(
        _DINOV3, embed_dim=1024, depth=24, num_heads=16, num_query_blocks=4
    ),
}
