"""How to tell whose a file of weights is, and giving its tensors our names."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eomt_d2.errors import UserError

from .name_map import Rule, is_any_of, read_by_rules
from .name_tables import (
    ANY_BLOCK,
    DINOV2,
    DINOV3,
    OFFICIAL_EOMT,
    OFFICIAL_EOMT_DINOV2,
    OFFICIAL_EOMT_DINOV3,
    OFFICIAL_MASK2FORMER,
    TIMM,
    TRANSFORMERS_EOMT,
    TRANSFORMERS_EOMT_DINOV2,
    TRANSFORMERS_EOMT_DINOV3,
    TRANSFORMERS_VIT,
    prefixed,
)

__all__ = [
    "SOURCES",
    "Source",
    "detect_source",
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
                *prefixed("layers.*", "backbone.blocks.*", ANY_BLOCK),
            ],
            ("criterion.**",),
        ),
        Source(
            "a ViT of transformers",
            lambda names: "embeddings.cls_token" in names,
            TRANSFORMERS_VIT,
            ("embeddings.mask_token", "rope_embeddings.**"),
        ),
    ),
    "dinov3": (
        Source(
            "DINOv3's ViT",
            lambda names: {"storage_tokens", "patch_embed.proj.weight"} <= names,
            DINOV3,
            ("mask_token", "rope_embed.**", "blocks.*.attn.qkv.bias_mask"),
        ),
    ),
    "dinov2": (
        Source(
            "DINOv2's ViT",
            lambda names: {"mask_token", "patch_embed.proj.weight", "norm.weight"} <= names,
            DINOV2,
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
