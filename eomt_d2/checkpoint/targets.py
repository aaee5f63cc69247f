"""Writing an EoMT for other projects: the official code, and transformers."""

import json
import os

import torch
from safetensors.torch import save
from torch import Tensor

from eomt_d2.errors import UserError
from eomt_d2.modeling import EoMT

from .atomic_file import AtomicFile
from .name_map import Rule, write_by_rules
from .name_tables import (
    COMMON_BLOCK,
    DINOV2_BLOCK,
    DINOV3_BLOCK,
    MLP,
    OFFICIAL_EOMT,
    OFFICIAL_EOMT_DINOV2,
    OFFICIAL_EOMT_DINOV3,
    SWIGLU,
    TRANSFORMERS_EOMT,
    TRANSFORMERS_EOMT_DINOV2,
    TRANSFORMERS_EOMT_DINOV3,
    prefixed,
)

__all__ = ["to_official", "to_transformers", "transformers_config", "write_transformers_folder"]

_KEY_BIAS = "backbone.blocks.0.attn.qkv.bias"
_GATED = "backbone.blocks.0.mlp.fc1.weight"


def to_official(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the official EoMT's ``LightningModule``, without its settings.

    Weights with a DINOv3 backbone are complete and no difference to it (the official code's
    ``delta_weights: False``).

    Args:
        weights: of an EoMT with a DINOv2 or DINOv3 backbone, by our names.

    Raises:
        UserError: if the official code has no place for a tensor.
    """
    rules = OFFICIAL_EOMT_DINOV2 if _KEY_BIAS in weights else OFFICIAL_EOMT_DINOV3
    renamed = _write(weights, [*OFFICIAL_EOMT, *rules], "The official EoMT")
    return {f"network.{name}": tensor for name, tensor in renamed.items()}


def to_transformers(weights: dict[str, Tensor], no_object_weight: float = 0.1) -> dict[str, Tensor]:
    """The state dict of ``EomtForUniversalSegmentation`` or ``EomtDinov3ForUniversalSegmentation``.

    Names are those of transformers 5; they are those of version 4 too, but for the giant.

    Args:
        weights: of an EoMT with a DINOv2 or DINOv3 backbone, by our names.
        no_object_weight: of the loss, which transformers keeps among its tensors.

    Raises:
        UserError: if transformers has no place for a tensor.
    """
    dinov2 = _KEY_BIAS in weights
    block = [*COMMON_BLOCK, *(DINOV2_BLOCK if dinov2 else DINOV3_BLOCK)]
    if dinov2:
        block += SWIGLU if _is_gated(weights) else MLP
    rules = [
        *TRANSFORMERS_EOMT,
        *(TRANSFORMERS_EOMT_DINOV2 if dinov2 else TRANSFORMERS_EOMT_DINOV3),
        *prefixed("layers.*", "backbone.blocks.*", block),
    ]
    renamed = _write(weights, rules, "transformers' EoMT")
    if not {"embeddings.register_tokens", "layers.0.layer_scale1.lambda1"} <= renamed.keys():
        raise UserError(
            "transformers' EoMT needs register tokens and LayerScale, which this one lacks; it "
            "knows EoMT with a DINOv2 or DINOv3 backbone only."
        )
    class_weights = torch.ones(len(weights["class_head.bias"]))
    class_weights[-1] = no_object_weight
    return {**renamed, "criterion.empty_weight": class_weights}


def transformers_config(model: EoMT, class_names: list[str], thing_ids: frozenset[int]) -> dict:
    """What ``config.json`` says about a model.

    Args:
        model: its sizes.
        class_names: K names, or none to number the classes.
        thing_ids: classes that are things; kept under a key of our own, for readers.
    """
    vit = model.backbone
    dinov3 = vit.pos_embed is None
    gated = _is_gated(model.state_dict())
    names = class_names or [f"LABEL_{i}" for i in range(model.num_classes)]
    config = {
        "architectures": [
            "EomtDinov3ForUniversalSegmentation" if dinov3 else "EomtForUniversalSegmentation"
        ],
        "model_type": "eomt_dinov3" if dinov3 else "eomt",
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": vit.blocks[0].attn.num_heads,
        "num_register_tokens": vit.num_prefix_tokens - 1,
        "patch_size": vit.patch_size,
        "image_size": model.image_size,
        "layer_norm_eps": vit.norm.eps,
        "num_blocks": model.num_blocks,
        "num_queries": model.query_embed.num_embeddings,
        "num_upscale_blocks": len(model.upscale),
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "thing_ids": sorted(thing_ids),
        "no_object_weight": model.criterion.no_object_weight,
        "class_weight": model.criterion.class_weight,
        "mask_weight": model.criterion.mask_weight,
        "dice_weight": model.criterion.dice_weight,
        "train_num_points": model.criterion.num_points,
    }
    rows = len(vit.state_dict()["blocks.0.mlp.fc1.weight"])
    if dinov3:
        config["intermediate_size"] = rows
        config["pos_embed_rescale"] = vit.rotary_rescale if vit.rotary_rescale != 1 else None
    else:
        config["use_swiglu_ffn"] = gated
        config["mlp_ratio"] = _mlp_ratio(vit.embed_dim, rows, gated)
    return config


def write_transformers_folder(folder: str, weights: dict[str, Tensor], config: dict) -> None:
    """Write ``model.safetensors`` and then ``config.json`` into a folder.

    Args:
        folder: is made if it does not exist.
        weights: see :func:`to_transformers`.
        config: see :func:`transformers_config`.
    """
    os.makedirs(folder, exist_ok=True)
    with AtomicFile(os.path.join(folder, "model.safetensors")) as file:
        file.write(save(weights, metadata={"format": "pt"}))
    with AtomicFile(os.path.join(folder, "config.json")) as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())


def _write(weights: dict[str, Tensor], rules: list[Rule], who: str) -> dict[str, Tensor]:
    renamed, rest = write_by_rules(weights, rules)
    if rest:
        raise UserError(
            f"{who} has no place for {', '.join(sorted(rest)[:3])}; it knows EoMT with a DINOv2 or "
            "DINOv3 backbone only."
        )
    return renamed


def _is_gated(weights: dict[str, Tensor]) -> bool:
    return len(weights[_GATED]) == 2 * weights[_GATED.replace("fc1", "fc2")].shape[1]


def _mlp_ratio(dim: int, rows: int, gated: bool) -> int:
    """transformers makes a gated network 2/3 as wide as the ratio says, rounded up to 8."""
    if not gated:
        return rows // dim
    width = rows // 2
    ratio = round(width * 3 / 2 / dim)
    if (int(ratio * dim * 2 / 3) + 7) // 8 * 8 != width:
        raise UserError(f"transformers' EoMT has no gated network of width {width} for {dim}.")
    return ratio
