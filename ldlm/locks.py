"""Locks between processes on one machine or on a shared file system.

They are the kernel's (flock), on an open file or folder, so they end with the process that holds them: after a kill
there is nothing to clean up. On some shared file systems they hold on one machine only (`mounts`), so `leases`
accompany them. Locks avoid duplicate work. No guarantee of an artefact rests on one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldlm.errors import InputError


class NoLocks(InputError):
    """The file system has no locks."""


@contextmanager
def exclusive_lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the exclusive lock on a folder. `InputError` if another process holds a lock on it, unless `wait`."""
    with _folder_lock(folder, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)) as held:
        if not held:
            raise InputError(f"another process is at work in {folder}; wait for it, or stop it first")
        yield


@contextmanager
def shared_lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a shared lock on a folder. `InputError` if another process holds the exclusive one, unless `wait`."""
    with _folder_lock(folder, fcntl.LOCK_SH | (0 if wait else fcntl.LOCK_NB)) as held:
        if not held:
            raise InputError(f"another process has {folder} to itself, to repair or replace it; wait for it")
        yield


@contextmanager
def tried(path: Path) -> Iterator[bool | None]:
    """Hold an exclusive lock on the file `path`, which is made if need be, without waiting.

    Yields True if it is held, False if another process has it, None if the file system has no locks.
    """
    descriptor = _open(path)
    try:
        yield _try(descriptor, path)
    finally:
        os.close(descriptor)


def _try(descriptor: int, path: Path) -> bool | None:
    try:
        return _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
    except NoLocks:
        return None


@contextmanager
def to_itself(path: Path, refusal: str) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is made and removed again.

    `InputError` if another process has it. If the file system has no locks or can't be written to, nothing is held.
    """
    try:
        descriptor = _open(path)
    except OSError:  # whatever is then written there fails and says so
        yield
        return
    try:
        if _try(descriptor, path) is False or not _is_named(descriptor, path):
            raise InputError(refusal)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether the open file still has this path: a process that had the lock removes the file when it ends."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def passed_on(path: Path, *, wait: bool = False) -> Iterator[int | None]:
    """Hold an exclusive lock on the file `path`, which is made if need be.

    Yields its descriptor, or None if another process has the lock, unless `wait`. A child that inherits the descriptor
    holds the lock too, until it ends.
    """
    descriptor = _open(path)
    try:
        yield descriptor if _lock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), path) else None
    finally:
        os.close(descriptor)


@contextmanager
def _folder_lock(folder: Path, how: int) -> Iterator[bool]:
    """A lock on the folder itself, which leaves no file behind."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield _lock(descriptor, how, folder)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # another process has finished the work and removed the folder
            continue


def _lock(descriptor: int, how: int, path: Path) -> bool:
    """Take a lock; False if another process has it. `InputError` if the file system has no locks."""
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        raise NoLocks(
            f"{path} can't be locked ({error.strerror}), and only a lock keeps processes from disturbing each other; "
            f"choose an --output on a file system with flock, or mount this one with it"
        ) from None
    return True
