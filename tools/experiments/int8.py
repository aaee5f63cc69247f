#!/usr/bin/env python
"""Experiment: would EoMT be faster with 8-bit integer products, and at what price?

pip install torchao
python tools/experiments/int8.py --config-file configs/coco/panoptic/eomt_small_640.yaml \
    MODEL.DEVICE cpu SOLVER.AMP.ENABLED False
python tools/experiments/int8.py --config-file configs/shapes/panoptic/eomt_tiny.yaml \
    --evaluate MODEL.WEIGHTS output/quickstart/train/model_final.pth

All linear layers take 8-bit weights (a scale per row) and 8-bit inputs (a scale per token, found
while running), by torchao; ``--fp8`` takes 8-bit floating point instead, which needs a GPU of
compute capability 8.9 or later. Beside it: bfloat16 by autocast. Printed are times by turns and,
with ``--evaluate``, the quality of a trained model. What was seen is in docs/performance.md.
"""

import argparse
import copy

import torch

from eomt_d2.benchmark.variants import compare_costs, compare_quality, load_finished_model
from eomt_d2.errors import UserError, exit_on_user_error


def main(args: argparse.Namespace) -> None:
    try:
        from torchao import quantization
    except ImportError as error:
        raise UserError("Quantisation needs torchao; install it: pip install torchao.") from error
    cfg, model = load_finished_model(args.config_file, args.opts, with_weights=args.evaluate)
    model.requires_grad_(False)
    device = model.device.type
    if args.fp8 and (device != "cuda" or torch.cuda.get_device_capability() < (8, 9)):
        raise UserError("--fp8 needs a GPU of compute capability 8.9 or later.")
    quantized = copy.deepcopy(model)
    if args.fp8:
        settings = quantization.Float8DynamicActivationFloat8WeightConfig()
    else:
        settings = quantization.Int8DynamicActivationInt8WeightConfig()
    quantization.quantize_(quantized, settings)
    compiled = torch.compile(quantized.predict)

    plain = model.predict

    def bfloat16(images):
        with torch.autocast(device, torch.bfloat16):
            return plain(images)

    name = "fp8" if args.fp8 else "int8"
    variants = {"bfloat16": bfloat16, name: quantized.predict, f"{name}, compiled": compiled}
    print(compare_costs(model, variants, args.repeats))
    if args.evaluate:
        variants.pop(f"{name}, compiled")
        print(compare_quality(cfg, model, variants))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="F")
    parser.add_argument("--fp8", action="store_true", help="8-bit floating point, on a GPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--evaluate", action="store_true", help="evaluate MODEL.WEIGHTS")
    parser.add_argument("opts", nargs="*", default=[], help="config keys and values")
    return parser.parse_args()


if __name__ == "__main__":
    with exit_on_user_error():
        main(parse_arguments())
