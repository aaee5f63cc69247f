"""Names and shapes of an official Mask2Former on ResNet-50, by the list of its published files.

Those of the backbone are Detectron2's own; shapes follow from the sizes of the paper.
"""

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

Shapes = dict[str, tuple[int, ...]]


def official_shapes(num_classes=133, num_queries=100, dim=256, ffn=2048, layers=9) -> Shapes:
    """Everything in the file of a published model, "criterion.empty_weight" too."""
    shapes = {f"backbone.{name}": shape for name, shape in _resnet50().items()}
    pixel = "sem_seg_head.pixel_decoder."
    for i, channels in enumerate((2048, 1024, 512)):  # res5, res4, res3
        shapes[f"{pixel}input_proj.{i}.0.weight"] = (dim, channels, 1, 1)
        shapes[f"{pixel}input_proj.{i}.0.bias"] = (dim,)
        shapes |= _norm(f"{pixel}input_proj.{i}.1", dim)
    shapes[f"{pixel}transformer.level_embed"] = (3, dim)
    for i in range(6):
        layer = f"{pixel}transformer.encoder.layers.{i}."
        shapes |= _linear(f"{layer}self_attn.sampling_offsets", dim, 8 * 3 * 4 * 2)
        shapes |= _linear(f"{layer}self_attn.attention_weights", dim, 8 * 3 * 4)
        shapes |= _linear(f"{layer}self_attn.value_proj", dim, dim)
        shapes |= _linear(f"{layer}self_attn.output_proj", dim, dim)
        shapes |= _norm(f"{layer}norm1", dim) | _norm(f"{layer}norm2", dim)
        shapes |= _linear(f"{layer}linear1", dim, 4 * dim)
        shapes |= _linear(f"{layer}linear2", 4 * dim, dim)
    shapes[f"{pixel}adapter_1.weight"] = (dim, 256, 1, 1)
    shapes[f"{pixel}layer_1.weight"] = (dim, dim, 3, 3)
    shapes |= _norm(f"{pixel}adapter_1.norm", dim) | _norm(f"{pixel}layer_1.norm", dim)
    shapes[f"{pixel}mask_features.weight"] = (dim, dim, 1, 1)
    shapes[f"{pixel}mask_features.bias"] = (dim,)

    decoder = "sem_seg_head.predictor."
    for i in range(layers):
        for layer, attention in (
            (f"{decoder}transformer_self_attention_layers.{i}.", "self_attn"),
            (f"{decoder}transformer_cross_attention_layers.{i}.", "multihead_attn"),
        ):
            shapes[f"{layer}{attention}.in_proj_weight"] = (3 * dim, dim)
            shapes[f"{layer}{attention}.in_proj_bias"] = (3 * dim,)
            shapes |= _linear(f"{layer}{attention}.out_proj", dim, dim)
            shapes |= _norm(f"{layer}norm", dim)
        layer = f"{decoder}transformer_ffn_layers.{i}."
        shapes |= _linear(f"{layer}linear1", dim, ffn) | _linear(f"{layer}linear2", ffn, dim)
        shapes |= _norm(f"{layer}norm", dim)
    shapes |= _norm(f"{decoder}decoder_norm", dim)
    shapes[f"{decoder}query_feat.weight"] = (num_queries, dim)
    shapes[f"{decoder}query_embed.weight"] = (num_queries, dim)
    shapes[f"{decoder}level_embed.weight"] = (3, dim)
    shapes |= _linear(f"{decoder}class_embed", dim, num_classes + 1)
    for i in range(3):
        shapes |= _linear(f"{decoder}mask_embed.layers.{i}", dim, dim)
    shapes["criterion.empty_weight"] = (num_classes + 1,)
    return shapes


def older(weights: dict) -> dict:
    """The names of the first published files: no level for the pixel decoder, "static_query"."""
    return {
        name.replace("pixel_decoder.", "").replace("query_feat", "static_query"): value
        for name, value in weights.items()
    }


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _resnet50() -> Shapes:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    with torch.device("meta"):
        backbone = build_backbone(cfg)
    return {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
