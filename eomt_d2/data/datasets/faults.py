"""What is wrong with a data set: the first fault as an error, or all of them as a list."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from eomt_d2.errors import UserError

__all__ = ["Fault", "Faults"]

_logger = logging.getLogger(__name__)


class Fault(NamedTuple):
    """One fault of a data set.

    Attributes:
        severity: "error", where training or evaluation would stop, or "warning", where it goes on
            without something that the data has.
        file: the annotation file or the image that it is about.
        message: one sentence: what is wrong, where, and after a semicolon what to do.
    """

    severity: str
    file: str
    message: str


class Faults:
    """Gathers the faults of one annotation file while it is read.

    Args:
        file: the annotation file.
        report: gets every fault as soon as it is found. None: errors are kept for
            :meth:`raise_errors` and warnings are logged.
    """

    def __init__(self, file: Any, report: Callable[[Fault], None] | None = None):
        self._file = str(file)
        self._report = report
        self._errors: list[str] = []

    @property
    def raises(self) -> bool:
        """Whether errors are raised instead of reported."""
        return self._report is None

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Takes a :class:`UserError` of the block for an error of the data set."""
        try:
            yield
        except UserError as error:
            self.error(str(error))

    def error(self, message: str) -> None:
        """A fault that training or evaluation cannot go on with."""
        if self._report is None:
            self._errors.append(message)
        else:
            self._report(Fault("error", self._file, message))

    def warning(self, message: str) -> None:
        """A fault that training or evaluation can go on with."""
        if self._report is None:
            _logger.warning(message)
        else:
            self._report(Fault("warning", self._file, message))

    def raise_errors(self) -> None:
        """
        Raises:
            UserError: the first error, and how many more there are, unless all were reported.
        """
        if len(self._errors) > 1:
            raise UserError(
                f"{self._errors[0]} ({len(self._errors) - 1} more faults; "
                "tools/check_dataset.py lists them all.)"
            )
        if self._errors:
            raise UserError(self._errors[0])
