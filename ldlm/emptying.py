"""Removing what several processes share: one file, or all of a folder, which may be a mount point or hold some.

A lease gives the process that removes the folder to itself, and `check` raises an error once the lease is lost. The
process may be stopped at any moment, even between the check and a removal, for longer than the lease lasts, while
another takes its place and begins anew. So a file is set aside, then the lease is checked again, and only then is the
file removed, or put back. No error on the way loses it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from ldlm import files
from ldlm.location import Location, ObjectPath, passing


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


def remove_folder(folder: Location, check: Callable[[], None]) -> None:
    """Remove a folder and its contents, with `check` as in `empty`; it stays if a late process has a file in it.

    So does a mount point.
    """
    if isinstance(folder, ObjectPath):
        folder.unlink_below(passing(check))
        return
    empty(folder, but=(), check=check)
    with suppress(OSError):
        folder.rmdir()


def remove(path: Location, check: Callable[[], None]) -> None:
    """Remove a file or a link, if there is one and `check` allows it; one that has come into its place is put back.

    An object store has no renames, so a check comes before each attempt to remove an object. A file that is removed
    while it is open is kept by NFS under another name, and NFS removes it itself.
    """
    if path.name.startswith(".nfs"):
        return
    still = passing(check)
    if isinstance(path, ObjectPath):
        path.unlink(missing_ok=True, still=still)
    else:
        check()
        take_away(path, lambda aside: still())  # by now another process may have the folder and own the file


def take_away(path: Path, is_it: Callable[[Path], bool]) -> bool:
    """Remove a file if it is the one that is meant, by renaming it first: of several processes one succeeds.

    `is_it` is asked about the renamed file. If it says no or raises an error, the file is put back, unless another has
    meanwhile come to its place. One that can't be put back stays beside its place, and the error names both paths.
    """
    aside = path.with_name(f".{files.unique()}.tmp")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    found = False
    try:
        found = is_it(aside)
    finally:
        if not found:
            _put_back(aside, path)
        aside.unlink(missing_ok=True)
    return found


def _put_back(aside: Path, path: Path) -> None:
    """Give a file its name again if that is free. It stays the same file, by which an open lease recognises it."""
    try:
        os.link(aside, path, follow_symlinks=False)
    except FileExistsError:
        return
    except OSError:  # no hard links, or no room for a second name; a file that appears meanwhile is replaced
        if os.path.lexists(path):
            return
        with suppress(FileNotFoundError):  # another process has emptied the folder
            aside.rename(path)
    files.fsync_dir(path.parent)


def _remove_folder(path: Path) -> None:
    try:
        path.rmdir()
    except OSError as error:
        # A mount point; files that NFS keeps while they are open; one that another process has removed.
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY, errno.ENOENT):
            raise
