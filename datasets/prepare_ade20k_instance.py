"""ADE20K instance: convert the instance labels into COCO's instance format.

annotations_instance/{training,validation}/*.png -> ade20k_instance_{train,val}.json
"""

from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from eomt_d2.data.datasets.ade20k import (
    ADE20K_THING_CATEGORIES,
    instance_ids,
    segment_category,
)
from eomt_d2.data.datasets.coco_format import mask_box
from eomt_d2.data.datasets.preparation import list_files, map_files, run, write_json
from eomt_d2.data.image_reading import read_id_png
from eomt_d2.errors import UserError


def convert(source: Path) -> dict[str, Any]:
    """Image size and instances (RLE) of one instance label file."""
    try:
        ids = instance_ids(read_id_png(str(source)))
    except ValueError as error:
        raise UserError(f"'{source}' is no instance label file: {error}.") from error
    instances = []
    for segment_id in np.unique(ids[ids > 0]).tolist():
        mask = ids == segment_id
        rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
        rle["counts"] = rle["counts"].decode("ascii")
        instances.append(
            {
                "category_id": segment_category(segment_id),
                "area": int(mask.sum()),
                "bbox": mask_box(mask),
                "iscrowd": 0,
                "segmentation": rle,
            }
        )
    return {"size": ids.shape, "instances": instances}


def prepare(root: Path, num_workers: int | None = None) -> None:
    """Convert both splits below ``root/ADEChallengeData2016``."""
    root = root / "ADEChallengeData2016"
    for split, folder in (("train", "training"), ("val", "validation")):
        json_file = root / f"ade20k_instance_{split}.json"
        if json_file.exists():
            print(f"{json_file} is there already; delete it to make it again.")
            continue
        files = list_files(root / "annotations_instance" / folder, "*.png")
        images, annotations = [], []
        for file, record in zip(files, map_files(convert, files, folder, num_workers), strict=True):
            # "ADE_val_00000012" is image 12.
            image_id = int(file.stem.rpartition("_")[2])
            height, width = record["size"]
            images.append(
                {
                    "id": image_id,
                    "file_name": f"{file.stem}.jpg",
                    "height": height,
                    "width": width,
                }
            )
            for instance in record["instances"]:
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, **instance})
        categories = ADE20K_THING_CATEGORIES
        write_json(
            json_file, {"images": images, "categories": categories, "annotations": annotations}
        )


def main() -> None:
    run(prepare, __doc__)


if __name__ == "__main__":
    main()
