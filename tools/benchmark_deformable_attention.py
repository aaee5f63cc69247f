#!/usr/bin/env python
"""Time deformable attention: the Triton kernels against plain PyTorch, by turns in one process.

python tools/benchmark_deformable_attention.py                       # on a GPU
python tools/benchmark_deformable_attention.py --device cpu --size 320   # plain PyTorch alone

Forward, and forward with backward, at the sizes of the pixel decoder (every pixel of strides 8, 16
and 32 attends to all three). Beside the times: the bytes that have to move, each tensor once, and
the arithmetic, so that one sees how far from the machine's limits both are.
"""

import argparse
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eomt_d2.benchmark.spread import quantiles
from eomt_d2.benchmark.timing import TOTAL, Stopwatch, by_turns
from eomt_d2.errors import UserError, exit_on_user_error
from eomt_d2.modeling.ops import ms_deform_attn, ms_deform_attn_reference

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STRIDES, POINTS = (32, 16, 8), 4


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line says and print a table."""
    args = parse_arguments(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU here; add --device cpu for plain PyTorch alone.")
    if args.size % STRIDES[0]:
        raise UserError(f"--size is {args.size}; it must be a multiple of {STRIDES[0]}.")
    shapes = [(args.size // stride,) * 2 for stride in STRIDES]
    inputs = make_inputs(args, shapes)
    functions = {"plain PyTorch": ms_deform_attn_reference}
    if args.device == "cuda":
        functions["Triton"] = ms_deform_attn
    moved, operations = costs(*inputs)
    report = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "batch": args.batch,
        "size": args.size,
        "precision": args.precision,
    }
    print(" ".join(f"{key} {value}" for key, value in report.items()))
    print("| pass | implementation | ms, median | p10 | p90 | GB/s | GFLOP/s | times as fast |")
    print("|---|---|---|---|---|---|---|---|")
    for name, backward in (("forward", False), ("forward + backward", True)):
        factor = 3 if backward else 1  # the backward pass reads all again and writes gradients
        steps = {
            title: step(function, inputs, shapes, backward) for title, function in functions.items()
        }
        turns = by_turns(steps, args.device, args.repeats, warmup=5)
        times = {title: quantiles([turn[TOTAL] for turn in own]) for title, own in turns.items()}
        base = times["plain PyTorch"].median
        for title, (median, low, high) in times.items():
            print(
                f"| {name} | {title} | {median * 1e3:.3f} | {low * 1e3:.3f} | {high * 1e3:.3f} | "
                f"{factor * moved / median / 1e9:.3g} | {factor * operations / median / 1e9:.3g} | "
                f"{base / median:.2f} |"
            )
            report[f"{name}, {title}"] = {"median_s": median, "p10_s": low, "p90_s": high}
    if args.json:
        with open(args.json, "w") as file:
            json.dump(report, file, indent=2)
        print(f"Wrote {args.json}.")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; None takes the program's own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", type=int, default=640, help="side of the image in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--channels", type=int, default=32, help="per head")
    parser.add_argument("--precision", choices=DTYPES, default="float32")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--json", default="", help="also write the numbers to this file")
    return parser.parse_args(arguments)


def make_inputs(args: argparse.Namespace, shapes: list[tuple[int, int]]) -> tuple[Tensor, ...]:
    """Values, locations around each query's own pixel, and weights that sum up to 1."""
    torch.manual_seed(0)
    tokens, levels = sum(h * w for h, w in shapes), len(shapes)
    lead = (args.batch, tokens, args.heads)
    value = torch.randn(*lead, args.channels, device=args.device, dtype=DTYPES[args.precision])
    pixels = [torch.cartesian_prod(torch.arange(h), torch.arange(w)) + 0.5 for h, w in shapes]
    sides = [torch.tensor(shape).expand(len(p), 2) for shape, p in zip(shapes, pixels, strict=True)]
    centres = (torch.cat(pixels) / torch.cat(sides)).flip(-1).to(args.device)
    offsets = 0.05 * torch.randn(*lead, levels, POINTS, 2, device=args.device)
    locations = centres[None, :, None, None, None] + offsets
    weights = torch.rand(*lead, levels * POINTS, device=args.device).softmax(-1)
    weights = weights.unflatten(-1, (levels, POINTS)).to(value.dtype)
    return tuple(tensor.requires_grad_() for tensor in (value, locations, weights))


def costs(value: Tensor, locations: Tensor, weights: Tensor) -> tuple[int, int]:
    """Bytes and floating-point operations of one forward pass at least.

    Each input is read and the output written once. A point costs four multiply-accumulates per
    channel for the bilinear sample and one for its weight.
    """
    output = locations.shape[1] * value.shape[0] * value.shape[2] * value.shape[3]
    moved = sum(t.numel() * t.element_size() for t in (value, locations, weights))
    operations = 2 * 5 * weights.numel() * value.shape[3]
    return moved + output * value.element_size(), operations


def step(
    function: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    shapes: list[tuple[int, int]],
    backward: bool,
) -> Callable[[Stopwatch], None]:
    """One measured pass."""
    value, locations, weights = inputs

    def run(_: Stopwatch) -> None:
        with torch.set_grad_enabled(backward):
            output = function(value, shapes, locations, weights)
        if backward:
            torch.autograd.grad(output.float().sum(), inputs)

    return run


if __name__ == "__main__":
    with exit_on_user_error():
        main()
