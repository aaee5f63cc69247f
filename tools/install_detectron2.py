#!/usr/bin/env python
"""Install a Detectron2 that works on the installed PyTorch, NumPy and Pillow; no compiler needed.

    python tools/install_detectron2.py                      # pinned 0.6 from the package index
    python tools/install_detectron2.py --source git         # the official repository, pinned
    python tools/install_detectron2.py --source ~/detectron2
    python tools/install_detectron2.py --wheel-dir wheels   # only build, e.g. for other machines

A Detectron2 that works is left alone. Changes made to the sources are listed, with reasons, in
tools/detectron2_wheel/substitutions.py. Compiled operators (rotated boxes, Detectron2's own
deformable convolution) are not part of the result; EoMT and Mask2Former need none of them.

A machine without a network takes the content of --wheel-dir beside the ordinary wheels:

    python -m pip install --no-index --find-links wheels detectron2 panopticapi-lite
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 - the message is for those who have an older one
    sys.exit("install_detectron2.py: Python 3.10 or newer is needed; run it with such a Python.")

from detectron2_wheel import InstallError, installed, pip, source, wheel

PANOPTICAPI = "panopticapi-lite"
PANOPTICAPI_VERSION = "0.2.0"
PANOPTICAPI_SHA256 = "58d3ffa842a72240162e7fa744c602a0a5320baabbdb3295d770374f4639b486"

# Needed by the evaluators of eomt_d2 (see setup.py), so that --wheel-dir feeds those as well.
EVALUATION_REQUIREMENTS = ("cityscapesscripts",)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source",
        default="pypi",
        metavar="pypi|git|PATH",
        help="pinned release 0.6 from the package index (default), the official repository, or "
        "a checkout or source archive of 0.6 or main",
    )
    parser.add_argument("--git-url", default=source.GIT_URL, help="repository of --source git")
    parser.add_argument(
        "--git-commit", default=source.GIT_COMMIT, help="commit, tag or branch of --source git"
    )
    parser.add_argument("--wheel-dir", type=Path, help="build wheels here and install nothing")
    parser.add_argument(
        "--force", action="store_true", help="replace a Detectron2 that already works"
    )
    return parser.parse_args(arguments)


def build_detectron2(args: argparse.Namespace, work_dir: Path, wheel_dir: Path) -> Path:
    if args.source == "pypi":
        name = f"{source.SDIST} {source.SDIST_VERSION}"
        print(f"Detectron2: {name} from the package index", flush=True)
        tree = source.from_index(work_dir)
    elif args.source == "git":
        print(f"Detectron2: {args.git_commit} of {args.git_url}", flush=True)
        tree = source.from_git(work_dir, args.git_url, args.git_commit)
    else:
        print(f"Detectron2: {args.source}", flush=True)
        tree = source.from_path(work_dir, Path(args.source).expanduser())
    return wheel.build_detectron2(tree, work_dir, wheel_dir)


def build_panopticapi(work_dir: Path, wheel_dir: Path) -> Path:
    print(f"panopticapi: {PANOPTICAPI} {PANOPTICAPI_VERSION} without its NumPy cap", flush=True)
    original = pip.download_wheel(PANOPTICAPI, PANOPTICAPI_VERSION, work_dir / "panopticapi")
    source.check_sha256(original, PANOPTICAPI_SHA256)
    return wheel.with_honest_requirements(original, wheel.PANOPTICAPI_REQUIREMENTS, wheel_dir)


def build_only(args: argparse.Namespace, work_dir: Path) -> None:
    """Fill --wheel-dir with everything that the package index has no usable wheel of."""
    built = [
        build_detectron2(args, work_dir, args.wheel_dir),
        build_panopticapi(work_dir, args.wheel_dir),
    ]
    # PyTorch is huge, differs by machine and always comes as a wheel.
    others = [r for r in wheel.REQUIREMENTS if not r.startswith("torch")]
    print("Looking for requirements that come without a wheel ...", flush=True)
    sources = pip.without_wheel([*others, *EVALUATION_REQUIREMENTS], work_dir)
    if sources:
        print(f"Building {', '.join(sources)}", flush=True)
        pip.build_wheels(sources, args.wheel_dir)
    print(f"Wheels in {args.wheel_dir}:")
    for file in sorted(args.wheel_dir.glob("*.whl")):
        print(f"  {file.name}{'  (adapted)' if file in built else ''}")


def install(args: argparse.Namespace, work_dir: Path) -> None:
    """Install what is missing or does not work, and check the result."""
    wheels: list[Path] = []
    broken = False
    for module in ("detectron2", "panopticapi"):
        fault = installed.fault(module)
        if fault is None and not args.force:
            print(f"{module} {installed.version(module)} works and is left alone.")
            continue
        if fault is not None and installed.is_present(module):
            print(f"{module} {installed.version(module)} is installed but does not work: {fault}")
        broken = broken or installed.is_present(module)
        if module == "detectron2":
            wheels.append(build_detectron2(args, work_dir, work_dir / "wheels"))
        else:
            wheels.append(build_panopticapi(work_dir, work_dir / "wheels"))
    if wheels:
        installed.require_torch()
        print("Installing them and what they require ...", flush=True)
        # Detectron2 imports cv2 but leaves its provider to the user; without one, this build needs
        # no OpenGL or X11.
        opencv = [] if installed.is_present("cv2") else ["opencv-python-headless"]
        pip.install(wheels, replace=broken, beside=opencv)
        for module in ("detectron2", "panopticapi"):
            fault = installed.fault(module)
            if fault is not None:
                raise InstallError(f"{module} was installed but does not work: {fault}")
        print("Detectron2 works.")
    elif not installed.restores_schedules():
        print(
            "Note: in this Detectron2, resuming restarts PyTorch's own learning-rate schedules; "
            "--force replaces it by one that restores them."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="install_detectron2-") as work_dir:
            if args.wheel_dir is not None:
                build_only(args, Path(work_dir))
            else:
                install(args, Path(work_dir))
    except InstallError as error:
        print(f"install_detectron2.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install_detectron2.py: interrupted; run it again.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
