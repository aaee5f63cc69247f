"""Parameters and multiply-accumulates (MACs) of a network, module by module.

Counted are the multiply-accumulates of matrix products, convolutions (transposed ones too) and both
products of attention. Everything else is free: normalisation, activations, softmax, resizing,
sampling, additions. 1 GMAC is 1e9 of them; papers of this field call it a "GFLOP".

Where published numbers differ, it is by what they add. The EoMT paper (arXiv 2503.19108) prints
669 GFLOPs for ViT-L at 640 pixels, and 828 with masked attention; here they are 668.0 and 827.0.
Its counter, fvcore, adds five operations per element of a LayerNorm and four per output element of
a bilinear resize: 0.6 and 1.3 GMAC.

PyTorch's own counter does the work, not fvcore's: fvcore traces the network, which fails on the
meta device, so counting a ViT-g would need its weights in memory and its 2.3 TMAC done.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from eomt_d2.errors import UserError
from eomt_d2.modeling import MaskClassificationModel

__all__ = ["Complexity", "count_macs", "count_parameters", "network_complexity"]


class Complexity(NamedTuple):
    """What a module and all modules inside it cost for one input.

    Attributes:
        parameters: number of parameters; one that several modules share counts once, in the first.
        macs: multiply-accumulates.
    """

    parameters: int
    macs: int


def network_complexity(
    model: nn.Module, height: int, width: int, *, masked: bool | None = None
) -> dict[str, Complexity]:
    """Count a network on one image, as it is in inference.

    For a model that classifies masks that is ``predict``, so neither the preparation of the image
    nor the post-processing is part of it; for another Detectron2 architecture it is ``forward``.
    The network does run, on the device of its parameters: on "meta"
    (:func:`~eomt_d2.analysis.build_meta_model`) that costs neither memory nor arithmetic.

    Args:
        model: a meta-architecture; it keeps the masking probabilities that ``masked`` sets.
        height: of the input, in pixels.
        width: of the input, in pixels.
        masked: True counts masked attention in every block that can mask, with the predictions it
            needs; False counts it annealed away; None takes the model as it is.

    Returns:
        The costs of every module by its name in ``model.named_modules()``; "" is the whole model.

    Raises:
        UserError: if the size does not suit the network, if there is no masked attention to set,
            or if what is computed depends on the content of the image (detectors that crop
            proposals, for example), so that the shape of the input does not say it.
    """
    step = model.size_divisibility if isinstance(model, MaskClassificationModel) else 1
    _check_size(height, width, step)
    if masked is not None:
        _set_masked(model, masked)
    image = torch.zeros(3, height, width, device=next(model.parameters()).device)

    def run() -> object:
        if isinstance(model, MaskClassificationModel):
            return model.predict(image[None])
        return model([{"image": image, "height": height, "width": width}])

    try:
        with _inference(model):
            own_macs = count_macs(model, run)
    except RuntimeError as error:
        # So does PyTorch say that an operation needs values, which the meta device does not have.
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"{type(model).__name__} cannot be counted for {height} x {width} pixels: what it "
            "computes depends on the content of an image, or does not work at this size "
            f"({reason}); tools/analyze_model.py of Detectron2's repository counts on real images."
        ) from error
    parameters, macs = _with_submodules(count_parameters(model)), _with_submodules(own_macs)
    return {name: Complexity(parameters[name], macs[name]) for name, _ in model.named_modules()}


def count_parameters(model: nn.Module) -> Counter[str]:
    """Parameters that each module holds itself, without its submodules, by module name."""
    own: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        own[name.rpartition(".")[0]] += parameter.numel()
    return own


def count_macs(model: nn.Module, run: Callable[[], object]) -> Counter[str]:
    """Multiply-accumulates done while ``run`` uses ``model``.

    Args:
        model: whose modules the work is attributed to.
        run: calls the model or some of its modules.

    Returns:
        By module name, what each module does itself, without the modules that it calls. What
        ``run`` does outside of all modules is under "".
    """
    counter = FlopCounterMode(display=False)
    own: Counter[str] = Counter()
    active, attributed = [""], 0

    def attribute() -> None:
        nonlocal attributed
        total = counter.get_total_flops()
        # The counter takes a multiply-accumulate for two operations.
        own[active[-1]] += (total - attributed) // 2
        attributed = total

    def enter(name: str) -> None:
        attribute()
        active.append(name)

    def leave() -> None:
        attribute()
        active.pop()

    # PyTorch's counter can name modules too, but adds up along the calls: a backbone whose parts
    # are called one by one, as EoMT does, would have nothing.
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        handles.append(module.register_forward_hook(lambda *_: leave()))
    try:
        with _unfused_attention(), counter:
            run()
            attribute()
    finally:
        for handle in handles:
            handle.remove()
    return own


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Attention as two matrix products, which the counter knows everywhere; as one fused operation,
    it does not know it on a CPU, and ``nn.MultiheadAttention`` as one nowhere."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards all is as it was."""
    training = model.training
    # PyTorch's counter fails on a parameter that is the input of a module, if it could train.
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        for parameter in trainable:
            parameter.requires_grad_(True)


def _with_submodules(own: Mapping[str, int]) -> Counter[str]:
    """Numbers of modules alone to numbers of modules with all that is inside them."""
    total: Counter[str] = Counter()
    for name, number in own.items():
        total[""] += number
        while name:
            total[name] += number
            name = name.rpartition(".")[0]
    return total


def _set_masked(model: nn.Module, masked: bool) -> None:
    annealing = getattr(model, "mask_annealing", None)
    if annealing is not None:
        annealing.set_probs([float(masked)] * annealing.num_blocks)
    elif masked:
        raise UserError(
            f"This {type(model).__name__} has no masked attention to switch on; count it without "
            "--masked (an EoMT has it unless MODEL.EOMT.MASKED_ATTENTION is False)."
        )


def _check_size(height: int, width: int, step: int) -> None:
    if height < 1 or width < 1 or height % step or width % step:
        nearest = [max(step, round(side / step) * step) for side in (height, width)]
        raise UserError(
            f"An input of {height} x {width} pixels does not fit this network, which takes "
            f"multiples of {step}; choose {nearest[0]} x {nearest[1]}, for example."
        )
