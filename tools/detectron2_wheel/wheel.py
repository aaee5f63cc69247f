"""Patched sources -> wheel. Written directly (PEP 427), so no build backend is needed."""

import base64
import hashlib
import re
import zipfile
from collections.abc import Sequence
from email.parser import HeaderParser
from pathlib import Path

from . import InstallError
from .source import commit_of, stage
from .substitutions import apply_substitutions, is_main_branch

LOCAL_VERSION = "eomt1"

# What Detectron2 imports. The pins of its setup.py are left out: black==21.4b2 and
# iopath<0.1.10 cannot be met any more, future and pydot served Caffe2. OpenCV is left to the
# user, as upstream does, because it comes under several names (opencv-python, -headless, conda).
REQUIREMENTS = (
    "torch>=2.0",
    "torchvision",
    "numpy",
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
)
MAIN_REQUIREMENTS = ("packaging", "timm")

# panopticapi's own imports; its published metadata caps NumPy below 2 for no reason in its code.
PANOPTICAPI_REQUIREMENTS = ("numpy", "Pillow")

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same sources give the same bytes


def build_detectron2(tree: Path, work_dir: Path, wheel_dir: Path) -> Path:
    """Build the wheel of a source tree, which is only read.

    Returns:
        path of the wheel.
    """
    staged = stage(tree, work_dir / "staged")
    reasons = apply_substitutions(staged)
    print(f"  {len(reasons)} files changed, see tools/detectron2_wheel/substitutions.py")
    requirements: Sequence[str] = REQUIREMENTS
    version = f"{_upstream_version(staged)}+{LOCAL_VERSION}"
    if is_main_branch(staged):
        requirements = (*REQUIREMENTS, *MAIN_REQUIREMENTS)
        version = ".".join(filter(None, [version, "main", commit_of(tree)]))
    metadata = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {version}",
        "Summary: Detectron2 without compiled operators, adapted to current PyTorch and NumPy",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "License: Apache-2.0",
        "Requires-Python: >=3.10",
        *(f"Requires-Dist: {requirement}" for requirement in requirements),
    ]
    files = {
        file.relative_to(staged).as_posix(): file.read_bytes()
        for file in sorted((staged / "detectron2").rglob("*"))
        if file.is_file()
    }
    for licence in staged.glob("LICENSE*"):
        files[f"detectron2-{version}.dist-info/{licence.name}"] = licence.read_bytes()
    return write_wheel(wheel_dir, "detectron2", version, files, "\n".join(metadata) + "\n")


def _upstream_version(tree: Path) -> str:
    text = (tree / "detectron2/__init__.py").read_text(encoding="utf-8")
    match = re.search(r"^__version__ = [\"']([0-9.]+)[\"']", text, re.MULTILINE)
    if match is None:
        raise InstallError(f'{tree / "detectron2/__init__.py"} has no __version__ = "..." line.')
    return match.group(1)


def with_honest_requirements(wheel: Path, requirements: Sequence[str], wheel_dir: Path) -> Path:
    """Copy a pure-Python wheel with other ``Requires-Dist`` lines and a local version."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (metadata_name,) = [name for name in files if name.endswith(".dist-info/METADATA")]
    dist_info = metadata_name.rsplit("/", 1)[0]
    metadata = HeaderParser().parsestr(files[metadata_name].decode("utf-8"))
    version = f"{metadata['Version']}+{LOCAL_VERSION}"
    metadata.replace_header("Version", version)
    del metadata["Requires-Dist"]
    for requirement in requirements:
        metadata["Requires-Dist"] = requirement
    kept = {n: data for n, data in files.items() if not n.startswith(f"{dist_info}/")}
    return write_wheel(wheel_dir, metadata["Name"], version, kept, metadata.as_string())


def write_wheel(
    wheel_dir: Path, name: str, version: str, files: dict[str, bytes], metadata: str
) -> Path:
    """Write a pure-Python wheel.

    Args:
        wheel_dir: where to; created if missing.
        files: path inside the wheel -> content, without METADATA, WHEEL and RECORD.
        metadata: content of METADATA.
    """
    stem = f"{re.sub(r'[-_.]+', '_', name)}-{version}"
    contents = dict(files)
    contents[f"{stem}.dist-info/METADATA"] = metadata.encode("utf-8")
    contents[f"{stem}.dist-info/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: eomt_d2\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record: list[str] = []
    for path, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(data)}")
    record.append(f"{stem}.dist-info/RECORD,,")
    contents[f"{stem}.dist-info/RECORD"] = ("\n".join(record) + "\n").encode("utf-8")

    wheel_dir.mkdir(parents=True, exist_ok=True)
    wheel = wheel_dir / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in contents.items():
            info = zipfile.ZipInfo(path, _EPOCH)
            info.external_attr = 0o644 << 16
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    return wheel
