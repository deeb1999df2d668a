"""The exceptions a user is meant to read.

Raise `InputError` for whatever a user can get wrong: it carries one line that names the value, what was expected and
what to do about it. The command line prints that line and exits with status 1; everything else is a bug and keeps its
traceback.
"""


class InputError(ValueError):
    """A value, a file or a combination of settings that the user can put right."""


class Stopped(BaseException):
    """A stage has ended in order because a signal asked it to; the message says where. Exit status 75, EX_TEMPFAIL.

    Not an `Exception`: raised in the middle of a compilation, it must not be taken for a fault of the compiler's.
    """


class StorageError(Exception):
    """A storage service that does not do what was asked, after retries. One line, like `InputError`.

    It is not the user's input that is wrong, so nothing that was begun is taken back.
    """
