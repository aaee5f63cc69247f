"""Where Detectron2's sources come from: the package index, git, a directory or an archive.

Every function leaves the sources in a new directory that may be changed freely; a user's own
checkout is never touched.
"""

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

from . import InstallError, pip

SDIST = "pb1-detectron2"
SDIST_VERSION = "0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"

GIT_URL = "https://github.com/facebookresearch/detectron2.git"
GIT_COMMIT = "a1ce2f956a1d2212ad672e3c47d53405c2fe4312"

# Detectron2's setup.py installs these small projects inside the package.
PROJECTS = {
    "point_rend": "projects/PointRend/point_rend",
    "deeplab": "projects/DeepLab/deeplab",
    "panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}


def from_index(work_dir: Path) -> Path:
    """Download the pinned source distribution, check its hash and unpack it."""
    archive = pip.download_sdist(SDIST, SDIST_VERSION, work_dir / "download")
    check_sha256(archive, SDIST_SHA256)
    return unpack(archive, work_dir / "unpacked")


def check_sha256(file: Path, expected: str) -> None:
    actual = hashlib.sha256(file.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(
            f"{file.name} has sha256 {actual} instead of {expected}, so it is not the file this "
            "installer was written for; check which package index pip uses (pip config list)."
        )


def unpack(archive: Path, target: Path) -> Path:
    """Unpack a .tar.gz and return the directory in it that holds ``detectron2/``."""
    target.mkdir(parents=True)
    try:
        with tarfile.open(archive) as tar:
            # Refuses members that would leave `target`. Early releases of 3.10 and 3.11 have no
            # filters yet.
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(target, **safe)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InstallError(
            f"--source {archive}: this file is no complete tar archive; "
            "give a directory or a .tar.gz of Detectron2."
        ) from error
    inside = [p.parent for p in target.glob("*/detectron2") if p.is_dir()]
    return inside[0] if inside else target


def from_git(work_dir: Path, url: str = GIT_URL, commit: str = GIT_COMMIT) -> Path:
    """Fetch one commit (a tag or a branch will do as well)."""
    if shutil.which("git") is None:
        raise InstallError("--source git needs the program git; install it or use --source pypi.")
    tree = work_dir / "git"
    _git("init", "--quiet", str(tree))
    _git("-C", str(tree), "remote", "add", "origin", url)
    try:
        _git("-C", str(tree), "fetch", "--quiet", "--depth", "1", "origin", commit)
        _git("-C", str(tree), "checkout", "--quiet", "FETCH_HEAD")
    except InstallError:
        # Not every server hands out a bare commit id: fetch everything, then look for it.
        _git("-C", str(tree), "fetch", "--quiet", "--tags", "origin")
        _git("-C", str(tree), "checkout", "--quiet", commit)
    return tree


def from_path(work_dir: Path, path: Path) -> Path:
    """A checkout (used in place, it is only read) or a source archive."""
    if path.is_file():
        return unpack(path, work_dir / "unpacked")
    if not path.exists():
        raise InstallError(
            f"--source {path}: there is no such directory or archive; "
            "give 'pypi', 'git' or the path of a Detectron2 checkout."
        )
    return path


def commit_of(tree: Path) -> str:
    """Abbreviated commit of a checkout, or an empty string if it is none."""
    if not (tree / ".git").exists() or shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(tree), "rev-parse", "--short=9", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else ""


def stage(tree: Path, target: Path) -> Path:
    """Copy what belongs into the wheel: the package, its bundled projects, the model zoo.

    Raises:
        InstallError: the directory does not hold Detectron2's sources.
    """
    if not (tree / "detectron2/__init__.py").is_file():
        raise InstallError(
            f"{tree} does not hold Detectron2's sources (no detectron2/__init__.py); "
            "give the top directory of a checkout."
        )
    skip = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so", "*.pyd", "csrc", "configs")
    shutil.copytree(tree / "detectron2", target / "detectron2", ignore=skip)
    for name, directory in PROJECTS.items():
        if not (tree / directory).is_dir():
            raise InstallError(f"{tree} lacks {directory}; give a complete Detectron2 checkout.")
        shutil.copytree(
            tree / directory, target / "detectron2/projects" / name, ignore=skip, dirs_exist_ok=True
        )
    _copy_model_zoo(tree, target / "detectron2/model_zoo/configs")
    for licence in tree.glob("LICENSE*"):
        shutil.copy(licence, target)
    return target


def _copy_model_zoo(tree: Path, target: Path) -> None:
    # A repository has the files in configs/; a source distribution has them in the package.
    for configs in (tree / "configs", tree / "detectron2/model_zoo/configs"):
        if any(configs.glob("**/*.yaml")):
            for file in sorted(configs.rglob("*")):
                if file.suffix in (".yaml", ".py"):
                    copy = target / file.relative_to(configs)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, copy)
            return
    raise InstallError(f"{tree} has no model zoo (configs/*.yaml); give a complete checkout.")


def _git(*arguments: str) -> None:
    result = subprocess.run(["git", *arguments], capture_output=True, text=True)
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or ["no message"]
        raise InstallError(
            f"git {' '.join(arguments)} failed ({lines[-1]}); "
            "check the network, --git-url and --git-commit, or use --source pypi."
        )
