"""A miniature of Detectron2 0.6's sources: the lines that the installer has to change, verbatim.

Written from release 0.6, not from the installer's records, so that a record that no longer fits
the release is noticed.
"""

from pathlib import Path

GUARDED = "from detectron2 import _C\n"

FILES = {
    "detectron2/__init__.py": '__version__ = "0.6"\n',
    "detectron2/layers/deform_conv.py": GUARDED,
    "detectron2/layers/rotated_boxes.py": GUARDED,
    "detectron2/layers/roi_align_rotated.py": GUARDED,
    "detectron2/evaluation/coco_evaluation.py": (
        "from pycocotools.cocoeval import COCOeval\n"
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
        "class COCOEvaluator:\n"
        "    def __init__(self, use_fast_impl=True):\n"
        "        self._use_fast_impl = use_fast_impl\n"
    ),
    "detectron2/evaluation/fast_eval_api.py": GUARDED,
    "detectron2/utils/collect_env.py": (
        "try:\n    import detectron2._C as _C\nexcept ImportError as e:\n"
        '    data = ("detectron2._C", f"not built correctly: {e}")\n'
    ),
    "detectron2/data/build.py": (
        "histogram = np.zeros((num_classes,), dtype=np.int)\n"
        'classes = np.asarray([x["category_id"] for x in annos], dtype=np.int)\n'
    ),
    "detectron2/data/datasets/pascal_voc.py": "fileids = np.loadtxt(f, dtype=np.str)\n",
    "detectron2/evaluation/pascal_voc_evaluation.py": (
        'difficult = np.array([x["difficult"] for x in R]).astype(np.bool)\n'
        "# difficult = np.array([False for x in R]).astype(np.bool)\n"
    ),
    "detectron2/evaluation/sem_seg_evaluation.py": (
        "pred = np.array(output, dtype=np.int)\n"
        "gt = np.array(Image.open(f), dtype=np.int)\n"
        "acc = np.full(self._num_classes, np.nan, dtype=np.float)\n"
        "iou = np.full(self._num_classes, np.nan, dtype=np.float)\n"
        "tp = self._conf_matrix.diagonal()[:-1].astype(np.float)\n"
        "pos_gt = np.sum(self._conf_matrix[:-1, :-1], axis=0).astype(np.float)\n"
        "pos_pred = np.sum(self._conf_matrix[:-1, :-1], axis=1).astype(np.float)\n"
    ),
    "detectron2/structures/masks.py": (
        "a = np.zeros((height, width)).astype(np.bool)\n"
        "b = mask_util.decode(rle).astype(np.bool)\n"
        "c = torch.from_numpy(np.asarray(keep, dtype=np.bool))\n"
        "d = np.bool_\n"
    ),
    "detectron2/utils/video_visualizer.py": (
        "is_crowd = np.zeros((len(instances),), dtype=np.bool)\n"
    ),
    "detectron2/utils/visualizer.py": (
        "a = (self._seg != empty_ids[0]).numpy().astype(np.bool)\n"
        "b = (self._seg == sid).numpy().astype(np.bool)\n"
        "c = (self._seg == sid).numpy().astype(np.bool)\n"
    ),
    "detectron2/data/transforms/transform.py": (
        "def __init__(self, src_rect, output_size, interp=Image.LINEAR, fill=0):\n    pass\n"
    ),
    "detectron2/model_zoo/__init__.py": "",
    "detectron2/model_zoo/model_zoo.py": (
        "import os\nfrom typing import Optional\nimport pkg_resources\n\n\n"
        "def get_config_file(config_path):\n"
        "    cfg_file = pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
        "    )\n"
        "    return cfg_file\n"
    ),
    "detectron2/data/common.py": (
        "cur_idx = self._rng.sample(self._fallback_candidates, k=1)[0]\n"
    ),
    "detectron2/engine/hooks.py": (
        "def state_dict(self):\n"
        "    if isinstance(self.scheduler, torch.optim.lr_scheduler._LRScheduler):\n"
        "        return self.scheduler.state_dict()\n"
        "def load_state_dict(self, state_dict):\n"
        "    if isinstance(self.scheduler, torch.optim.lr_scheduler._LRScheduler):\n"
        "        self.scheduler.load_state_dict(state_dict)\n"
    ),
    "detectron2/export/__init__.py": (
        "# -*- coding: utf-8 -*-\n\nfrom .api import *\nfrom .flatten import TracingAdapter\n"
    ),
    "detectron2/config/lazy.py": (
        "class LazyConfig:\n"
        "    def to_py(cfg, prefix):\n"
        "        import black\n\n"
        "        py_str = _to_str(cfg, prefix=[prefix])\n"
        "        try:\n"
        "            return black.format_str(py_str, mode=black.Mode())\n"
        "        except black.InvalidInput:\n"
        "            return py_str\n"
    ),
    "detectron2/projects/__init__.py": "",
    "projects/PointRend/point_rend/__init__.py": "",
    "projects/PointRend/point_rend/point_features.py": "",
    "projects/DeepLab/deeplab/__init__.py": "",
    "projects/Panoptic-DeepLab/panoptic_deeplab/__init__.py": "",
    "LICENSE": "Apache License 2.0\n",
    # Whoever runs this file has executed unchecked code.
    "setup.py": "raise SystemExit('setup.py of the download was executed')\n",
}
MODEL_ZOO_FILE = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"


def write_release(directory: Path) -> Path:
    """Write the sources as the source distribution has them, model zoo inside the package."""
    return _write(directory, {**FILES, f"detectron2/model_zoo/configs/{MODEL_ZOO_FILE}": "A: 1\n"})


def write_main_branch(directory: Path) -> Path:
    """Write sources that have some of the changes already, as Detectron2's main branch has.

    The model zoo is in ``configs/``, as in a repository.
    """
    changed = {
        "detectron2/modeling/backbone/vit.py": "",
        "detectron2/layers/deform_conv.py": (
            "try:\n    from detectron2 import _C\nexcept ImportError:\n    pass\n"
        ),
        "detectron2/layers/rotated_boxes.py": "import torch\n",
        "detectron2/layers/roi_align_rotated.py": "import torch\n",
        "detectron2/data/build.py": "histogram = np.zeros((num_classes,), dtype=int)\n",
        "detectron2/evaluation/sem_seg_evaluation.py": (
            "def load_image_into_numpy_array(filename, copy=False, dtype=None):\n"
            '    with PathManager.open(filename, "rb") as f:\n'
            "        array = np.array(Image.open(f), copy=copy, dtype=dtype)\n"
            "    return array\n"
        ),
        "detectron2/engine/hooks.py": (
            "from detectron2.solver import LRScheduler as _LRScheduler\n"
            "def state_dict(self):\n"
            "    if isinstance(self.scheduler, _LRScheduler):\n"
            "        return self.scheduler.state_dict()\n"
        ),
        f"configs/{MODEL_ZOO_FILE}": "A: 1\n",
    }
    return _write(directory, {**FILES, **changed})


def _write(directory: Path, files) -> Path:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return directory
