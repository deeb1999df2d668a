"""Exceptions whose message is for the user.

Raise `InputError` for what a user can get wrong, with one line that names the value, what was expected and the remedy.
The command line prints that line and exits with status 1. Any other exception is a bug and keeps its traceback.
"""


class InputError(ValueError):
    """A value, a file or a combination of settings that the user can correct."""


class Unreadable(InputError):
    """The system could not read a file; its content may be good, so an unfinished output is kept."""


class Occupied(InputError):
    """The output can't be resumed: what is there was made with other settings, or from other inputs."""


class Stopped(BaseException):
    """A stage ended cleanly after a signal; the message says where. Exit status 75 (EX_TEMPFAIL).

    Not an `Exception`: raised during a compilation, it must not be handled as an error of the compiler.
    """


class StorageError(Exception):
    """A storage service failed despite retries; the message is one line, like that of `InputError`.

    The input is not at fault, so an unfinished output is kept.
    """
