#!/usr/bin/env python
"""Parameters and GMACs of a config's network, by module and in total; a GMAC is 10^9
multiply-accumulates, which papers of this field call a GFLOP.

python tools/analyze_model.py --config-file configs/coco/panoptic/eomt_large_640.yaml
python tools/analyze_model.py --config-file F --size 640 960 --masked --depth 3
python tools/analyze_model.py --config-file F --json MODEL.VIT.NAME vit_base_patch14_reg4_dinov2

The network runs once on PyTorch's meta device, on one image: no GPU, no weights and next to no
memory are needed, whatever MODEL.DEVICE and MODEL.WEIGHTS say. No data either, but for the
annotation files that DATASETS.REGISTER takes the classes from.
"""

import argparse
import json

from eomt_d2.analysis import (
    build_meta_model,
    complexity_table,
    masked_when_finished,
    network_complexity,
)
from eomt_d2.engine import load_config
from eomt_d2.errors import UserError, exit_on_user_error

# Settings of the training machine must not matter here.
WITHOUT_DEVICE = ["MODEL.DEVICE", "meta", "SOLVER.AMP.ENABLED", "False"]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="F", help="path of the config")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="input in pixels (default: INPUT.IMAGE_SIZE squared; with window inference that is "
        "one window)",
    )
    parser.add_argument(
        "--masked",
        action="store_true",
        help="count masked attention in all its blocks, with the predictions it needs (default: "
        "as the finished model runs, which is annealed away unless "
        "MODEL.MASK_FORMER.MASK_ANNEALING.SCHEDULE is none)",
    )
    parser.add_argument(
        "--depth", type=int, default=2, help="levels of modules in the table (default: 2)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object instead: parameters, gmacs, modules (all of them: name -> "
        "parameters, gmacs), config, overrides, input (B, 3, H, W), masked "
        "(null where the model cannot switch it)",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, at the end"
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    if args.depth < 1:
        raise UserError(f"--depth is {args.depth}; it must be at least 1.")
    # An odd number of overrides is a mistake; load_config reports it with what was typed only.
    opts = args.opts if len(args.opts) % 2 else [*args.opts, *WITHOUT_DEVICE]
    cfg = load_config(argparse.Namespace(config_file=args.config_file, opts=opts))
    height, width = args.size or (cfg.INPUT.IMAGE_SIZE, cfg.INPUT.IMAGE_SIZE)
    model = build_meta_model(cfg)
    masked = True if args.masked else masked_when_finished(cfg, model)
    complexity = network_complexity(model, height, width, masked=masked)
    total = complexity[""]
    if args.json:
        print(
            json.dumps(
                {
                    "parameters": total.parameters,
                    "gmacs": total.macs / 1e9,
                    "modules": {
                        name: {"parameters": costs.parameters, "gmacs": costs.macs / 1e9}
                        for name, costs in complexity.items()
                        if name and any(costs)
                    },
                    "config": args.config_file,
                    "overrides": args.opts,
                    "input": [1, 3, height, width],
                    "masked": masked,
                }
            )
        )
        return
    attention = {None: "", True: ", masked attention", False: ", no masked attention"}[masked]
    print(f"{type(model).__name__} of {args.config_file}, 1 x 3 x {height} x {width}{attention}")
    print(complexity_table(complexity, args.depth))


if __name__ == "__main__":
    with exit_on_user_error():
        main(parse_args())
