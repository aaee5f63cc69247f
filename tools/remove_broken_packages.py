#!/usr/bin/env python
"""Remove the packages of which files are missing or cut short, so that pip installs them anew.

An interrupted ``pip install`` leaves packages whose metadata says "installed" while files are
missing. Every package lists its files with their sizes in RECORD; this compares. Used by
tools/setup_env.sh; standard library only.
"""

import csv
import shutil
import sys
import sysconfig
from pathlib import Path


def fault(dist_info: Path) -> str | None:
    """What is wrong with an installed package, or None.

    Args:
        dist_info: its ``*.dist-info`` directory.
    """
    for required in ("METADATA", "RECORD", "INSTALLER"):
        if not (dist_info / required).is_file():
            return f"no {required}"
    with (dist_info / "RECORD").open(newline="", encoding="utf-8") as f:
        for row in csv.reader(f):
            if len(row) != 3:
                return "RECORD is cut short"
            name, _, size = row
            path = dist_info.parent / name
            if size and not path.is_file():
                return f"{name} is missing"
            if size and path.stat().st_size != int(size):
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def remove(dist_info: Path, environment: Path) -> None:
    """Delete a package's files and its metadata; pip then writes all of them again.

    Args:
        dist_info: the package's ``*.dist-info`` directory.
        environment: nothing outside of this directory is touched.
    """
    record = dist_info / "RECORD"
    if record.is_file():
        with record.open(newline="", encoding="utf-8") as f:
            files = [(dist_info.parent / row[0]).resolve() for row in csv.reader(f) if row]
        for file in files:
            if file.is_file() and file.is_relative_to(environment.resolve()):
                file.unlink()
    shutil.rmtree(dist_info)


def main(site_packages: Path, environment: Path) -> int:
    for dist_info in sorted(site_packages.glob("*.dist-info")):
        reason = fault(dist_info)
        if reason is not None:
            print(f"{dist_info.name.removesuffix('.dist-info')} is installed again: {reason}")
            remove(dist_info, environment)
    # What pip moved aside while it replaced a package.
    for leftover in site_packages.glob("~*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sysconfig.get_paths()["purelib"]), Path(sys.prefix)))
