#!/usr/bin/env python
"""Time evaluation at the scale of COCO on predictions drawn from a seed, without a model or data.

python tools/benchmark_evaluation.py --images 500                      # all of it
python tools/benchmark_evaluation.py --tasks segm bbox --images 5000   # COCO val2017's size
python tools/benchmark_evaluation.py --tasks panoptic --threads 1 2 4 8 --network-ms 20

The ways of each task are measured by turns in one process, must give the same results, and are
compared with the first:

  segm, bbox   average precision: pycocotools, faster-coco-eval
  masks        run lengths of predicted masks: Detectron2's way, ours
  panoptic     Detectron2's evaluator (PNGs in the loop, panopticapi on all cores at the end), ours
               with each number of threads
  semantic     our evaluator with each number of threads

Beside the whole time: what the thread of the inference loop has to do itself, in CPU time, and the
time by which the loop gets longer, which without --network-ms is mostly waiting for the threads;
and the memory that was used on top of what was there before, at its peak (on Linux; of this process
alone).
"""

import argparse
import contextlib
import ctypes
import functools
import io
import json
import logging
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOPanopticEvaluator, DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from eomt_d2.errors import UserError, exit_on_user_error
from eomt_d2.evaluation import PanopticEvaluator, SemanticSegmentationEvaluator
from eomt_d2.evaluation.average_precision import COCO_EVALUATORS, average_precision, import_package
from eomt_d2.evaluation.background import available_cores
from eomt_d2.evaluation.instance import coco_results
from eomt_d2.evaluation.synthetic import (
    THINGS,
    PanopticImage,
    draw_instances,
    draw_panoptic,
    register_panoptic,
)

TASKS = ("segm", "bbox", "masks", "panoptic", "semantic")
# As many different images are drawn for maps, and then repeated: 5,000 would fill the memory.
DISTINCT = 40


class Run(NamedTuple):
    """One measurement: seconds of CPU time that the loop's own thread worked, seconds in the loop
    and in all, and the results."""

    own: float
    loop: float
    total: float
    metrics: dict[str, float]


