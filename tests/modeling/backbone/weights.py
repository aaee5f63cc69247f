"""Weights for comparisons: random ones everywhere, and timm's under the names of our ViT."""

import torch
from torch import Tensor, nn


def perturb(module: nn.Module) -> nn.Module:
    """Random weights everywhere, of a size that shows mistakes.

    A fresh LayerScale of 1e-5 would hide broken blocks, and with weights as small as fresh ones
    attention would be nearly uniform and hide where patches think they are.
    """
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel()
            parameter.add_(noise * (1.2 / fan_in**0.5 if parameter.dim() == 2 else 0.2))
            if "gamma" in name or "lambda" in name:
                parameter.add_(0.5)
    return module


def renamed_from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of timm's DINOv3, EVA-02, DeiT III or plain ViT by the names of our ViT."""
    renamed = {}
    for name, tensor in state.items():
        block, _, leaf = name.rpartition(".attn.")
        if leaf == "q_proj.weight":  # EVA-02: a layer each for queries, keys and values
            thirds = [state[f"{block}.attn.{x}_proj.weight"] for x in "qkv"]
            renamed[f"{block}.attn.qkv.weight"] = torch.cat(thirds)
        elif leaf in ("q_proj.bias", "v_proj.bias"):
            renamed[f"{block}.attn.{leaf[0]}_bias"] = tensor
        elif leaf not in ("k_proj.weight", "v_proj.weight"):
            name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
            # EVA-02's final norm is called after the classifier in front of which it stands.
            renamed[name.replace("fc_norm.", "norm.")] = tensor
    return renamed


def without_class_position(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network with the position of the class token, the first one, in the token."""
    position = state["pos_embed"]
    token = state["cls_token"] + position[:, :1]
    return {**state, "cls_token": token, "pos_embed": position[:, 1:]}
