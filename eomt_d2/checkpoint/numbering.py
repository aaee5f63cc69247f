"""Names of checkpoints that say after which iteration they were saved."""

import re
from collections.abc import Iterable

__all__ = ["iteration_of", "numbered_name", "numbered_names"]


def numbered_name(iteration: int) -> str:
    """File name of the checkpoint after an iteration, which counts from 0; Detectron2's own."""
    return f"model_{iteration:07d}.pth"


def iteration_of(name: str) -> int | None:
    """The iteration in such a file name; None for any other name."""
    match = re.fullmatch(r"model_(\d{7,})\.pth", name)
    return int(match[1]) if match else None


def numbered_names(names: Iterable[str]) -> list[str]:
    """Those of some file names that name an iteration, the oldest first."""
    found = [(iteration_of(name), name) for name in names]
    numbered = [(iteration, name) for iteration, name in found if iteration is not None]
    return [name for _, name in sorted(numbered)]
