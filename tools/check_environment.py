#!/usr/bin/env python
"""Exit with 0 if everything that eomt_d2 needs at run time can be imported, else name what not.

Used by tools/setup_env.sh; takes a few seconds.
"""

import importlib
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
    "panopticapi.evaluation",
    "detectron2.engine",
    "detectron2.evaluation",
    "eomt_d2",
)


def main() -> int:
    for module in MODULES:
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken package may raise anything while it is imported
            print(f"check_environment.py: cannot import {module}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
