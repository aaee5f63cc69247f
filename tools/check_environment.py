#!/usr/bin/env python
"""Exit with 0 if everything that eomt_d2 needs can be imported, else name what cannot.

    python tools/check_environment.py          what training and evaluation need
    python tools/check_environment.py dev      also what the tests need (looked for, not imported)

Used by tools/setup_env.sh; takes a few seconds.
"""

import importlib
import importlib.util
import sys

MODULES = (
    "torch",
    "torchvision",
    "cv2",
    "scipy.optimize",
    "pycocotools.mask",
    "cityscapesscripts",
    "tensorboard",
    "matplotlib",
    "safetensors",
    "huggingface_hub",
    "panopticapi.evaluation",
    "detectron2.engine",
    "detectron2.evaluation",
    "eomt_d2",
)
DEV_MODULES = ("pytest", "xdist", "hypothesis", "timm", "transformers", "faster_coco_eval")


def main(extras: str) -> int:
    for module in MODULES:
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken package may raise anything while it is imported
            print(f"check_environment.py: cannot import {module}: {error}", file=sys.stderr)
            return 1
    for module in DEV_MODULES if extras == "dev" else ():
        if importlib.util.find_spec(module) is None:
            print(f"check_environment.py: there is no {module}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main("".join(sys.argv[1:])))
