"""Package metadata of eomt_d2.

Two requirements cannot be listed here, because no package index has them in a usable form:
Detectron2 itself, and panopticapi (published as panopticapi-lite, whose metadata caps NumPy below
version 2 without need). ``python tools/install_detectron2.py`` installs both.
"""

from setuptools import find_packages, setup

REQUIREMENTS = [
    "torch>=2.4",
    "torchvision>=0.19",
    "numpy>=1.24",
    "Pillow>=10",
    # The headless build imports on servers without OpenGL and X11, and nothing here opens a
    # window. Who has opencv-python already can keep it: install with --no-deps.
    "opencv-python-headless>=4.5",
    "scipy>=1.10",
    "fvcore>=0.1.5.post20221221",
    "iopath>=0.1.9",
    "pycocotools>=2.0.8",
    "cityscapesscripts>=2.2.3",
    # Detectron2's loader of Cityscapes instances needs it.
    "shapely>=2.0",
    "tensorboard>=2.12",
    "matplotlib>=3.7",
    "PyYAML>=6.0",
    "safetensors>=0.4",
    # Weights at hf:// addresses.
    "huggingface_hub>=0.25",
    "tqdm>=4.60",
]

EXTRAS = {
    # For TEST.COCO_EVALUATOR faster_coco_eval. Versions before 1.8.0 fail where there is not a
    # single detection.
    "fast-eval": ["faster-coco-eval>=1.8.0"],
    "export": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.1"],
    "dev": [
        "pytest>=7.4",
        "pytest-xdist>=3.5",
        "hypothesis>=6.80",
        "ruff>=0.5",
        "mypy>=1.8",
        # Tests compare it with pycocotools.
        "faster-coco-eval>=1.8.0",
        # Independent implementations that tests compare with.
        "timm>=1.0",
        "transformers>=4.54",
    ],
}

setup(
    name="eomt_d2",
    version="0.1.0",
    description="EoMT, the Encoder-only Mask Transformer, as a Detectron2 plugin",
    packages=find_packages(include=["eomt_d2", "eomt_d2.*"]),
    python_requires=">=3.10",
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
