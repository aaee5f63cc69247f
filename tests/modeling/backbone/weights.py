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
        leaf = name.rsplit(".", 1)[-1]
        if ".attn.q_proj.weight" in name:  # EVA-02: one layer each for queries, keys and values
            stem = name.removesuffix("q_proj.weight")
            thirds = [state[f"{stem}{x}_proj.weight"] for x in "qkv"]
            renamed[f"{stem}qkv.weight"] = torch.cat(thirds)
        elif ".attn.q_proj." in name or ".attn.v_proj.bias" in name:
            stem = name.removesuffix("_proj.bias")
            renamed[f"{stem}_bias"] = tensor
        elif "k_proj" in name or "v_proj" in name:
            assert leaf == "weight", name
        else:
            name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
            # Named so because its classifier averages the patches before it normalises.
            name = name.replace("fc_norm.", "norm.")
            renamed[name] = tensor
    return renamed


def without_class_position(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network with the position of the class token, the first one, in the token."""
    position = state["pos_embed"]
    token = state["cls_token"] + position[:, :1]
    return {**state, "cls_token": token, "pos_embed": position[:, 1:]}
