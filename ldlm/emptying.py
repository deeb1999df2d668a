"""Emptying a folder, which may be a mount point or hold some, or a prefix of an object store."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection
from pathlib import Path

from ldlm import files
from ldlm.location import Location, ObjectPath


def empty(folder: Location, *, but: Collection[Location], check: Callable[[], None]) -> None:
    """Delete everything below a folder except the files `but`. Mount points below it are emptied and stay.

    `check` is called before each removal, and raises an error once this process may not go on.
    """
    if isinstance(folder, ObjectPath):
        for path, _ in files.below(folder):
            if path not in but:
                check()
                path.unlink(missing_ok=True)
        return
    for place, folders, names in os.walk(folder, topdown=False):
        for name in names:
            if Path(place, name) not in but:
                check()
                Path(place, name).unlink(missing_ok=True)
        for name in folders:
            check()
            if Path(place, name).is_symlink():
                Path(place, name).unlink()
            elif name != "lost+found":  # which file systems of the ext family keep
                _remove_folder(Path(place, name))


def _remove_folder(path: Path) -> None:
    try:
        path.rmdir()
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):  # a mount point; files that NFS keeps while they are open
            raise
