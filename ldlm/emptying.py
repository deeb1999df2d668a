"""Removing what several processes share: one file, or all of a folder, which may be a mount point or hold some.

The process that removes has the folder to itself by a lease, and `check` raises an error once it has lost that. It may
be stopped at any moment, between the check and a removal too, for longer than the lease lasts, while another process
takes its place and begins anew. So a file is set aside, then the lease is checked again, and then the file goes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection
from pathlib import Path

from ldlm import files
from ldlm.errors import StorageError
from ldlm.location import Location, ObjectPath


def empty(folder: Location, *, but: Collection[Location], check: Callable[[], None]) -> None:
    """Delete everything below a folder except the files `but`. Mount points below it are emptied and stay.

    `check` is called before each removal, and raises an error once this process may not go on.
    """
    if isinstance(folder, ObjectPath):
        for path, _ in files.below(folder):
            if path not in but:
                remove(path, check)
        return
    for place, folders, names in os.walk(folder, topdown=False):
        for name in names:
            if Path(place, name) not in but:
                remove(Path(place, name), check)
        for name in folders:
            if Path(place, name).is_symlink():
                remove(Path(place, name), check)
            elif name != "lost+found":  # which file systems of the ext family keep
                check()
                _remove_folder(Path(place, name))


def remove(path: Location, check: Callable[[], None]) -> None:
    """Remove a file or a link, if there is one and this process may, by `check`; one that has come there is put back.

    An object store has no renames: there an object is removed after one check.
    """
    check()
    if isinstance(path, ObjectPath):
        path.unlink(missing_ok=True)
        return
    aside = path.with_name(f".{files.unique()}.tmp")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    try:
        check()
    except StorageError:  # another process has the folder, and the file may be its own
        files.link(aside, path)
        raise
    finally:
        aside.unlink()


def _remove_folder(path: Path) -> None:
    try:
        path.rmdir()
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):  # a mount point; files that NFS keeps while they are open
            raise
