"""The changes that Detectron2 needs on PyTorch 2.x, NumPy 2, Pillow >= 10, setuptools >= 81.

Every change is a record that says how often it must match. Release 0.6 must match every record
exactly, except those of faults that the main branch alone has. The main branch has some of the
changes already, so there a record may also match not at all. A last scan makes sure that none of
the faulty constructs is left in either of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import InstallError


@dataclass(frozen=True)
class Substitution:
    """One textual change.

    Attributes:
        file: path inside the source tree, with forward slashes.
        old: regular expression (``re.MULTILINE``) of the text to replace.
        new: replacement; taken literally, it is no regular expression template.
        count: how many times ``old`` occurs in release 0.6, or in main if it is of main only.
        reason: why the change is needed.
    """

    file: str
    old: str
    new: str
    count: int
    reason: str


MISSING_OPS_FILE = "detectron2/_missing_ops.py"
MISSING_OPS = '''\
class _MissingOps:
    """Stands in for ``detectron2._C``: any use of a compiled op says what is missing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(
            f"detectron2._C.{name} is a compiled operator and this Detectron2 is a pure-Python "
            "build; rotated boxes and Detectron2's own deformable convolution need a Detectron2 "
            "compiled from its sources."
        )


_C = _MissingOps()
'''

_NO_OPS = "there are no compiled ops in a pure-Python wheel; report them when used, not at import"
_NUMPY_ALIAS = "NumPy 1.24 removed the aliases of builtin types"


def _guarded_ops(file: str) -> Substitution:
    new = "try:\n    from detectron2 import _C\nexcept ImportError:\n"
    new += "    from detectron2._missing_ops import _C"
    return Substitution(file, r"^from detectron2 import _C$", new, 1, _NO_OPS)


def _builtin_type(file: str, alias: str, count: int) -> Substitution:
    return Substitution(file, rf"\bnp\.{alias}\b", alias, count, _NUMPY_ALIAS)


SUBSTITUTIONS: Sequence[Substitution] = (
    _guarded_ops("detectron2/layers/deform_conv.py"),
    _guarded_ops("detectron2/layers/rotated_boxes.py"),
    _guarded_ops("detectron2/layers/roi_align_rotated.py"),
    Substitution(
        "detectron2/evaluation/coco_evaluation.py",
        r"^from detectron2\.evaluation\.fast_eval_api import COCOeval_opt$",
        "try:\n    from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
        "except ImportError:\n    COCOeval_opt = COCOeval",
        1,
        "the fast COCO evaluation is compiled; pycocotools computes the same without it",
    ),
    Substitution(
        "detectron2/evaluation/coco_evaluation.py",
        r"^        self\._use_fast_impl = use_fast_impl$",
        "        self._use_fast_impl = use_fast_impl and COCOeval_opt is not COCOeval",
        1,
        "the log must not call pycocotools the unofficial implementation",
    ),
    Substitution(
        "detectron2/utils/collect_env.py",
        r'f"not built correctly: \{e\}"',
        'f"not built ({e}); expected in a pure-Python build"',
        1,
        "the environment report must not call the absence of compiled ops a fault",
    ),
    _builtin_type("detectron2/data/build.py", "int", 2),
    _builtin_type("detectron2/data/datasets/pascal_voc.py", "str", 1),
    _builtin_type("detectron2/evaluation/pascal_voc_evaluation.py", "bool", 2),
    _builtin_type("detectron2/evaluation/sem_seg_evaluation.py", "int", 2),
    _builtin_type("detectron2/evaluation/sem_seg_evaluation.py", "float", 5),
    _builtin_type("detectron2/structures/masks.py", "bool", 3),
    _builtin_type("detectron2/utils/video_visualizer.py", "bool", 1),
    _builtin_type("detectron2/utils/visualizer.py", "bool", 3),
    Substitution(
        "detectron2/data/transforms/transform.py",
        r"\bImage\.LINEAR\b",
        "Image.BILINEAR",
        1,
        "Pillow 10 removed this alias; as a default argument it fails at import",
    ),
    Substitution(
        "detectron2/model_zoo/model_zoo.py",
        r"^import pkg_resources$",
        "from importlib import resources",
        1,
        "setuptools 81 removed pkg_resources",
    ),
    Substitution(
        "detectron2/model_zoo/model_zoo.py",
        r"pkg_resources\.resource_filename\(\n"
        r'        "detectron2\.model_zoo", os\.path\.join\("configs", config_path\)\n    \)',
        'str(resources.files("detectron2.model_zoo").joinpath("configs", config_path))',
        1,
        "setuptools 81 removed pkg_resources",
    ),
    Substitution(
        "detectron2/data/common.py",
        r"self\._rng\.sample\(self\._fallback_candidates, k=1\)",
        "self._rng.sample(tuple(self._fallback_candidates), k=1)",
        1,
        "Python 3.11 no longer samples from a set; up to 3.10 it made this tuple itself",
    ),
    Substitution(
        "detectron2/engine/hooks.py",
        r"torch\.optim\.lr_scheduler\._LRScheduler\b",
        "torch.optim.lr_scheduler.LRScheduler",
        2,
        "PyTorch 2 derives its schedulers from LRScheduler; else resume restarts the schedule",
    ),
    Substitution(
        "detectron2/export/__init__.py",
        r"^from \.api import \*$",
        "try:\n"
        "    import caffe2  # noqa: F401\n"
        "except ImportError:\n\n"
        "    def __getattr__(name):\n"
        '        if name == "add_export_config" or "caffe2" in name.lower() or "onnx" in name:\n'
        "            raise ImportError(\n"
        '                f"detectron2.export.{name} needs Caffe2, which PyTorch no longer has;"\n'
        '                " use torch.onnx or torch.export."\n'
        "            )\n"
        '        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")\n\n'
        "else:\n"
        "    from .api import *",
        1,
        "PyTorch no longer contains Caffe2; tracing and scripting do not need it",
    ),
    Substitution(
        "detectron2/config/lazy.py",
        r"^        import black$",
        "        try:\n            import black\n"
        "        except ImportError:\n            black = None",
        1,
        "black only prettifies the output of LazyConfig.to_py; its old pin cannot be installed",
    ),
    Substitution(
        "detectron2/config/lazy.py",
        r"^        py_str = _to_str\(cfg, prefix=\[prefix\]\)$",
        "        py_str = _to_str(cfg, prefix=[prefix])\n"
        "        if black is None:\n            return py_str",
        1,
        "black only prettifies the output of LazyConfig.to_py; its old pin cannot be installed",
    ),
)

# Faults that came after release 0.6.
MAIN_SUBSTITUTIONS: Sequence[Substitution] = (
    Substitution(
        "detectron2/evaluation/sem_seg_evaluation.py",
        r"\bnp\.array\(Image\.open\(f\), copy=copy, dtype=dtype\)",
        "np.array(Image.open(f), copy=copy or None, dtype=dtype)",
        1,
        "NumPy 2 takes copy=False for a ban on copies, without which no image becomes an array",
    ),
)

# (files, pattern that must be gone, what it breaks). Guards against a source tree of another
# version in which a fault sits where no record looks for it.
LEFTOVERS: Sequence[tuple[str, str, str]] = (
    ("detectron2/layers/*.py", r"^from detectron2 import _C\b", "import without compiled ops"),
    ("detectron2/evaluation/coco_evaluation.py", r"^from \S*fast_eval_api ", "import without ops"),
    ("detectron2/**/*.py", r"\bnp\.(bool|int|float|object|str|complex)\b(?!_)", "NumPy >= 1.24"),
    ("detectron2/**/*.py", r"\bImage\.(LINEAR|CUBIC|ANTIALIAS)\b", "Pillow >= 10"),
    ("detectron2/**/*.py", r"^\s*(import|from) pkg_resources\b", "setuptools >= 81"),
    ("detectron2/**/*.py", r"\.sample\(self\._fallback_candidates\b", "Python >= 3.11"),
    # Main has a name `_LRScheduler` of its own for PyTorch's LRScheduler, which is right.
    ("detectron2/engine/hooks.py", r"\blr_scheduler\._LRScheduler\b", "PyTorch >= 2"),
    ("detectron2/evaluation/sem_seg_evaluation.py", r"\bcopy=copy,", "NumPy >= 2"),
    ("detectron2/export/__init__.py", r"^from \.api import", "import without Caffe2"),
)


def is_main_branch(tree: Path) -> bool:
    """Whether the sources are newer than release 0.6 (both call themselves 0.6)."""
    return (tree / "detectron2/modeling/backbone/vit.py").is_file()


def apply_substitutions(tree: Path) -> dict[str, list[str]]:
    """Change the source tree in place.

    Returns:
        changed file -> reasons.

    Raises:
        InstallError: a record does not match as often as it must, or a fault is left.
    """
    may_be_absent = is_main_branch(tree)
    records = (*SUBSTITUTIONS, *MAIN_SUBSTITUTIONS) if may_be_absent else SUBSTITUTIONS
    changed: dict[str, list[str]] = {}
    for sub in records:
        path = tree / sub.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found = len(re.findall(sub.old, text, re.MULTILINE))
        if found != sub.count and not (found == 0 and may_be_absent):
            raise InstallError(
                f"{sub.file}: the substitution of {sub.old!r} ({sub.reason}) must match "
                f"{sub.count} time(s) but matches {found}; these are not the Detectron2 sources "
                "it was written for: use the default source, or a clean checkout of 0.6 or main."
            )
        if found:
            literal = sub.new.replace("\\", r"\\")
            path.write_text(re.sub(sub.old, literal, text, flags=re.MULTILINE), "utf-8")
            changed.setdefault(sub.file, []).append(sub.reason)
    check_leftovers(tree)
    (tree / MISSING_OPS_FILE).write_text(MISSING_OPS, encoding="utf-8")
    for file, reasons in changed.items():
        _mark_as_modified(tree / file, reasons)
    return changed


def check_leftovers(tree: Path) -> None:
    """Raise InstallError if any of ``LEFTOVERS`` is found in ``tree/detectron2``."""
    for files, pattern, breaks in LEFTOVERS:
        for path in sorted(tree.glob(files)):
            match = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
            if match:
                raise InstallError(
                    f"{path.relative_to(tree).as_posix()}: {match.group().strip()!r} breaks "
                    f"{breaks} and no substitution covers it in this version of Detectron2; "
                    "use the default source, or a checkout of 0.6 or main."
                )


def _mark_as_modified(path: Path, reasons: Sequence[str]) -> None:
    """Detectron2's licence (Apache 2.0, section 4b) asks for a notice in changed files."""
    notice = "".join(f"#   {reason}\n" for reason in dict.fromkeys(reasons))
    with path.open("a", encoding="utf-8") as f:
        f.write(f"\n# Changed by tools/install_detectron2.py of eomt_d2:\n{notice}")
