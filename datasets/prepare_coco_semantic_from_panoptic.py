"""COCO semantic: contiguous class labels from the panoptic PNG files.

Every pixel gets the position of its segment's category among the sorted category ids (0-132 for
COCO), crowds included; void becomes 255. Without options, for each split found below --root:
coco/panoptic_{train,val}2017/*.png -> coco/panoptic_semseg_{train,val}2017/*.png
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np

from eomt_d2.data.datasets.coco_format import read_categories
from eomt_d2.data.datasets.preparation import default_root, list_files, map_files, write_png
from eomt_d2.data.image_reading import read_id_png
from eomt_d2.errors import UserError, exit_on_user_error

VOID = 255


def convert(
    target: Path, classes: dict[int, int], segments: dict[str, dict[int, int]], source: Path
) -> None:
    """Write the semantic PNG of one panoptic PNG, unless it is there.

    Args:
        target: folder to write to.
        classes: category id -> contiguous class.
        segments: file name -> {segment id: category id}.
        source: the panoptic PNG.
    """
    if (target / source.name).exists():
        return
    if source.name not in segments:
        raise UserError(f"'{source}' is not annotated in the panoptic JSON file.")
    ids = read_id_png(str(source))
    labels = np.full(ids.shape, VOID, dtype=np.uint8)
    for segment_id, category_id in segments[source.name].items():
        labels[ids == segment_id] = classes[category_id]
    write_png(target / source.name, labels)


def prepare(
    panoptic_json: Path, panoptic_root: Path, output: Path, num_workers: int | None = None
) -> None:
    """Convert one folder of panoptic PNG files."""
    categories = read_categories(panoptic_json)
    if len(categories) > VOID:
        raise UserError(f"'{panoptic_json}' has {len(categories)} categories; 255 fit in a PNG.")
    classes = {category["id"]: i for i, category in enumerate(categories)}
    annotations = json.loads(panoptic_json.read_text(encoding="utf-8"))["annotations"]
    segments = {
        annotation["file_name"]: {s["id"]: s["category_id"] for s in annotation["segments_info"]}
        for annotation in annotations
    }
    files = list_files(panoptic_root, "*.png")
    map_files(partial(convert, output, classes, segments), files, panoptic_root.name, num_workers)


def prepare_coco(root: Path, num_workers: int | None = None) -> None:
    """Convert the splits of COCO 2017 that are below ``root/coco``."""
    root = root / "coco"
    splits = [s for s in ("train2017", "val2017") if (root / f"panoptic_{s}").is_dir()]
    if not splits:
        raise UserError(
            f"'{root}' has neither panoptic_train2017 nor panoptic_val2017; see "
            "datasets/README.md, or give --panoptic-json, --panoptic-root and --output."
        )
    for split in splits:
        prepare(
            root / "annotations" / f"panoptic_{split}.json",
            root / f"panoptic_{split}",
            root / f"panoptic_semseg_{split}",
            num_workers,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=default_root(), help="folder of all data")
    parser.add_argument("--panoptic-json", type=Path, help="of another data set in this format")
    parser.add_argument("--panoptic-root", type=Path, help="its folder of panoptic PNG files")
    parser.add_argument("--output", type=Path, help="the folder to make for it")
    parser.add_argument("--workers", type=int, help="processes (default: one per core, up to 8)")
    args = parser.parse_args()
    own = (args.panoptic_json, args.panoptic_root, args.output)
    if any(own) and not all(own):
        parser.error("--panoptic-json, --panoptic-root and --output go together")
    with exit_on_user_error():
        if all(own):
            prepare(*own, args.workers)
        else:
            prepare_coco(args.root, args.workers)


if __name__ == "__main__":
    main()
