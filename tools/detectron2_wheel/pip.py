"""Everything that is asked of pip, always as ``python -m pip`` of the running Python.

Going through pip, and never to a host directly, honours the user's configuration: index URLs,
mirrors, certificates, proxies, credentials, find-links.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import InstallError

# pip runs a source distribution's setup.py to learn its name, even for a mere download.
# Detectron2's setup.py wants PyTorch and a C++ toolchain for that. This build backend stands in
# for setuptools while pip downloads: it tells the name and runs nothing of the archive, whose
# hash has not been checked at that point.
_BACKEND = """\
from pathlib import Path


class __legacy__:
    @staticmethod
    def get_requires_for_build_wheel(config_settings=None):
        return []

    @staticmethod
    def prepare_metadata_for_build_wheel(directory, config_settings=None):
        dist_info = Path(directory) / "{stem}.dist-info"
        dist_info.mkdir()
        metadata = "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
        (dist_info / "METADATA").write_text(metadata)
        return dist_info.name
"""


def run(arguments: Sequence[str], failure: str, env: dict[str, str] | None = None) -> None:
    """Run pip.

    Args:
        arguments: pip's command line.
        failure: what to tell the user, after pip's own words, when pip fails.
        env: additional environment variables.

    Raises:
        InstallError: pip failed.
    """
    command = [sys.executable, "-m", "pip", *arguments]
    result = subprocess.run(
        command,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode != 0:
        print(result.stdout, file=sys.stderr)
        raise InstallError(failure)


def download_sdist(name: str, version: str, directory: Path) -> Path:
    """Download a source distribution without executing anything of it."""
    with tempfile.TemporaryDirectory() as stand_in:
        package = Path(stand_in) / "setuptools"
        package.mkdir()
        (package / "__init__.py").touch()
        stem = f"{name.replace('-', '_')}-{version}"
        backend = _BACKEND.format(stem=stem, name=name, version=version)
        (package / "build_meta.py").write_text(backend, encoding="utf-8")
        # PIP_USE_PEP517: releases of pip before 25.3 prefer to run setup.py themselves.
        env = {"PYTHONPATH": stand_in, "PIP_USE_PEP517": "1"}
        arguments = ["download", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
        arguments += ["--dest", str(directory), f"{name}=={version}"]
        run(arguments, _cannot_download(f"{name} {version}"), env)
    return _only_file(directory)


def download_wheel(name: str, version: str, directory: Path) -> Path:
    """Download a wheel without its dependencies."""
    arguments = ["download", "--no-deps", "--only-binary", ":all:"]
    arguments += ["--dest", str(directory), f"{name}=={version}"]
    run(arguments, _cannot_download(f"{name} {version}"))
    return _only_file(directory)


def without_wheel(requirements: Sequence[str], work_dir: Path) -> list[str]:
    """Which of the requirements, and of what they require in turn, have only sources.

    Returns:
        ``name==version`` for each of them.
    """
    report = work_dir / "report.json"
    arguments = ["install", "--dry-run", "--ignore-installed", "--report", str(report)]
    run([*arguments, *requirements], "The package index cannot provide Detectron2's requirements.")
    installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [
        f"{item['metadata']['name']}=={item['metadata']['version']}"
        for item in installs
        if not item["download_info"]["url"].endswith(".whl")
    ]


def build_wheels(requirements: Sequence[str], wheel_dir: Path) -> None:
    """Build a wheel of each requirement, not of its dependencies."""
    arguments = ["wheel", "--no-deps", "--wheel-dir", str(wheel_dir), *requirements]
    run(arguments, f"pip could not build wheels of {', '.join(requirements)}; see its words above.")


def install(wheels: Sequence[Path], replace: bool, beside: Sequence[str] = ()) -> None:
    """Install wheels and what they require.

    Args:
        replace: also over an installation of the same version.
        beside: further requirements that the wheels do not name.
    """
    files = [str(wheel) for wheel in wheels]
    failure = "pip could not install Detectron2; see its words above, then run this again."
    if replace:
        run(["install", "--force-reinstall", "--no-deps", *files], failure)
    run(["install", *files, *beside], failure)


def _only_file(directory: Path) -> Path:
    files = list(directory.iterdir())
    if len(files) != 1:
        names = ", ".join(sorted(f.name for f in files)) or "nothing"
        raise InstallError(f"pip was asked for one file and left {names} in {directory}.")
    return files[0]


def _cannot_download(what: str) -> str:
    return (
        f"The package index does not hand out {what} (pip's words are above). Without a network, "
        "use --source PATH with a Detectron2 checkout, or feed this machine with wheels made "
        "elsewhere by --wheel-dir."
    )
