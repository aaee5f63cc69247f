"""The one exception class for mistakes that the user can correct."""


class UserError(ValueError):
    """A mistake of the user: a setting, a path, a file or a data set that cannot be used.

    The message is complete by itself, one sentence that says what is wrong, where, and what to
    do. The command-line tools print it without a traceback and leave with exit code 2.
    """
