"""Builds a pure-Python wheel of Detectron2 that runs on today's PyTorch, NumPy and Pillow.

Used by ``tools/install_detectron2.py``. Standard library and pip only: this code runs before
anything but PyTorch is installed.

    source.py         where the sources come from: package index, git, a directory or an archive
    substitutions.py  what has to change in them, one record per change, and why
    wheel.py          patched sources -> wheel
    pip.py            everything that is asked of pip
    installed.py      what is installed already, and does it work
"""


class InstallError(Exception):
    """A fault the user can act on; its text is one sentence: what, where, what to do."""
