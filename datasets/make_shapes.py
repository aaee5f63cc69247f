"""Make a synthetic shapes data set: panoptic, instance and semantic, in COCO's formats."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from eomt_d2.data.datasets.preparation import default_root
from eomt_d2.data.datasets.shapes import make_shapes
from eomt_d2.data.datasets.shapes_scene import CLASS_SETS
from eomt_d2.errors import exit_on_user_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help=f"folder ({default_root()}/<classes>)")
    parser.add_argument(
        "--classes",
        choices=list(CLASS_SETS),
        default="shapes",
        help="; ".join(
            f"{name}: {', '.join(c.things + c.stuff)}" for name, c in CLASS_SETS.items()
        ),
    )
    parser.add_argument("--train", type=int, default=2000, help="training images (%(default)s)")
    parser.add_argument("--val", type=int, default=128, help="validation images (%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other pictures (%(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core, up to 8)")
    parser.add_argument(
        "--preview", type=Path, help="also write a contact sheet of val to this PNG"
    )
    args = parser.parse_args()
    with exit_on_user_error():
        folder = make_shapes(
            args.output or default_root() / args.classes,
            class_set=args.classes,
            num_train=args.train,
            num_val=args.val,
            size=args.size,
            seed=args.seed,
            num_workers=args.workers,
        )
    print(f"The shapes data set is in {folder} ({args.train} train, {args.val} val).")
    if args.preview:
        write_contact_sheet(folder, args.preview)
        print(f"Contact sheet: {args.preview}")


def write_contact_sheet(folder: Path, target: Path, columns: int = 6, rows: int = 4) -> None:
    """Write pairs of image and segment ids (as the colours they are stored in) as one PNG."""
    names = sorted(path.name for path in (folder / "val").glob("*.png"))[: columns * rows]
    pairs = [
        np.concatenate(
            [np.asarray(Image.open(folder / kind / name)) for kind in ("val", "panoptic_val")],
            axis=1,
        )
        for name in names
    ]
    blank = np.zeros_like(pairs[0])
    pairs += [blank] * (-len(pairs) % columns)
    lines = [np.concatenate(pairs[i : i + columns], axis=1) for i in range(0, len(pairs), columns)]
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(lines)).save(target)


if __name__ == "__main__":
    main()
