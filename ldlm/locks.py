"""How processes on one machine, or on a shared file system, divide work: each takes a lock before it does an item.

A lock is the kernel's, on an open file, so it goes with the process that held it: a killed worker leaves nothing to
clean up, and costs the item it was working on. Whether an item is done is never a lock's business; the caller looks for
the item's own record.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldlm import files
from ldlm.errors import InputError


@contextmanager
def claim(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path` within the block; yields False, without it, if another has it and `wait` is off."""
    descriptor = _open(path)
    try:
        yield _locked(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), path)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # whoever finished the work has just removed the folder
            continue


def _locked(descriptor: int, how: int, path: Path) -> bool:
    """Take a lock; False if another has it. `InputError` where the file system has no locks."""
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        raise InputError(
            f"{path} can't be locked ({error.strerror}), and only a lock keeps processes from disturbing each other; "
            f"choose an --output on a file system with flock, or mount this one with it"
        ) from None
    return True


@contextmanager
def entry(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder itself while something in it is looked at and made; leaves no file behind."""
    files.make_folder(folder)
    with _lock_on(folder, fcntl.LOCK_EX):
        yield


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder itself, without waiting; `InputError` when another process works there."""
    with _lock_on(folder, fcntl.LOCK_EX | fcntl.LOCK_NB) as mine:
        if not mine:
            raise InputError(f"another process is at work in {folder}; wait for it, or stop it first")
        yield


@contextmanager
def among(folder: Path) -> Iterator[None]:
    """The same together with others that work there, for as long as nobody is its `sole` holder."""
    with _lock_on(folder, fcntl.LOCK_SH | fcntl.LOCK_NB) as mine:
        if not mine:
            raise InputError(f"another process has {folder} to itself, to mend or replace it; wait for it")
        yield


@contextmanager
def _lock_on(folder: Path, how: int) -> Iterator[bool]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield _locked(descriptor, how, folder)
    finally:
        os.close(descriptor)
