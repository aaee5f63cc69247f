"""Which checkpoint a training resumes from."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.utils import comm

from eomt_d2.errors import UserError

from .file_reading import DamagedFileError, read_weights
from .numbering import numbered_names

__all__ = ["check_same_path", "newest_readable"]

logger = logging.getLogger(__name__)


def newest_readable(folder: str, last: str) -> tuple[str, dict[str, Any]]:
    """The last checkpoint of a training, or the newest one before it if that is damaged.

    Every process of a run must call this; all take the same file.

    Args:
        folder: with checkpoints ``model_<iteration>.pth``.
        last: path of the last one, whatever its name.

    Returns:
        The path, and what the file holds.

    Raises:
        UserError: if none can be read, one is not safe to read, or processes see different files.
    """
    older = reversed(numbered_names(os.listdir(folder)))
    problems: list[str] = []
    for path in dict.fromkeys([last, *(os.path.join(folder, name) for name in older)]):
        content, problem = {}, ""
        try:
            if not os.path.isfile(path):
                raise DamagedFileError(f"{path} is missing.")
            content = read_weights(path)
        except DamagedFileError as error:
            problem = str(error)
        ranks = comm.all_gather((path, problem))
        check_same_path([other for other, _ in ranks])
        found = [problem for _, problem in ranks if problem]
        if found:
            problems.append(found[0])
            continue
        if problems:
            logger.warning("%s The training resumes from %s.", " ".join(problems), path)
        return path, content
    raise UserError(
        f"No checkpoint in {folder} can be read ({' '.join(problems)}), so nothing can be resumed; "
        f"leave --resume out to start anew."
    )


def check_same_path(paths: Sequence[str]) -> None:
    """Refuse what ranks would load, one path each, if it is not the same file.

    Raises:
        UserError: if it is not.
    """
    for rank, path in enumerate(paths):
        if path != paths[0]:
            raise UserError(
                f"Rank 0 would load {paths[0] or 'nothing'} and rank {rank} {path or 'nothing'}; "
                f"to resume on several machines, OUTPUT_DIR must be a folder that they share."
            )
