"""ADE20K semantic: shift the labels so that classes are 0-149 and "other" is 255.

annotations/{training,validation}/*.png -> annotations_detectron2/{training,validation}/*.png
"""

from functools import partial
from pathlib import Path

from eomt_d2.data.datasets.ade20k import semantic_ids
from eomt_d2.data.datasets.preparation import list_files, map_files, run, write_png
from eomt_d2.data.image_reading import read_label_map
from eomt_d2.errors import UserError


def convert(target: Path, source: Path) -> None:
    """Write the shifted copy of one label file, unless it is there."""
    if (target / source.name).exists():
        return
    try:
        labels = semantic_ids(read_label_map(str(source)))
    except ValueError as error:
        raise UserError(f"'{source}' is no ADE20K label file: {error}.") from error
    write_png(target / source.name, labels)


def prepare(root: Path, num_workers: int | None = None) -> None:
    """Convert both splits below ``root/ADEChallengeData2016``."""
    root = root / "ADEChallengeData2016"
    for folder in ("training", "validation"):
        files = list_files(root / "annotations" / folder, "*.png")
        map_files(
            partial(convert, root / "annotations_detectron2" / folder), files, folder, num_workers
        )


def main() -> None:
    run(prepare, __doc__)


if __name__ == "__main__":
    main()
