#!/usr/bin/env python
"""Time the training mapper against one that transforms each mask separately, by turns in one
process.

python tools/benchmark_mapper.py                     # on generated images, needs no data set
python tools/benchmark_mapper.py --config-file configs/coco/panoptic/eomt_large_640.yaml

The reference does what Detectron2's mappers do, with Detectron2's own transforms: every segment is
a full-size mask that is flipped, resized, padded and cropped by itself, and so is the image. Both
draw the same flips, scales and crops and read the same files; how far their targets agree is
printed too. (Masks differ along their edges: Detectron2 takes the nearest pixel to a pixel's
centre, the published recipe that to its corner.) Times are of the processor, not of the clock, so
that other programs count less.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BitMasks
from fvcore.transforms.transform import CropTransform, HFlipTransform, NoOpTransform, PadTransform
from PIL import Image

from eomt_d2.config import add_eomt_config
from eomt_d2.data.augmentation import (
    Geometry,
    draw_geometry,
    transform_id_map,
    transform_image,
)
from eomt_d2.data.build import load_training_dicts
from eomt_d2.data.datasets import register_datasets
from eomt_d2.data.ground_truth import (
    GroundTruth,
    ground_truth_kind,
    instance_ground_truth,
    panoptic_ground_truth,
    semantic_ground_truth,
)
from eomt_d2.data.image_reading import read_image
from eomt_d2.errors import exit_on_user_error

STAGES = ("decode the image", "read the ground truth", "transform the image", "make the masks")
Recipe = dict[str, float]
Clock = Callable[[str], contextlib.AbstractContextManager]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line says and print a table."""
    args = parse_arguments(arguments)
    with contextlib.ExitStack() as stack:
        if args.config_file:
            entries, kind, recipe = configured(args)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            entries, kind = generated(folder, args.images, args.segments), "panoptic"
            recipe = {"crop_size": 640, "min_scale": 0.1, "max_scale": 2.0}
        entries = entries[: args.images]
        report = measure(entries, kind, recipe, args.rounds)
    print_report(report)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2))
        print(f"Wrote {args.json}.")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; None takes the program's own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", help="measure its training data and recipe")
    parser.add_argument("--images", type=int, default=16, help="images at most (%(default)s)")
    parser.add_argument(
        "--segments", type=int, default=12, help="per generated image (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=10, help="draws per image (%(default)s)")
    parser.add_argument("--json", default="", help="also write the numbers to this file")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the config")
    return parser.parse_args(arguments)


def configured(args: argparse.Namespace) -> tuple[list[dict], str, Recipe]:
    """The training images of a config, their kind of ground truth, and the recipe."""
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    register_datasets(cfg)
    entries = list(load_training_dicts(cfg))
    kind = ground_truth_kind(entries[0], cfg.INPUT.DATASET_MAPPER_NAME)
    recipe = {
        "crop_size": cfg.INPUT.IMAGE_SIZE,
        "min_scale": cfg.INPUT.MIN_SCALE,
        "max_scale": cfg.INPUT.MAX_SCALE,
    }
    return entries, kind, recipe


def generated(folder: Path, num_images: int, num_segments: int) -> list[dict]:
    """Images of 640 x 480 pixels, as in COCO: smooth noise cut into cells around random points."""
    entries = []
    for i in range(num_images):
        rng = np.random.default_rng(i)
        noise = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        photo = np.asarray(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC))
        grain = rng.normal(0, 8, photo.shape)
        photo = (photo + grain).clip(0, 255).astype(np.uint8)
        centres = rng.uniform((0, 0), (480, 640), (num_segments, 2))
        rows, columns = np.mgrid[:480, :640]
        distances = [(rows - y) ** 2 + (columns - x) ** 2 for y, x in centres]
        ids = rng.permutation(1 << 24)[:num_segments][np.argmin(distances, axis=0)]
        rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        entry = {
            "file_name": str(folder / f"{i}.jpg"),
            "pan_seg_file_name": str(folder / f"{i}.png"),
            "segments_info": [
                {"id": int(k), "category_id": j, "iscrowd": 0} for j, k in enumerate(np.unique(ids))
            ],
        }
        Image.fromarray(photo).save(entry["file_name"], quality=90)
        Image.fromarray(rgb).save(entry["pan_seg_file_name"])
        entries.append(entry)
    return entries


def read_truth(entry: dict, kind: str, height: int, width: int) -> GroundTruth:
    """The ground truth of one image as the package reads it."""
    if kind == "instance":
        return instance_ground_truth(entry, height, width)
    if kind == "panoptic":
        return panoptic_ground_truth(entry)
    return semantic_ground_truth(entry, ignore_value=255)


def mapped(entry: dict, kind: str, draw: Callable, clock: Clock) -> tuple[np.ndarray, BitMasks]:
    """One training sample as the package makes it: image (H, W, 3), masks (M, H, W)."""
    with clock(STAGES[0]):
        image = read_image(entry["file_name"])
    with clock(STAGES[1]):
        truth = read_truth(entry, kind, *image.shape[:2])
    geometry = draw(*image.shape[:2])
    with clock(STAGES[2]):
        image = transform_image(image, geometry)
    with clock(STAGES[3]):
        layers = tuple(transform_id_map(layer, geometry) for layer in truth.layers)
        cropped = truth._replace(layers=layers)
        masks = cropped.masks(cropped.nonempty(), *geometry.crop_shape)
        return image, BitMasks(torch.from_numpy(masks))


