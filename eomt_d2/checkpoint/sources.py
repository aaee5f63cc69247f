"""What the tensors of other projects are called, and how to tell whose a file is.

Our names are timm's for a ViT, with ``backbone.`` in front in a whole model. Stars in the tables
are explained at :class:`~.name_map.Rule`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eomt_d2.errors import UserError

from .name_map import Rule, is_any_of, read_by_rules, rule

__all__ = [
    "SOURCES",
    "Source",
    "detect_source",
    "prefixed",
    "rename_to_ours",
    "without_wrappers",
]


class Source(NamedTuple):
    """A naming scheme of weights.

    Attributes:
        title: for messages, with its article where it needs one.
        is_own: whether (clean) names are of this scheme.
        rules: from its names to ours; names that no rule takes stay as they are.
        ignored: names, with stars, that say nothing about the network.
    """

    title: str
    is_own: Callable[[set[str]], bool]
    rules: Sequence[Rule] = ()
    ignored: tuple[str, ...] = ()


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
_ANY_BLOCK = [*COMMON_BLOCK, *DINOV2_BLOCK, *MLP, *SWIGLU, *DINOV3_BLOCK, *_OLDER_BLOCK]

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
_TRANSFORMERS_VIT = [
    rule("embeddings.cls_token", "cls_token"),
    rule("embeddings.register_tokens", "reg_token"),
    rule("embeddings.position_embeddings", "pos_embed"),
    rule("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    rule("embeddings.patch_embeddings.*", "patch_embed.proj.*"),
    rule("layernorm.*", "norm.*"),
    rule("norm.*", "norm.*"),
    *prefixed("encoder.layer.*", "blocks.*", _ANY_BLOCK),
    *prefixed("model.layer.*", "blocks.*", _ANY_BLOCK),
    *prefixed("layer.*", "blocks.*", _ANY_BLOCK),
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

_DINOV2 = [
    rule("register_tokens", "reg_token"),
    # Packed SwiGLU of the giant, gate first.
    rule("blocks.*.mlp.w12.*", "blocks.*.mlp.fc1.*"),
    rule("blocks.*.mlp.w3.*", "blocks.*.mlp.fc2.*"),
]
_DINOV3 = [
    rule("storage_tokens", "reg_token"),
    # The keys' part is masked with zeros when it is used.
    rule("blocks.*.attn.qkv.bias", ("blocks.*.attn.q_bias", None, "blocks.*.attn.v_bias")),
]

# What ``--source`` can name, the most specific first; a project may use several schemes.
SOURCES: dict[str, tuple[Source, ...]] = {
    "eomt": (
        Source(
            "an official EoMT",
            lambda names: any(name.startswith("encoder.backbone.") for name in names),
            [
                *OFFICIAL_EOMT,
                *OFFICIAL_EOMT_DINOV3,
                *prefixed("encoder.backbone", "backbone", TIMM),
                *OFFICIAL_EOMT_DINOV2,
            ],
            ("encoder.pixel_*", "criterion.**"),
        ),
    ),
    "transformers": (
        Source(
            "an EoMT of transformers",
            lambda names: {"embeddings.cls_token", "class_predictor.weight"} <= names,
            [
                *TRANSFORMERS_EOMT,
                *TRANSFORMERS_EOMT_DINOV2,
                *TRANSFORMERS_EOMT_DINOV3,
                *prefixed("layers.*", "backbone.blocks.*", _ANY_BLOCK),
            ],
            ("criterion.**",),
        ),
        Source(
            "a ViT of transformers",
            lambda names: "embeddings.cls_token" in names,
            _TRANSFORMERS_VIT,
            ("embeddings.mask_token", "rope_embeddings.**"),
        ),
    ),
    "dinov3": (
        Source(
            "DINOv3's ViT",
            lambda names: {"storage_tokens", "patch_embed.proj.weight"} <= names,
            _DINOV3,
            ("mask_token", "rope_embed.**", "blocks.*.attn.qkv.bias_mask"),
        ),
    ),
    "dinov2": (
        Source(
            "DINOv2's ViT",
            lambda names: {"mask_token", "patch_embed.proj.weight", "norm.weight"} <= names,
            _DINOV2,
            ("mask_token",),
        ),
    ),
    "timm": (
        Source(
            "a ViT of timm",
            lambda names: {"patch_embed.proj.weight", "blocks.0.norm1.weight"} <= names,
            TIMM,
            ("head.**", "head_dist.**", "mask_token", "rope.**", "blocks.*.attn.k_bias"),
        ),
    ),
    "mask2former": (
        Source(
            "an official Mask2Former",
            lambda names: (
                "sem_seg_head.predictor.transformer_cross_attention_layers.0.norm.weight" in names
            ),
            OFFICIAL_MASK2FORMER,
            ("criterion.**", "pixel_mean", "pixel_std"),
        ),
    ),
    "eomt_d2": (
        Source(
            "a model of eomt_d2",
            lambda names: any(name.startswith("backbone.") for name in names),
        ),
    ),
}


def detect_source(names: set[str]) -> str | None:
    """The key of :data:`SOURCES` whose scheme (clean) names follow, or None."""
    for key, schemes in SOURCES.items():
        if any(scheme.is_own(names) for scheme in schemes):
            return key
    return None


def without_wrappers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take DDP's, torch.compile's and Lightning's additions out of the names.

    Args:
        weights: names may start with ``module.`` (if all do) or ``network.``, and hold
            ``_orig_mod.`` anywhere.
    """
    weights = {name.replace("_orig_mod.", ""): tensor for name, tensor in weights.items()}
    if weights and all(name.startswith("module.") for name in weights):
        return without_wrappers({k.removeprefix("module."): v for k, v in weights.items()})
    return {name.removeprefix("network."): tensor for name, tensor in weights.items()}


