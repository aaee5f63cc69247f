"""The one exception class for mistakes that the user can correct, and how tools show it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["UserError", "exit_on_user_error"]


class UserError(ValueError):
    """A mistake of the user: a setting, a path, a file or a data set that cannot be used.

    The message is complete by itself, one sentence that says what is wrong, where, and what to
    do. The command-line tools print it without a traceback and leave with exit code 2.
    """


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a :class:`UserError` into its message on stderr and exit code 2; for command lines."""
    try:
        yield
    except UserError as error:
        # What a worker of a DataLoader raised arrives with its traceback as part of the message.
        message = str(error).rpartition(f"{UserError.__qualname__}: ")[2].rstrip()
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
