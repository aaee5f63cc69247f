"""What other projects call the tensors of their networks, as tables of rules.

Our names are timm's for a ViT, with ``backbone.`` in front in a whole model. Stars in the tables
are explained at :class:`~.name_map.Rule`.
"""

from collections.abc import Sequence

from .name_map import Rule, rule

__all__ = [
    "ANY_BLOCK",
    "COMMON_BLOCK",
    "DINOV2",
    "DINOV2_BLOCK",
    "DINOV3",
    "DINOV3_BLOCK",
    "MLP",
    "OFFICIAL_EOMT",
    "OFFICIAL_EOMT_DINOV2",
    "OFFICIAL_EOMT_DINOV3",
    "OFFICIAL_MASK2FORMER",
    "SWIGLU",
    "TIMM",
    "TRANSFORMERS_EOMT",
    "TRANSFORMERS_EOMT_DINOV2",
    "TRANSFORMERS_EOMT_DINOV3",
    "TRANSFORMERS_VIT",
    "prefixed",
]


def prefixed(theirs: str, ours: str, rules: Sequence[Rule]) -> list[Rule]:
    """Rules for the parts of a module, with the path of the module in front."""
    return [
        Rule(
            tuple(f"{theirs}.{name}" for name in rule.theirs),
            tuple(name and f"{ours}.{name}" for name in rule.ours),
            rule.batch_dim,
        )
        for rule in rules
    ]


# --- Blocks as transformers names them, also in DINOv3 (EoMT's official DINOv3 files use that).

_QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
COMMON_BLOCK = [
    rule("norm1.*", "norm1.*"),
    rule("norm2.*", "norm2.*"),
    rule([f"{name}.weight" for name in _QKV], "attn.qkv.weight"),
    rule("layer_scale1.lambda1", "ls1.gamma"),
    rule("layer_scale2.lambda1", "ls2.gamma"),
]
DINOV2_BLOCK = [
    rule([f"{name}.bias" for name in _QKV], "attn.qkv.bias"),
    rule("attention.out_proj.*", "attn.proj.*"),
]
MLP = [rule("mlp.fc1.*", "mlp.fc1.*"), rule("mlp.fc2.*", "mlp.fc2.*")]
SWIGLU = [
    rule(("mlp.gate_proj.*", "mlp.up_proj.*"), "mlp.fc1.*"),
    rule("mlp.down_proj.*", "mlp.fc2.*"),
]
# DINOv3's keys have no bias.
DINOV3_BLOCK = [
    rule("attention.q_proj.bias", "attn.q_bias"),
    rule("attention.v_proj.bias", "attn.v_bias"),
    rule("attention.o_proj.*", "attn.proj.*"),
    rule("mlp.up_proj.*", "mlp.fc1.*"),
    rule("mlp.down_proj.*", "mlp.fc2.*"),
]
# Version 4 of transformers: the giant's packed SwiGLU, and attention inside of attention.
_OLDER_BLOCK = [
    rule("mlp.weights_in.*", "mlp.fc1.*"),
    rule("mlp.weights_out.*", "mlp.fc2.*"),
    rule([f"attention.attention.{x}.*" for x in ("query", "key", "value")], "attn.qkv.*"),
    rule("attention.output.dense.*", "attn.proj.*"),
]
ANY_BLOCK = [*COMMON_BLOCK, *DINOV2_BLOCK, *MLP, *SWIGLU, *DINOV3_BLOCK, *_OLDER_BLOCK]

# --- EoMT in transformers: what DINOv2 and DINOv3 share, and what only one of them has.

