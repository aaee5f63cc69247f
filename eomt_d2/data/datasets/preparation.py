"""What the preparation scripts share: where data is, work over many files, safe writing."""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from eomt_d2.errors import UserError, exit_on_user_error

__all__ = [
    "default_root",
    "list_files",
    "map_files",
    "run",
    "write_json",
    "write_png",
]

_File = TypeVar("_File")
_Result = TypeVar("_Result")


def default_root() -> Path:
    """``$DETECTRON2_DATASETS``, or ``datasets`` where it is not set."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets")


def run(prepare: Callable[[Path, int | None], None], description: str) -> None:
    """The command line of a script that prepares a data set: ``--root`` and ``--workers``.

    Args:
        prepare: takes the folder of all data and the number of processes (None: default).
        description: shown by ``--help``.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--root", type=Path, default=default_root(), help="folder of all data")
    parser.add_argument("--workers", type=int, help="processes (default: one per core, up to 8)")
    args = parser.parse_args()
    with exit_on_user_error():
        prepare(args.root, args.workers)


def list_files(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder, sorted.

    Raises:
        UserError: the folder is missing, or no file matches.
    """
    if not folder.is_dir():
        raise UserError(f"The folder '{folder}' does not exist; see datasets/README.md.")
    files = sorted(folder.glob(pattern))
    if not files:
        raise UserError(f"The folder '{folder}' has no '{pattern}' file; see datasets/README.md.")
    return files


def map_files(
    function: Callable[[_File], _Result],
    files: Sequence[_File],
    description: str,
    num_workers: int | None = None,
) -> list[_Result]:
    """Apply a picklable function to files, or what describes them, in several processes, with a
    progress bar.

    Returns:
        The results, in the order of ``files``.
    """
    workers = min(8, os.cpu_count() or 1) if num_workers is None else num_workers
    if workers <= 1:
        return [function(file) for file in tqdm(files, desc=description)]
    with ProcessPoolExecutor(workers) as pool:
        results = pool.map(function, files, chunksize=max(1, min(64, len(files) // workers)))
        return list(tqdm(results, desc=description, total=len(files)))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG file that is never seen half written."""
    with _replacing(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is never seen half written."""
    with _replacing(path) as partial:
        partial.write_text(json.dumps(content), encoding="utf-8")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of ``path`` when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        partial.chmod(0o644)
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
