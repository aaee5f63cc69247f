"""Named ViT sizes: the constructor arguments of :class:`~.vit.ViT`, as data.

Names are timm's architectures; the pre-trained file of one has a tag after it, such as
``deit3_large_patch16_384.fb_in1k``. The patch and image size in a name are those of that file; the
networks here use ``MODEL.VIT.PATCH_SIZE`` (16), and patch and position embedding are resampled when
such a file is loaded.

Pre-trainings saw images normalised by ImageNet's mean and standard deviation, the defaults of
``MODEL.PIXEL_MEAN`` and ``PIXEL_STD``, where a comment does not say otherwise.
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
# Supervised on ImageNet-21K (arXiv 2106.10270), without LayerScale.
# MODEL.PIXEL_MEAN and PIXEL_STD: 127.5 for each channel (mean and std 0.5 of pixels in [0, 1]).
_AUGREG = dict(num_registers=0, ffn="mlp", mlp_ratio=4.0, norm_eps=1e-6, layer_scale_init=0.0)
# Supervised on ImageNet-1K (arXiv 2204.07118).
_DEIT3 = dict(num_registers=0, ffn="mlp", mlp_ratio=4.0, norm_eps=1e-6, layer_scale_init=1e-6)
# Masked image modelling with features of CLIP as targets (arXiv 2303.11331).
# MODEL.PIXEL_MEAN: 122.771, 116.746, 104.094; PIXEL_STD: 68.501, 66.632, 70.323 (OpenAI CLIP's).
_EVA02 = dict(
    num_registers=0,
    ffn="swiglu_subln",
    norm_eps=1e-6,
    position="eva02",
    key_bias=False,
    layer_scale_init=0.0,
)

_BASE = dict(embed_dim=768, depth=12, num_heads=12, num_query_blocks=3)
_LARGE = dict(embed_dim=1024, depth=24, num_heads=16, num_query_blocks=4)

# ``num_query_blocks`` is EoMT's number of final blocks that also see the queries (arXiv 2503.19108,
# section 4.1); it is read by the EoMT meta-architecture, not by the ViT.
PRESETS: dict[str, dict] = {
    "vit_small_patch14_reg4_dinov2": dict(
        _DINOV2, embed_dim=384, depth=12, num_heads=6, num_query_blocks=3
    ),
    "vit_base_patch14_reg4_dinov2": {**_DINOV2, **_BASE},
    "vit_large_patch14_reg4_dinov2": {**_DINOV2, **_LARGE},
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
    "vit_base_patch16_dinov3": {**_DINOV3, **_BASE},
    "vit_large_patch16_dinov3": {**_DINOV3, **_LARGE},
    "vit_base_patch16_224": {**_AUGREG, **_BASE},
    "vit_large_patch16_224": {**_AUGREG, **_LARGE},
    "deit3_base_patch16_384": {**_DEIT3, **_BASE},
    "deit3_large_patch16_384": {**_DEIT3, **_LARGE},
    # The hidden width is 8/3 of the width, rounded down: 2048 and 2730.
    "eva02_base_patch14_448": {**_EVA02, **_BASE, "mlp_ratio": 2048 / 768},
    "eva02_large_patch14_448": {**_EVA02, **_LARGE, "mlp_ratio": 2730 / 1024},
}
