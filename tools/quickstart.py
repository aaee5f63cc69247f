#!/usr/bin/env python
"""Make the shapes data, train EoMT or its baseline on it, evaluate it and write pictures.

Usually started by ``bash tools/quickstart.sh``, which sets everything up first.
"""

import argparse
import itertools
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from eomt_d2.analysis import compare_runs, comparison_table
from eomt_d2.data.datasets.shapes import make_shapes
from eomt_d2.engine import Trainer, set_up
from eomt_d2.errors import exit_on_user_error
from eomt_d2.visualization import plot_training, write_panoptic_comparisons

CONFIG = "configs/shapes/panoptic/{}_tiny.yaml"
LONG_CONFIG = "configs/shapes/panoptic/{}_tiny_long.yaml"
MODELS = ("eomt", "mask2former")
DATASET = "shapes_val_panoptic"
HEADLINES = ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "AP", "mIoU")
# What --compare shows of each run, and how.
COLUMNS = {
    "PQ": "{:.1f}",
    "AP": "{:.1f}",
    "mIoU": "{:.1f}",
    "training_seconds": "{:.0f}",
    "parameters": "{:,.0f}",
}

Announce = Callable[[str], None]


def main() -> None:
    args = parse_arguments()
    runs = len(MODELS) * args.seeds if args.compare else 1
    announce = numbered_steps(2 + 2 * runs)
    # Everything stays below the output folder; data sets of the user are not touched.
    root = args.output / "data"
    os.environ["DETECTRON2_DATASETS"] = str(root)
    announce(f"shapes data: {args.train_images} training and {args.val_images} held-out images")
    make_shapes(root / "shapes", num_train=args.train_images, num_val=args.val_images)
    (compare if args.compare else train_one)(args, announce)


class Run(NamedTuple):
    """A finished training; ``metrics`` is what its metrics.json holds."""

    cfg: CfgNode
    model: nn.Module
    metrics: dict[str, Any]


def train_one(args: argparse.Namespace, announce: Announce) -> None:
    """Train one network and tell how good it is."""
    run = train(args, args.model, args.output, args.opts, announce)
    announce("pictures")
    write_overlays(args, {"prediction": run})
    metrics, minutes = run.metrics, run.metrics["training_seconds"] / 60
    print(f"\n{metrics['network']} on {held_out(args)} after {minutes:.1f} min:")
    print("  " + "  ".join(f"{key} {metrics[key]:.1f}" for key in HEADLINES))
    print(f"  PQ before training: {metrics['untrained_PQ']:.1f}")
    print(
        f"Look at {args.output / 'overlays'}/*.png and {args.output / 'curves.png'}; numbers in "
        f"{args.output / 'metrics.json'}."
    )


def compare(args: argparse.Namespace, announce: Announce) -> None:
    """Train both networks with several seeds on the same data and lay the results side by side."""
    runs: dict[str, list[Run]] = {}
    # The networks take turns: whatever else slows the machine down meanwhile slows both.
    for seed, name in itertools.product(range(args.seeds), MODELS):
        folder, opts = args.output / f"{name}_seed{seed}", [*args.opts, "SEED", str(seed)]
        run = train(args, name, folder, opts, announce)
        runs.setdefault(run.metrics["network"], []).append(run)
    announce("pictures, by the networks of the first seed")
    write_overlays(args, {network: of_network[0] for network, of_network in runs.items()})
    metrics = {network: [run.metrics for run in of_network] for network, of_network in runs.items()}
    comparison = compare_runs(metrics, tuple(COLUMNS))
    file = args.output / "compare.json"
    file.write_text(json.dumps(comparison, indent=2) + "\n")
    print(f"\nOn {held_out(args)}, mean ± standard deviation of {args.seeds} trainings each:")
    print(comparison_table(comparison, COLUMNS))
    print(f"Look at {args.output / 'overlays'}/*.png; numbers in {file}.")


