#!/usr/bin/env python
"""Make the shapes data, train EoMT on it from scratch, evaluate it and write pictures.

Usually started by ``bash tools/quickstart.sh``, which sets everything up first.
"""

import argparse
import json
import os
import time
from pathlib import Path

from detectron2.data import MetadataCatalog

from eomt_d2.data.datasets.shapes import make_shapes
from eomt_d2.engine import Trainer, set_up
from eomt_d2.errors import exit_on_user_error
from eomt_d2.visualization import plot_training, write_panoptic_comparisons

CONFIG = "configs/shapes/panoptic/eomt_tiny.yaml"
LONG_CONFIG = "configs/shapes/panoptic/eomt_tiny_long.yaml"
DATASET = "shapes_val_panoptic"


def main() -> None:
    args = parse_arguments()
    # Everything stays below the output folder; data sets of the user are not touched.
    root = args.output / "data"
    os.environ["DETECTRON2_DATASETS"] = str(root)
    step(1, f"shapes data: {args.train_images} training and {args.val_images} held-out images")
    make_shapes(root / "shapes", num_train=args.train_images, num_val=args.val_images)

    args.opts += ["OUTPUT_DIR", str(args.output / "train")]
    if args.iterations:
        args.opts += ["SOLVER.MAX_ITER", args.iterations, "TEST.EVAL_PERIOD", args.iterations]
    cfg = set_up(args)
    trainer = Trainer(cfg)
    step(2, "the untrained model, for comparison")
    untrained = summary(Trainer.test(cfg, trainer.model))
    step(3, f"training for {cfg.SOLVER.MAX_ITER} iterations")
    start = time.perf_counter()
    trained = summary(trainer.train())
    seconds = time.perf_counter() - start

    step(4, "pictures")
    metrics = {
        **trained,
        "untrained_PQ": untrained["PQ"],
        "untrained_AP": untrained["AP"],
        "untrained_mIoU": untrained["mIoU"],
        "masking_probabilities": trainer.model.mask_annealing.probs.tolist(),
        "iterations": cfg.SOLVER.MAX_ITER,
        "training_seconds": round(seconds, 1),
        "held_out_images": args.val_images,
    }
    metrics_file, curves = args.output / "metrics.json", args.output / "curves.png"
    metrics_file.write_text(json.dumps(metrics, indent=2) + "\n")
    plot_training(Path(cfg.OUTPUT_DIR) / "metrics.json", curves)
    write_panoptic_comparisons(
        trainer.model,
        Trainer.build_test_loader(cfg, DATASET),
        DATASET,
        args.output / "overlays",
        count=args.pictures,
        scale=3,
    )
    classes = ", ".join(MetadataCatalog.get(DATASET).stuff_classes)
    print(f"\nEoMT on {args.val_images} held-out images ({classes}) after {seconds / 60:.1f} min:")
    print("  " + "  ".join(f"{key} {value:.1f}" for key, value in trained.items()))
    print(f"  PQ before training: {untrained['PQ']:.1f}")
    print(f"Look at {args.output / 'overlays'}/*.png and {curves}; numbers in {metrics_file}.")


def parse_arguments() -> argparse.Namespace:
    """Command line, with what :func:`eomt_d2.engine.set_up` reads added."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--long", action="store_true", help="about 20 minutes on 2 CPU cores")
    parser.add_argument("--output", type=Path, default=Path("output/quickstart"))
    parser.add_argument("--iterations", type=positive, help="train for fewer or more iterations")
    parser.add_argument("--train-images", type=positive, help="default: 4000, with --long 8000")
    parser.add_argument("--val-images", type=positive, default=64)
    parser.add_argument("--pictures", type=positive, default=12, help="images to draw")
    parser.add_argument("opts", nargs="*", default=[], help="config keys and values")
    args = parser.parse_args()
    args.config_file = LONG_CONFIG if args.long else CONFIG
    args.train_images = args.train_images or (8000 if args.long else 4000)
    args.eval_only = False
    return args


def positive(text: str) -> int:
    """An integer above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def summary(results: dict) -> dict[str, float]:
    """The headline numbers of Detectron2's results, in percent."""
    panoptic = {key: results["panoptic_seg"][key] for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st")}
    return {**panoptic, "AP": results["segm"]["AP"], "mIoU": results["sem_seg"]["mIoU"]}


def step(number: int, what: str) -> None:
    """Announce one of the four steps."""
    print(f"\n[{number}/4] {what}", flush=True)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