TRANSFORMERS_EOMT = [
    rule("embeddings.cls_token", "backbone.cls_token"),
    rule("embeddings.register_tokens", "backbone.reg_token"),
    rule("layernorm.*", "backbone.norm.*"),
    rule("query.weight", "query_embed.weight"),
    rule("class_predictor.*", "class_head.*"),
    *[rule(f"mask_head.fc{i + 1}.*", f"mask_head.{2 * i}.*") for i in range(3)],
    rule("upscale_block.block.*.conv1.*", "upscale.*.conv1.*"),
    rule("upscale_block.block.*.conv2.*", "upscale.*.conv2.*"),
    rule("upscale_block.block.*.layernorm2d.*", "upscale.*.norm.*"),
    rule("attn_mask_probs", "mask_annealing.probs"),
]
TRANSFORMERS_EOMT_DINOV2 = [
    rule("embeddings.position_embeddings.weight", "backbone.pos_embed", batch_dim=True),
    rule("embeddings.patch_embeddings.projection.*", "backbone.patch_embed.proj.*"),
]
TRANSFORMERS_EOMT_DINOV3 = [
    rule("embeddings.patch_embeddings.*", "backbone.patch_embed.proj.*"),
]
# Backbones alone: Dinov2WithRegistersModel and DINOv3ViTModel.
TRANSFORMERS_VIT = [
    rule("embeddings.cls_token", "cls_token"),
    rule("embeddings.register_tokens", "reg_token"),
    rule("embeddings.position_embeddings", "pos_embed"),
    rule("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    rule("embeddings.patch_embeddings.*", "patch_embed.proj.*"),
    rule("layernorm.*", "norm.*"),
    rule("norm.*", "norm.*"),
    *prefixed("encoder.layer.*", "blocks.*", ANY_BLOCK),
    *prefixed("model.layer.*", "blocks.*", ANY_BLOCK),
    *prefixed("layer.*", "blocks.*", ANY_BLOCK),
]

# --- timm: our own names, but for these.

TIMM = [
    rule("blocks.*.gamma_1", "blocks.*.ls1.gamma"),
    rule("blocks.*.gamma_2", "blocks.*.ls2.gamma"),
    # EVA-02.
    rule([f"blocks.*.attn.{x}_proj.weight" for x in "qkv"], "blocks.*.attn.qkv.weight"),
    rule("blocks.*.attn.q_proj.bias", "blocks.*.attn.q_bias"),
    rule("blocks.*.attn.v_proj.bias", "blocks.*.attn.v_bias"),
    # Classifiers that average the patches call their final norm so.
    rule("fc_norm.*", "norm.*"),
]

# --- Official EoMT.

OFFICIAL_EOMT = [
    rule("q.weight", "query_embed.weight"),
    rule("class_head.*", "class_head.*"),
    rule("mask_head.*.*", "mask_head.*.*"),
    rule("upscale.**", "upscale.**"),
    rule("attn_mask_probs", "mask_annealing.probs"),
]
OFFICIAL_EOMT_DINOV3 = [
    rule("encoder.backbone.patch_embed.cls_token", "backbone.cls_token"),
    rule("encoder.backbone.patch_embed.register_tokens", "backbone.reg_token"),
    rule("encoder.backbone.patch_embed.patch_embeddings.*", "backbone.patch_embed.proj.*"),
    rule("encoder.backbone.norm.*", "backbone.norm.*"),
    *prefixed("encoder.backbone.blocks.*", "backbone.blocks.*", COMMON_BLOCK),
    *prefixed("encoder.backbone.blocks.*", "backbone.blocks.*", DINOV3_BLOCK),
]
# All other files hold timm's ViT under timm's names.
OFFICIAL_EOMT_DINOV2 = [rule("encoder.backbone.**", "backbone.**")]

# --- Official Mask2Former. Its backbones are Detectron2's, under Detectron2's names.

_PIXEL_DECODER = [
    # Projections and levels are counted from the coarsest map (res5) on both sides.
    rule("input_proj.*.*.*", "input_proj.*.*.*"),
    rule("transformer.level_embed", "level_embed"),
    rule("transformer.encoder.layers.*.**", "layers.*.**"),
    rule("adapter_1.**", "lateral.**"),
    rule("layer_1.**", "output.**"),
    rule("mask_features.*", "mask_features.*"),
]
_MASK_DECODER = [
    rule("transformer_cross_attention_layers.*.multihead_attn.**", "layers.*.cross_attn.**"),
    rule("transformer_cross_attention_layers.*.norm.*", "layers.*.norm1.*"),
    rule("transformer_self_attention_layers.*.self_attn.**", "layers.*.self_attn.**"),
    rule("transformer_self_attention_layers.*.norm.*", "layers.*.norm2.*"),
    rule("transformer_ffn_layers.*.linear1.*", "layers.*.linear1.*"),
    rule("transformer_ffn_layers.*.linear2.*", "layers.*.linear2.*"),
    rule("transformer_ffn_layers.*.norm.*", "layers.*.norm3.*"),
    rule("decoder_norm.*", "norm.*"),
    rule("query_feat.weight", "query_feat.weight"),
    rule("static_query.weight", "query_feat.weight"),
    rule("query_embed.weight", "query_embed.weight"),
    rule("level_embed.weight", "level_embed.weight"),
    rule("class_embed.*", "class_head.*"),
    *[rule(f"mask_embed.layers.{i}.*", f"mask_head.{2 * i}.*") for i in range(3)],
]
OFFICIAL_MASK2FORMER = [
    *prefixed("sem_seg_head.predictor", "decoder", _MASK_DECODER),
    *prefixed("sem_seg_head.pixel_decoder", "pixel_decoder", _PIXEL_DECODER),
    # The first files have no level for the pixel decoder.
    *prefixed("sem_seg_head", "pixel_decoder", _PIXEL_DECODER),
]

# --- Vision Transformers alone, as published by their authors.

DINOV2 = [
    rule("register_tokens", "reg_token"),
    # Packed SwiGLU of the giant, gate first.
    rule("blocks.*.mlp.w12.*", "blocks.*.mlp.fc1.*"),
    rule("blocks.*.mlp.w3.*", "blocks.*.mlp.fc2.*"),
]
DINOV3 = [
    rule("storage_tokens", "reg_token"),
    # The keys' part is masked with zeros when it is used.
    rule("blocks.*.attn.qkv.bias", ("blocks.*.attn.q_bias", None, "blocks.*.attn.v_bias")),
]
