"""ADE20K panoptic: combine semantic and instance labels into COCO's panoptic format.

annotations/{training,validation}/*.png and annotations_instance/{training,validation}/*.png ->
ade20k_panoptic_{train,val}/*.png and ade20k_panoptic_{train,val}.json
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eomt_d2.data.datasets.ade20k import ADE20K_CATEGORIES, panoptic_ids, segment_category
from eomt_d2.data.datasets.coco_format import ids_to_rgb, mask_box
from eomt_d2.data.datasets.preparation import (
    list_files,
    map_files,
    run,
    write_json,
    write_png,
)
from eomt_d2.data.image_reading import read_id_png, read_label_map
from eomt_d2.errors import UserError


def convert(instance_folder: Path, target: Path, source: Path) -> dict[str, Any]:
    """Write the panoptic PNG of one semantic label file; give its entry of the JSON file."""
    instances = instance_folder / source.name
    try:
        ids = panoptic_ids(read_label_map(str(source)), read_id_png(str(instances)))
    except ValueError as error:
        raise UserError(f"'{source}' and '{instances}' do not combine: {error}.") from error
    write_png(target / source.name, ids_to_rgb(ids))
    segments = []
    for segment_id in np.unique(ids[ids > 0]).tolist():
        mask = ids == segment_id
        segments.append(
            {
                "id": segment_id,
                "category_id": segment_category(segment_id),
                "area": int(mask.sum()),
                "bbox": mask_box(mask),
                "iscrowd": 0,
            }
        )
    height, width = ids.shape
    return {
        "image": {"file_name": f"{source.stem}.jpg", "height": height, "width": width},
        "annotation": {"file_name": source.name, "segments_info": segments},
    }


def prepare(root: Path, num_workers: int | None = None) -> None:
    """Convert both splits below ``root/ADEChallengeData2016``."""
    root = root / "ADEChallengeData2016"
    for split, folder in (("train", "training"), ("val", "validation")):
        json_file = root / f"ade20k_panoptic_{split}.json"
        # Written last, so everything else is there too.
        if json_file.exists():
            print(f"{json_file} is there already; delete it to make it again.")
            continue
        files = list_files(root / "annotations" / folder, "*.png")
        function = partial(
            convert, root / "annotations_instance" / folder, root / f"ade20k_panoptic_{split}"
        )
        records = map_files(function, files, folder, num_workers)
        # "ADE_val_00000012" is image 12.
        image_ids = [int(file.stem.rpartition("_")[2]) for file in files]
        content = {
            "images": [{"id": i, **r["image"]} for i, r in zip(image_ids, records, strict=True)],
            "categories": ADE20K_CATEGORIES,
            "annotations": [
                {"image_id": i, **r["annotation"]} for i, r in zip(image_ids, records, strict=True)
            ],
        }
        write_json(json_file, content)


def main() -> None:
    run(prepare, __doc__)


if __name__ == "__main__":
    main()
