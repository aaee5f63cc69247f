"""Keep some images of a COCO annotation file, panoptic or instances.

python datasets/subset_coco.py annotations/panoptic_val2017.json --images 139 785 --output four.json
"""

import argparse
import json
import os
import sys
from pathlib import Path

from eomt_d2.errors import UserError, exit_on_user_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("json", type=Path, help="annotation file to read")
    parser.add_argument("--images", type=int, nargs="+", required=True, help="image ids to keep")
    parser.add_argument("--output", type=Path, required=True, help="annotation file to write")
    args = parser.parse_args()
    try:
        content = json.loads(args.json.read_text())
        kept = subset(content, args.images)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{args.json} is no COCO annotation file that can be read: {error}."
        ) from error
    args.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.output.with_suffix(".tmp")
    temporary.write_text(json.dumps(kept))
    os.replace(temporary, args.output)
    print(
        f"{args.output}: {len(kept['images'])} images, {len(kept['annotations'])} annotations.",
        file=sys.stderr,
    )


def subset(content: dict, image_ids: list[int]) -> dict:
    """The annotation file with only the given images and their annotations.

    Args:
        content: a parsed COCO file; all but ``images`` and ``annotations`` is kept as it is.
        image_ids: ids of the images to keep.

    Raises:
        UserError: an image is not in the file.
    """
    wanted = set(image_ids)
    missing = wanted - {image["id"] for image in content["images"]}
    if missing:
        raise UserError(f"The annotation file has no image with id {sorted(missing)[0]}.")
    return {
        **content,
        "images": [image for image in content["images"] if image["id"] in wanted],
        "annotations": [a for a in content["annotations"] if a["image_id"] in wanted],
    }


if __name__ == "__main__":
    with exit_on_user_error():
        main()