def mapped_separately(
    entry: dict, kind: str, draw: Callable, clock: Clock
) -> tuple[np.ndarray, BitMasks]:
    """The same sample with every mask transformed by itself."""
    with clock(STAGES[0]):
        image = np.asarray(Image.open(entry["file_name"]).convert("RGB"))
    height, width = image.shape[:2]
    with clock(STAGES[1]):
        masks = full_size_masks(entry, kind, height, width)
    transforms = as_transforms(draw(height, width), height, width)
    with clock(STAGES[2]):
        image = transforms.apply_image(image)
    with clock(STAGES[3]):
        masks = [transforms.apply_segmentation(mask) for mask in masks]
        masks = [torch.from_numpy(np.ascontiguousarray(mask)) for mask in masks if mask.any()]
        size = image.shape[:2]
        return image, BitMasks(torch.stack(masks) if masks else torch.zeros(0, *size))


def full_size_masks(entry: dict, kind: str, height: int, width: int) -> list[np.ndarray]:
    """One uint8 mask per segment."""
    if kind == "instance":
        truth = instance_ground_truth(entry, height, width)
        return list(truth.masks(range(len(truth.classes)), height, width).view(np.uint8))
    if kind == "panoptic":
        rgb = np.asarray(Image.open(entry["pan_seg_file_name"]).convert("RGB")).astype(np.uint32)
        ids = rgb[:, :, 0] + 256 * rgb[:, :, 1] + 256**2 * rgb[:, :, 2]
        segments = [s["id"] for s in entry["segments_info"] if not s.get("iscrowd", 0)]
        return [(ids == i).astype(np.uint8) for i in segments]
    labels = np.asarray(Image.open(entry["sem_seg_file_name"]))
    return [(labels == i).astype(np.uint8) for i in np.unique(labels) if i != 255]


def as_transforms(geometry: Geometry, height: int, width: int) -> T.TransformList:
    """A draw as Detectron2's transforms."""
    crop_height, crop_width = geometry.crop_shape
    padding = (max(crop_width - geometry.width, 0), max(crop_height - geometry.height, 0))
    return T.TransformList(
        [
            HFlipTransform(width) if geometry.flip else NoOpTransform(),
            T.ResizeTransform(height, width, geometry.height, geometry.width),
            PadTransform(0, 0, *padding, geometry.width, geometry.height, 0, 0),
            CropTransform(geometry.left, geometry.top, crop_width, crop_height),
        ]
    )


def measure(entries: list[dict], kind: str, recipe: Recipe, rounds: int) -> dict:
    """Both mappers on every image, one after the other, ``rounds`` times after a warm-up."""
    mappers = {"one map for all": mapped, "each mask separately": mapped_separately}
    spent = {name: {stage: 0.0 for stage in STAGES} for name in mappers}
    ratios, totals, agreeing, pixels, counted = [], {name: [] for name in mappers}, 0, 0, 0
    for turn in range(rounds + 1):
        seconds = dict.fromkeys(mappers, 0.0)
        for i, entry in enumerate(entries):
            results = []
            for name, mapper in mappers.items():

                def draw(height: int, width: int, seed: int = turn * len(entries) + i) -> Geometry:
                    return draw_geometry(np.random.default_rng(seed), height, width, **recipe)

                stages: dict[str, float] = {}
                start = time.process_time()
                results.append(mapper(entry, kind, draw, lambda s, to=stages: timed(s, to)))
                seconds[name] += time.process_time() - start
                if turn:
                    for stage, elapsed in stages.items():
                        spent[name][stage] += elapsed
            (image, masks), (image_again, masks_again) = results
            if not np.array_equal(image, image_again):
                raise RuntimeError(f"Both mappers should give the same image: {entry}")
            if len(masks) == len(masks_again):
                agreeing += (masks.tensor == masks_again.tensor.bool()).sum().item()
                pixels += masks.tensor.numel()
            counted += len(masks)
        if turn:  # the first is a warm-up
            for name in mappers:
                totals[name].append(seconds[name] / len(entries))
            ratios.append(seconds["each mask separately"] / seconds["one map for all"])
    samples = rounds * len(entries)
    return {
        "ground_truth": kind,
        "images": len(entries),
        "segments_per_image": counted / (samples + len(entries)),
        "rounds": rounds,
        "recipe": recipe,
        "agreeing_mask_pixels": agreeing / max(pixels, 1),
        "milliseconds": {
            name: {
                "sample": 1e3 * statistics.median(totals[name]),
                **{stage: 1e3 * value / samples for stage, value in spent[name].items()},
            }
            for name in mappers
        },
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }


@contextlib.contextmanager
def timed(stage: str, to: dict[str, float]) -> Iterator[None]:
    start = time.process_time()
    yield
    to[stage] = time.process_time() - start


def print_report(report: dict) -> None:
    """The measurements as a Markdown table."""
    print(
        f"{report['images']} images, {report['segments_per_image']:.1f} segments in a crop, "
        f"{report['ground_truth']} ground truth, {report['rounds']} draws each; equal images, "
        f"{100 * report['agreeing_mask_pixels']:.2f} % of mask pixels agree"
    )
    columns = report["milliseconds"]
    print(f"| ms per image | {' | '.join(columns)} | times as fast |")
    print("|---|---|---|---|")
    for stage in ("sample", *STAGES):
        ours, separate = (column[stage] for column in columns.values())
        print(f"| {stage} | {ours:.2f} | {separate:.2f} | {separate / ours:.2f} |")
    ratio = report["ratio"]
    print(
        f"\nTimes as fast, median of the rounds: {ratio['median']:.2f} "
        f"({ratio['min']:.2f} to {ratio['max']:.2f})"
    )


if __name__ == "__main__":
    with exit_on_user_error():
        main()
