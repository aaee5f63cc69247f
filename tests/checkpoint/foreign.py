"""Weights as other projects name them: from their packages, or by names they are known to have."""

import torch
from transformers import (
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
)

from eomt_d2.modeling import EoMT, ViT
from eomt_d2.modeling.criterion import MaskClassificationCriterion
from eomt_d2.modeling.matcher import HungarianMatcher
from eomt_d2.modeling.postprocessing import PostProcessing

DIM, DEPTH, HEADS, QUERIES, BLOCKS, CLASSES, SIZE = 32, 3, 4, 7, 2, 5, 64
VITS = {
    "dinov2": dict(),
    "giant": dict(ffn="swiglu", mlp_ratio=88 / 32),
    "dinov3": dict(position="rotary", key_bias=False, norm_eps=1e-5),
}


def our_eomt(kind: str, **kwargs) -> EoMT:
    """A tiny EoMT whose ViT is like DINOv2, its giant, or DINOv3."""
    args = dict(num_queries=QUERIES, num_blocks=BLOCKS, num_classes=CLASSES, image_size=SIZE)
    args.update(kwargs)
    return EoMT(
        backbone=ViT(
            embed_dim=DIM, depth=DEPTH, num_heads=HEADS, img_size=args["image_size"], **VITS[kind]
        ),
        criterion=MaskClassificationCriterion(
            num_classes=args["num_classes"], matcher=HungarianMatcher()
        ),
        postprocessing=PostProcessing(panoptic_on=True, thing_ids={0, 1}),
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
        **args,
    ).eval()


def perturb(model, seed=3):
    """Random values everywhere, and masks annealed away."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.3 if parameter.dim() == 1 else 0.08))
    return model.eval()


def transformers_eomt(kind: str, **kwargs):
    """The same network in transformers, finished (annealed)."""
    args = dict(
        hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=SIZE,
        num_queries=QUERIES, num_blocks=BLOCKS, num_labels=CLASSES, **kwargs,
    )  # fmt: skip
    if kind == "dinov3":
        config = EomtDinov3Config(
            intermediate_size=4 * DIM, num_register_tokens=4, layer_norm_eps=1e-5, **args
        )
        model = EomtDinov3ForUniversalSegmentation(config)
    else:
        model = EomtForUniversalSegmentation(EomtConfig(use_swiglu_ffn=kind == "giant", **args))
    perturb(model)
    model.attn_mask_probs.zero_()
    return model


def official_eomt(kind: str) -> dict[str, torch.Tensor]:
    """The state dict of an official file, by the names that published files have.

    Random tensors; the shapes follow from the sizes of the network.
    """
    shapes = {
        "q.weight": (QUERIES, DIM),
        "attn_mask_probs": (BLOCKS,),
        "class_head.weight": (CLASSES + 1, DIM),
        "class_head.bias": (CLASSES + 1,),
        "criterion.empty_weight": (CLASSES + 1,),
        "encoder.pixel_mean": (1, 3, 1, 1),
        "encoder.pixel_std": (1, 3, 1, 1),
    }
    for i in (0, 2, 4):
        shapes |= {f"mask_head.{i}.weight": (DIM, DIM), f"mask_head.{i}.bias": (DIM,)}
    for i in range(2):
        shapes |= {
            f"upscale.{i}.conv1.weight": (DIM, DIM, 2, 2),
            f"upscale.{i}.conv1.bias": (DIM,),
            f"upscale.{i}.conv2.weight": (DIM, 1, 3, 3),
            f"upscale.{i}.norm.weight": (DIM,),
            f"upscale.{i}.norm.bias": (DIM,),
        }
    backbone = _dinov3_shapes() if kind == "dinov3" else _timm_shapes(kind)
    shapes |= {f"encoder.backbone.{name}": shape for name, shape in backbone.items()}
    generator = torch.Generator().manual_seed(5)
    weights = {n: 0.2 * torch.randn(s, generator=generator) for n, s in shapes.items()}
    weights["attn_mask_probs"] = torch.zeros(BLOCKS)
    return weights


def _timm_shapes(kind: str) -> dict[str, tuple[int, ...]]:
    import timm.layers
    from timm.models.vision_transformer import VisionTransformer

    args = dict(mlp_ratio=2 * 88 / 32, mlp_layer=timm.layers.SwiGLUPacked)
    oracle = VisionTransformer(
        img_size=SIZE, patch_size=16, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, reg_tokens=4,
        no_embed_class=True, init_values=1.0, num_classes=0, global_pool="",
        **(args if kind == "giant" else {}),
    )  # fmt: skip
    return {name: tuple(tensor.shape) for name, tensor in oracle.state_dict().items()}


def _dinov3_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {
        "norm.weight": (DIM,),
        "norm.bias": (DIM,),
        "patch_embed.cls_token": (1, 1, DIM),
        "patch_embed.register_tokens": (1, 4, DIM),
        "patch_embed.patch_embeddings.weight": (DIM, 3, 16, 16),
        "patch_embed.patch_embeddings.bias": (DIM,),
    }
    for i in range(DEPTH):
        leaves = {
            "attention.k_proj.weight": (DIM, DIM),
            "layer_scale1.lambda1": (DIM,),
            "layer_scale2.lambda1": (DIM,),
            "mlp.up_proj.weight": (4 * DIM, DIM),
            "mlp.up_proj.bias": (4 * DIM,),
            "mlp.down_proj.weight": (DIM, 4 * DIM),
            "mlp.down_proj.bias": (DIM,),
        }
        for name in ("norm1", "norm2"):
            leaves |= {f"{name}.weight": (DIM,), f"{name}.bias": (DIM,)}
        for name in ("q_proj", "v_proj", "o_proj"):
            leaves |= {f"attention.{name}.weight": (DIM, DIM), f"attention.{name}.bias": (DIM,)}
        shapes |= {f"blocks.{i}.{leaf}": shape for leaf, shape in leaves.items()}
    return shapes
