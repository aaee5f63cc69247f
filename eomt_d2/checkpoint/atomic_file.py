"""Files that appear under their name only when they are complete."""

import os
from typing import BinaryIO

__all__ = ["AtomicFile"]


class AtomicFile:
    """Context manager that opens a temporary file beside ``path`` for writing bytes.

    It takes the place of ``path`` when the block ends well, and is removed when it does not, so an
    interruption never leaves a damaged file behind or destroys an older one.
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
        else:
            os.remove(self._temporary)
