#!/usr/bin/env python
"""Speed, memory, parameters and GMACs of any number of models, side by side in one process.

python tools/benchmark.py --config-file A.yaml --config-file B.yaml --output DIR
python tools/benchmark.py --config-file A.yaml --against transformers --precision bfloat16 \\
    --original-size 480x640 1333x2000 --output DIR
python tools/benchmark.py --config-file A.yaml --mode train --batch 4 --output DIR
python tools/benchmark.py --config-file A.yaml --sizes 320 640 960 1280 --output DIR
python tools/benchmark.py --config-file A.yaml --device cpu --threads 2 --sizes 320 --output DIR

The models take turns (A B A B ...) after a warm-up, timed by the GPU's own clock or on a CPU by the
system's, and are compared with the first one turn by turn. Inference: preparation, network,
post-processing, and end to end, from uint8 images on the device to results of the original size.
Training: forward, loss, backward and optimizer of the trainer's own step, with the optimizer,
clipping and precision of the config.

Weights are random and no data is needed. As random weights find nothing, a made-up scene takes the
place of every network's predictions before post-processing: --active-queries of the queries are
sure of a class and own a region, the others are sure that there is no object.

Several values of --sizes, --batch, --queries or --original-size span a grid, each combination is
measured, and a picture is drawn over each of them.

Writes benchmark.json (all times of all turns), benchmark.md and benchmark.png to --output, and
curve_<what>.png for what is varied; JSON and Markdown after each combination.
"""

import argparse
import re
import sys
from collections.abc import Sequence

import torch

from eomt_d2.benchmark import (
    Settings,
    check,
    grid,
    load_models,
    make_folder,
    measure,
    new_report,
    write_pictures,
    write_report,
)
from eomt_d2.benchmark.tables import markdown, point_title
from eomt_d2.errors import UserError, exit_on_user_error
from eomt_d2.modeling.compilation import COMPILE_MODES

_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line says, write the report and print its tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse_arguments(arguments)
    settings = Settings(
        mode=args.mode,
        device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        precision=args.precision,
        compile=args.compile,
        against_transformers=args.against == "transformers",
        repeats=args.repeats,
        warmup=args.warmup,
        active_queries=args.active_queries,
        segments=args.segments,
        masked=args.masked,
    )
    settings.check()
    if args.threads is not None:
        if args.threads < 1:
            raise UserError(f"--threads is {args.threads}; it must be at least 1.")
        torch.set_num_threads(args.threads)
    points = grid(args.sizes, args.batch, args.queries, _original_sizes(args))
    models = load_models(args.config_file, args.opts, settings)
    check(models, points, settings)
    make_folder(args.output)
    report = new_report(settings, ["tools/benchmark.py", *arguments])
    try:
        for number, point in enumerate(points, start=1):
            words = point_title(point._asdict())
            print(f"[{number}/{len(points)}] {words}", file=sys.stderr, flush=True)
            report["results"].append(measure(models, point, settings))
            write_report(report, args.output)
    finally:
        pictures = write_pictures(report, args.output)
    print(markdown(report))
    print(f"Wrote benchmark.json, benchmark.md and {len(pictures)} pictures to {args.output}.")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; ``opts`` are the words from the first config key on."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--config-file",
        action="append",
        required=True,
        metavar="F",
        help="path of a config; once for each model, the first is what the others are compared "
        "with",
    )
    add("--output", required=True, metavar="DIR", help="folder of the report")
    add("--mode", choices=("infer", "train"), default="infer", help="default: infer")
    add(
        "--sizes",
        nargs="+",
        type=int,
        default=[None],
        metavar="N",
        help="sides of the input in pixels: INPUT.IMAGE_SIZE, and MIN_SIZE_TEST and MAX_SIZE_TEST "
        "with it (default: the config's)",
    )
    add("--batch", nargs="+", type=int, default=[1], metavar="N", help="images (default: 1)")
    add(
        "--queries",
        nargs="+",
        type=int,
        default=[None],
        metavar="N",
        help="MODEL.MASK_FORMER.NUM_OBJECT_QUERIES (default: the config's)",
    )
    add(
        "--original-size",
        nargs="+",
        type=_size,
        default=None,
        metavar="HxW",
        help="in inference: of the images before they were resized to the input, and of the "
        "results, in pixels (default: 480x640)",
    )
    add(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        help="default: float32; in training on a GPU that of SOLVER.AMP",
    )
    add(
        "--compile",
        choices=COMPILE_MODES,
        default="off",
        help="MODEL.COMPILE, and torch.compile of transformers' network (default: off)",
    )
    add(
        "--against",
        choices=("transformers",),
        help="beside each EoMT also the one of the package transformers, with the same weights, "
        "its own post-processing or loss, and the same optimizer",
    )
    add(
        "--masked",
        action="store_true",
        help="in inference: with masked attention in all blocks (default: as the finished model "
        "runs)",
    )
    add("--device", choices=("cuda", "cpu"), help="default: cuda where there is a GPU")
    add("--threads", type=int, metavar="N", help="of PyTorch on the CPU (default: PyTorch's)")
    add("--repeats", type=int, default=20, metavar="N", help="turns (default: 20)")
    add(
        "--warmup",
        type=int,
        default=3,
        metavar="N",
        help="calls of each model before the turns (default: 3)",
    )
    add(
        "--active-queries",
        type=int,
        default=20,
        metavar="N",
        help="in inference: queries that have found something (default: 20)",
    )
    add("--segments", type=int, default=12, metavar="N",
        help="in training: segments of an image (default: 12)")  # fmt: skip
    add("opts", nargs="*", metavar="KEY VALUE", help="config overrides, at the end")
    # Options that take several values would take the keys too.
    keys = (i for i, word in enumerate(arguments) if _KEY.fullmatch(word))
    end = next(keys, len(arguments))
    args = parser.parse_args(arguments[:end])
    if args.opts:
        parser.error(f"unrecognized arguments: {' '.join(args.opts)}")
    args.opts = list(arguments[end:])
    return args


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH in pixels, like 480x640")
    return int(height), int(width)


def _original_sizes(args: argparse.Namespace) -> list[tuple[int, int] | None]:
    if args.mode == "infer":
        return args.original_size or [(480, 640)]
    if args.original_size:
        raise UserError("--original-size belongs to --mode infer; training makes no results.")
    return [None]


if __name__ == "__main__":
    with exit_on_user_error():
        main()