def train(
    args: argparse.Namespace, name: str, folder: Path, opts: list[str], announce: Announce
) -> Run:
    """Train one network, evaluate it before and after, and write metrics.json and curves.png."""
    opts = [*opts, "OUTPUT_DIR", str(folder / "train")]
    if args.iterations:
        opts += ["SOLVER.MAX_ITER", args.iterations, "TEST.EVAL_PERIOD", args.iterations]
    config_file = (LONG_CONFIG if args.long else CONFIG).format(name)
    end_logs()
    cfg = set_up(argparse.Namespace(config_file=config_file, opts=opts, eval_only=False))
    trainer = Trainer(cfg)
    network = cfg.MODEL.META_ARCHITECTURE
    title = f"{network}, seed {cfg.SEED}" if args.compare else network
    announce(f"{title}: the untrained model, for comparison")
    untrained = headlines(Trainer.test(cfg, trainer.model))
    announce(f"{title}: training for {cfg.SOLVER.MAX_ITER} iterations")
    start = time.perf_counter()
    trained = headlines(trainer.train())
    seconds = time.perf_counter() - start

    metrics = {
        "network": network,
        **trained,
        "untrained_PQ": untrained["PQ"],
        "untrained_AP": untrained["AP"],
        "untrained_mIoU": untrained["mIoU"],
        "masking_probabilities": trainer.model.mask_annealing.probs.tolist(),
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "seed": cfg.SEED,
        "iterations": cfg.SOLVER.MAX_ITER,
        "training_seconds": round(seconds, 1),
        "held_out_images": args.val_images,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    plot_training(Path(cfg.OUTPUT_DIR) / "metrics.json", folder / "curves.png")
    return Run(cfg, trainer.model, metrics)


def write_overlays(args: argparse.Namespace, runs: dict[str, Run]) -> None:
    """Draw the first held-out images with what each model sees in them, under its title."""
    cfg = next(iter(runs.values())).cfg
    models = {title: run.model for title, run in runs.items()}
    loader = Trainer.build_test_loader(cfg, DATASET)
    folder = args.output / "overlays"
    write_panoptic_comparisons(models, loader, DATASET, folder, count=args.pictures, scale=3)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", choices=MODELS, default="eomt", help="default: %(default)s")
    what.add_argument("--compare", action="store_true", help="train both, with several seeds each")
    parser.add_argument("--seeds", type=positive, help="with --compare: seeds per model (3)")
    parser.add_argument("--long", action="store_true", help="EoMT: about 20 minutes on 2 CPU cores")
    parser.add_argument(
        "--output", type=Path, help="folder (output/quickstart, or with _mask2former, _compare)"
    )
    parser.add_argument("--iterations", type=positive, help="train for fewer or more iterations")
    parser.add_argument("--train-images", type=positive, help="default: 4000, with --long 8000")
    parser.add_argument("--val-images", type=positive, default=64)
    parser.add_argument("--pictures", type=positive, default=12, help="images to draw")
    parser.add_argument("opts", nargs="*", default=[], help="config keys and values")
    args = parser.parse_args()
    if args.seeds and not args.compare:
        parser.error("--seeds belongs to --compare")
    args.seeds = args.seeds or 3
    kind = "compare" if args.compare else args.model
    args.output = args.output or Path("output/quickstart" + (f"_{kind}" if kind != "eomt" else ""))
    args.train_images = args.train_images or (8000 if args.long else 4000)
    return args


def positive(text: str) -> int:
    """An integer above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def headlines(results: dict) -> dict[str, float]:
    """The headline numbers of Detectron2's results, in percent."""
    all_results = {
        **results["panoptic_seg"],
        "AP": results["segm"]["AP"],
        "mIoU": results["sem_seg"]["mIoU"],
    }
    return {key: all_results[key] for key in HEADLINES}


def held_out(args: argparse.Namespace) -> str:
    classes = ", ".join(MetadataCatalog.get(DATASET).stuff_classes)
    return f"{args.val_images} held-out images ({classes})"


def numbered_steps(total: int) -> Announce:
    """A function that announces one step after the other."""
    numbers = itertools.count(1)
    return lambda what: print(f"\n[{next(numbers)}/{total}] {what}", flush=True)


def end_logs() -> None:
    """Each set-up adds to the handlers of the earlier ones in this process: a run would also write
    into their logs, and print each line once more."""
    for name in ("detectron2", "fvcore", "eomt_d2"):
        logging.getLogger(name).handlers.clear()


if __name__ == "__main__":
    with exit_on_user_error():
        main()
