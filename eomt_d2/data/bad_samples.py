"""What becomes of training images that cannot be used: DATALOADER.ON_BAD_SAMPLE."""

import logging
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode

from eomt_d2.errors import UserError

__all__ = ["SkipsBadSamples", "skip_bad_samples"]

# That many bad images in a row are no accident: a folder is missing, or a disk.
MAX_IN_A_ROW = 100

_logger = logging.getLogger(__name__)


def skip_bad_samples(
    cfg: CfgNode, mapper: Callable[..., dict | None]
) -> Callable[..., dict | None]:
    """The mapper itself, or with DATALOADER.ON_BAD_SAMPLE "skip" one that skips bad images."""
    return SkipsBadSamples(mapper) if cfg.DATALOADER.ON_BAD_SAMPLE == "skip" else mapper


class SkipsBadSamples:
    """A mapper that gives None where another one finds that an image cannot be used.

    On None another image takes its place, as the contract of Detectron2's ``MapDataset`` says.
    Each bad image is logged once by each process that meets it, with the count so far; nothing is
    drawn at random here. Only a :class:`UserError` means a bad image: any other exception is a
    fault of the program and is raised.

    Args:
        mapper: turns an entry of the data set (and whatever else it is called with) into a sample.

    Attributes:
        num_skipped: samples skipped by this process, repetitions included.
    """

    def __init__(self, mapper: Callable[..., dict | None]):
        self._mapper = mapper
        self._told: set[str] = set()
        self._in_a_row = 0
        self.num_skipped = 0

    def __call__(self, entry: dict, *args: Any, **kwargs: Any) -> dict | None:
        """
        Returns:
            the mapper's sample, or None.

        Raises:
            UserError: one hundred images in a row cannot be used.
        """
        try:
            sample = self._mapper(entry, *args, **kwargs)
        except UserError as error:
            self._skip(str(entry.get("file_name")), error)
            return None
        self._in_a_row = 0
        return sample

    def _skip(self, file_name: str, error: UserError) -> None:
        self.num_skipped += 1
        self._in_a_row += 1
        if file_name not in self._told:
            self._told.add(file_name)
            _logger.warning(
                f"Bad sample skipped (bad images so far: {len(self._told)}, skipped "
                f"{self.num_skipped} times): {error}"
            )
        if self._in_a_row >= MAX_IN_A_ROW:
            raise UserError(
                f"{MAX_IN_A_ROW} images in a row could not be used, the last because: {error}"
            ) from error
