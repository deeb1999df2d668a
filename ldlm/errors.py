"""Exceptions whose message is for the user.

Raise `InputError` for what a user can get wrong, with one line that names the value, what was expected and the remedy.
The command line prints that line and exits with status 1. Any other exception is a bug and keeps its traceback.
"""


class InputError(ValueError):
    """A value, a file or a combination of settings that the user can correct."""


class Unreadable(InputError):
    """The system could not read a file. Its content may be good, so an output that was begun is kept."""


class Stopped(BaseException):
    """A stage ended in good order after a signal; the message says where. Exit status 75 (EX_TEMPFAIL).

    Not an `Exception`: raised during a compilation, it must not be handled as an error of the compiler.
    """


class StorageError(Exception):
    """A storage service failed, after retries. One line, like `InputError`.

    The input is not at fault, so an output that was begun is kept.
    """