def rename_to_ours(
    weights: dict[str, Tensor], source: str = "auto"
) -> tuple[dict[str, Tensor], str]:
    """Give tensors of any known project the names that they have in this one.

    Args:
        weights: as a file holds them; wrappers may be left in the names.
        source: a key of :data:`SOURCES`, or "auto" to go by the names.

    Returns:
        The tensors, and what they were, such as "a ViT of timm". A ViT alone has timm's names
        without a prefix. Names that are unknown stay as they are.

    Raises:
        UserError: if the names are not of the given source, or tensors do not have the shapes that
            their names promise.
    """
    weights = without_wrappers(weights)
    names = set(weights)
    found = detect_source(names)
    if source == "auto" and found is None:
        return weights, "a model with names of its own"
    key = found if source == "auto" else source
    scheme = next((scheme for scheme in SOURCES[key] if scheme.is_own(names)), None)
    if scheme is None:
        looks = SOURCES[found][0].title if found else "something unknown"
        example = ", ".join(sorted(names)[:3])
        raise UserError(
            f"The weights are not those of {SOURCES[key][0].title}: they look like {looks}, with "
            f"names such as {example}; leave the source to be found by itself (auto)."
        )
    known = {n: tensor for n, tensor in weights.items() if not is_any_of(n, scheme.ignored)}
    try:
        renamed, rest = read_by_rules(known, scheme.rules)
    except ValueError as error:
        raise UserError(f"The weights have the names of {scheme.title}, but: {error}") from error
    renamed.update({name: tensor for name, tensor in rest.items() if name not in renamed})
    if key == "timm":
        _add_zero_biases(renamed)
    if key == "mask2former":
        _add_masks(renamed)
    return renamed, scheme.title


def _add_masks(weights: dict[str, Tensor]) -> None:
    """The official network has no probabilities: each of its layers masks always."""
    layers = [name for name in weights if is_any_of(name, ["decoder.layers.*.norm1.weight"])]
    weights["mask_annealing.probs"] = torch.ones(len(layers))


def _add_zero_biases(weights: dict[str, Tensor]) -> None:
    """timm publishes DINOv3 without the biases of queries and values where all are zero."""
    suffix = "attn.qkv.weight"
    blocks = [name.removesuffix(suffix) for name in weights if name.endswith(suffix)]
    if any(f"{block}attn.{bias}" in weights for block in blocks for bias in ("qkv.bias", "q_bias")):
        return
    for block in blocks:
        weight = weights[block + suffix]
        for bias in ("q_bias", "v_bias"):
            weights[f"{block}attn.{bias}"] = torch.zeros(len(weight) // 3, dtype=weight.dtype)
