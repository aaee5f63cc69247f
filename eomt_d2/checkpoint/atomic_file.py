"""Files that appear under their name only when they are complete."""

import errno
import os
import re
from typing import BinaryIO

__all__ = ["AtomicFile", "remove_leftovers"]


class AtomicFile:
    """Context manager that opens a temporary file beside ``path`` for writing bytes.

    It takes the place of ``path`` when the block ends well, and is removed when it does not, so an
    interruption never leaves a damaged file behind or destroys an older one; nor does a machine
    that loses its power. A process that is killed leaves the temporary file, see
    :func:`remove_leftovers`.
    """

    def __init__(self, path: str):
        self._path = path
        self._temporary = f"{path}.{os.getpid()}.tmp"

    def __enter__(self) -> BinaryIO:
        self._file = open(self._temporary, "wb")
        return self._file

    def __exit__(self, error_type, error, traceback) -> None:
        if error_type is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if error_type is None:
            os.replace(self._temporary, self._path)
            _flush_folder(os.path.dirname(self._path) or ".")
        else:
            os.remove(self._temporary)


def remove_leftovers(folder: str) -> list[str]:
    """Remove the temporary files that killed processes left in a folder.

    Returns:
        Their names. None may be in use: only one process writes into the folder.
    """
    if not os.path.isdir(folder):
        return []
    names = [name for name in sorted(os.listdir(folder)) if re.search(r"\.\d+\.tmp$", name)]
    for name in names:
        os.remove(os.path.join(folder, name))
    return names


def _flush_folder(folder: str) -> None:
    """Make a new name in a folder survive a loss of power, where the system can (not Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not know this for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