Way = Callable[[], Run]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line says and print a table."""
    args = parse_arguments(arguments)
    for name in ("images", "detections", "repeats"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be at least 1.")
    logging.getLogger("eomt_d2").setLevel(logging.ERROR)
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    report = {"images": args.images, "detections": args.detections, "seed": args.seed}
    report |= {"cores": available_cores(), "network_ms": args.network_ms, "tasks": {}}
    print(" ".join(f"{key} {value}" for key, value in report.items() if key != "tasks"))
    print(
        "| task | way | s per 1000 images | CPU ms per image of the loop's thread | "
        "ms per image in the loop | MiB | times as fast |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="benchmark_evaluation_") as folder:
        for task in args.tasks:
            ways, images = build_ways(task, args, Path(folder))
            report["tasks"][task] = measure(task, ways, images, args.repeats)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(report, file, indent=2)
        print(f"Wrote {args.json}.")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; None takes the program's own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--detections", type=int, default=100, help="per image")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), help="height and width")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--network-ms",
        type=float,
        default=0,
        help="milliseconds per image that the loop waits, as for a network on a GPU",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", help="also write the numbers to this file")
    return parser.parse_args(arguments)


def build_ways(task: str, args: argparse.Namespace, folder: Path) -> tuple[dict[str, Way], int]:
    """The ways of a task, by name, and the number of images each of them looks at."""
    size = tuple(args.size)
    if task in ("segm", "bbox"):
        for package in COCO_EVALUATORS:
            import_package(package)
        content, detections = draw_instances(args.seed, args.images, args.detections, size=size)
        truth = COCO()
        truth.dataset = content
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex()
        return {
            package: functools.partial(run_ap, truth, detections, task, package)
            for package in COCO_EVALUATORS
        }, args.images
    if task == "masks":
        instances = draw_masks(args.seed, min(args.images, 4), args.detections, size)
        ways = {"Detectron2": instances_to_coco_json, "eomt_d2": coco_results}
        return {
            name: functools.partial(run_masks, encode, instances) for name, encode in ways.items()
        }, len(instances)
    images = list(draw_panoptic(args.seed, min(args.images, DISTINCT), size=size))
    name = f"benchmark_evaluation_{len(DatasetCatalog)}"
    register_panoptic(name, images, args.images, folder / name)
    ways = {} if task == "semantic" else {"Detectron2": COCOPanopticEvaluator}
    ours = SemanticSegmentationEvaluator if task == "semantic" else PanopticEvaluator
    for threads in args.threads:
        ways[f"{threads} threads"] = functools.partial(ours, threads=threads)
    outputs = map_results(images)
    return {
        title: functools.partial(
            run_maps, outputs, args.images, args.network_ms / 1e3, functools.partial(build, name)
        )
        for title, build in ways.items()
    }, args.images


def run_ap(truth: COCO, detections: list[dict], task: str, package: str) -> Run:
    """Average precision by one package; nothing of it happens in an inference loop."""
    start = time.perf_counter()
    metrics = average_precision(truth, detections, task, package)
    return Run(0.0, 0.0, time.perf_counter() - start, metrics)


def draw_masks(seed: int, images: int, detections: int, size: tuple[int, int]) -> list[Instances]:
    """Results as a model gives them, with full masks."""
    _, entries = draw_instances(seed, images, detections, size=size)
    results = []
    for first in range(0, len(entries), detections):
        part = entries[first : first + detections]
        masks = mask_util.decode([entry["segmentation"] for entry in part])
        instances = Instances(size)
        instances.pred_masks = torch.from_numpy(masks.transpose(2, 0, 1).copy()).bool()
        instances.pred_boxes = Boxes(torch.zeros(len(part), 4))
        instances.scores = torch.tensor([entry["score"] for entry in part])
        instances.pred_classes = torch.tensor([entry["category_id"] for entry in part])
        results.append(instances)
    return results


def run_masks(encode: Callable[[Instances, int], list[dict]], results: list[Instances]) -> Run:
    """Run lengths of all results, which is all part of the loop."""
    start, own = time.perf_counter(), time.thread_time()
    encoded = [encode(instances, 0) for instances in results]
    seconds, own = time.perf_counter() - start, time.thread_time() - own
    strings = [entry["segmentation"]["counts"] for entries in encoded for entry in entries]
    return Run(own, seconds, seconds, {"strings": hash(tuple(strings))})


def map_results(images: list[PanopticImage]) -> list[tuple[np.ndarray, dict[int, int], np.ndarray]]:
    """Of each image the predicted segment ids, their classes, and a class for every pixel."""
    outputs = []
    for image in images:
        # Void, which a semantic result does not have, is given to some class.
        lookup = np.full(image.predicted.max() + 1, THINGS)
        lookup[list(image.predicted_classes)] = list(image.predicted_classes.values())
        outputs.append((image.predicted, image.predicted_classes, lookup[image.predicted]))
    return outputs


def run_maps(
    outputs: list[tuple], number: int, network: float, build: Callable[[], DatasetEvaluator]
) -> Run:
    """An inference loop, whose network waits, with an evaluator."""
    evaluator = build()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.reset()
        start, own = time.perf_counter(), time.thread_time()
        for image_id in range(number):
            time.sleep(network)
            ids, segments, labels = outputs[image_id % len(outputs)]
            info = [{"id": i, "category_id": c, "isthing": c < THINGS} for i, c in segments.items()]
            result = {
                "panoptic_seg": (torch.from_numpy(ids), info),
                "sem_seg_labels": torch.from_numpy(labels),
            }
            entry = {"image_id": image_id, "file_name": f"{image_id}.jpg"}
            evaluator.process([entry], [result])
        loop, own = time.perf_counter() - start - number * network, time.thread_time() - own
        metrics = next(iter(evaluator.evaluate().values()))
        total = time.perf_counter() - start - number * network
    return Run(own, loop, total, metrics)


def measure(task: str, ways: dict[str, Way], images: int, repeats: int) -> dict[str, dict]:
    """Run the ways by turns, print a row for each, and return the numbers."""
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    memory: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            before = reset_peak_memory()
            runs[name].append(way())
            memory[name].append(peak_memory() - before)
    first = next(iter(ways))
    numbers = {}
    for name in ways:
        check_same(task, runs[first][0].metrics, runs[name][0].metrics)
        ratios = [a.total / b.total for a, b in zip(runs[first], runs[name], strict=True)]
        numbers[name] = {
            "seconds_per_1000_images": [1e3 * run.total / images for run in runs[name]],
            "loop_ms_per_image": [1e3 * run.loop / images for run in runs[name]],
            "own_cpu_ms_per_image": [1e3 * run.own / images for run in runs[name]],
            "peak_mib": max(memory[name]),
            "times_as_fast": ratios,
        }
        total = statistics.median(numbers[name]["seconds_per_1000_images"])
        loop = statistics.median(numbers[name]["loop_ms_per_image"])
        own = statistics.median(numbers[name]["own_cpu_ms_per_image"])
        peak = "-" if math.isnan(max(memory[name])) else f"{max(memory[name]):.0f}"
        print(
            f"| {task} | {name} | {total:.3g} | {own:.3g} | {loop:.3g} | {peak} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f}) |",
            flush=True,
        )
    return numbers


def check_same(task: str, expected: dict[str, float], metrics: dict[str, float]) -> None:
    """Results that both have must agree to 1e-9 percent points.

    Raises:
        RuntimeError: they do not.
    """
    for key in expected.keys() & metrics.keys():
        a, b = expected[key], metrics[key]
        # Detectron2's means are those of panopticapi, which has no NaN.
        if not (math.isnan(a) or math.isnan(b) or abs(a - b) <= 1e-9):
            raise RuntimeError(f"two ways of {task} disagree: {key} is {a} and {b}")


def reset_peak_memory() -> float:
    """Let the peak count from now on; MiB in use now, NaN where it cannot be told."""
    if platform.libc_ver()[0] == "glibc":
        # Memory that is free but not given back would be used again without being noticed.
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return math.nan
    return peak_memory()


def peak_memory() -> float:
    """The process's peak of resident memory in MiB; NaN where it cannot be told."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return math.nan
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    with exit_on_user_error():
        main()
