"""Where leases are kept: files in a folder, or objects below a prefix (`leases`)."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ldlm import files
from ldlm.emptying import take_away
from ldlm.location import ObjectPath

SUFFIX = ".lease"


class Held(Protocol):
    """A lease that this process has made, in its place."""

    def renew(self, body: bytes) -> None:
        """Write another body of the same length, wherever the lease is now; OSError or `StorageError` on failure."""

    def lost(self) -> bool:
        """Whether another process has taken the lease away."""

    def release(self) -> None:
        """Remove the lease if it is still this one."""


class Places(Protocol):
    """The leases of a folder, by name."""

    def create(self, name: str, body: bytes) -> Held | None:
        """Make a lease; None if there is one already."""

    def read(self, name: str) -> bytes | None:
        """The body of a lease; None if there is none."""

    def take(self, name: str, body: bytes) -> bool:
        """Remove a lease if it has this body; False when another process was faster."""

    def names(self, prefix: str) -> list[str]:
        """The names of the leases that begin with `prefix`."""


class LeaseFiles:
    """Leases as files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """The file of a lease."""
        return self.folder / (name + SUFFIX)

    def create(self, name: str, body: bytes) -> HeldFile | None:
        path = self.path(name)
        while not os.path.lexists(path):
            try:
                return self._created(path, body)
            except FileExistsError:
                break
            except FileNotFoundError:  # the first lease, or another process has finished and removed the folder
                self.folder.mkdir(parents=True, exist_ok=True)
        return None

    def _created(self, path: Path, body: bytes) -> HeldFile | None:
        """Make the file with its body in it, if there is none.

        A process killed between the two would leave a lease that doesn't say which machine it is from, and nobody could
        take it at once. On a file system without hard links that may happen.
        """
        aside = path.with_name(f".{files.unique()}.tmp")
        os.close(_new_file(aside, body))  # NFS keeps a file that is removed while it is open, under another name
        try:
            os.link(aside, path)
        except FileExistsError:  # NFS may say so of a name that it gave in the first of two attempts
            if files.content(path) != body:
                return None
        except OSError as error:
            if error.errno not in files.NO_LINKS:
                raise
            return HeldFile(path, _new_file(path, body))
        finally:
            aside.unlink(missing_ok=True)
        return self._opened(path, body)

    def _opened(self, path: Path, body: bytes) -> HeldFile | None:
        """The lease that was just made; None if this process was stopped, and another has taken it since."""
        held = HeldFile(path, os.open(path, os.O_RDWR | os.O_CLOEXEC))
        if os.pread(held.descriptor, len(body), 0) in (body, b""):  # empty on a full disk, and a lease all the same
            return held
        os.close(held.descriptor)
        return None

    def read(self, name: str) -> bytes | None:
        try:
            return files.content(self.path(name))
        except OSError:  # NFS forgets a file that is removed while it is being read
            return None

    def take(self, name: str, body: bytes) -> bool:
        return take_away(self.path(name), lambda aside: aside.read_bytes() == body)

    def names(self, prefix: str) -> list[str]:
        return [path.name.removesuffix(SUFFIX) for path in files.matching(self.folder, f"{prefix}*{SUFFIX}")]


def _new_file(path: Path, body: bytes) -> int:
    """The descriptor of a new file, with this body if there is room for it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with suppress(OSError):  # a full disk
        os.write(descriptor, body)
        os.close(os.dup(descriptor))  # NFS and others pass on what was written when a descriptor is closed
    return descriptor


class HeldFile:
    """An open lease file. It is written through its descriptor, so never over the lease of a process that took it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def renew(self, body: bytes) -> None:
        os.pwrite(self.descriptor, body, 0)
        os.fsync(self.descriptor)

    def lost(self) -> bool:
        return not self._is_it(self.path)

    def _is_it(self, path: Path) -> bool:
        try:
            return os.path.samestat(os.stat(path), os.fstat(self.descriptor))
        except OSError:
            return False

    def release(self) -> None:
        try:
            take_away(self.path, self._is_it)
        finally:
            os.close(self.descriptor)


class LeaseObjects:
    """Leases as objects below a prefix, where an object is put only if there is none (`ObjectPath.write_bytes`)."""

    def __init__(self, folder: ObjectPath) -> None:
        self.folder = folder

    def create(self, name: str, body: bytes) -> HeldObject | None:
        path = self.folder / (name + SUFFIX)
        made = path.write_bytes(body, once=True)
        # A put that was answered with a reset, and tried again, finds its own first attempt.
        return HeldObject(path, body) if made or files.content(path) == body else None

    def read(self, name: str) -> bytes | None:
        return files.content(self.folder / (name + SUFFIX))

    def take(self, name: str, body: bytes) -> bool:
        if self.read(name) != body:
            return False
        (self.folder / (name + SUFFIX)).unlink(missing_ok=True, still=lambda: self.read(name) == body)
        return True

    def names(self, prefix: str) -> list[str]:
        return [path.name.removesuffix(SUFFIX) for path in files.matching(self.folder, f"{prefix}*{SUFFIX}")]


class HeldObject:
    """A lease that was put as an object."""

    def __init__(self, path: ObjectPath, body: bytes) -> None:
        self.path, self.body = path, body

    def renew(self, body: bytes) -> None:
        if not self.lost():
            self.path.write_bytes(body)
            self.body = body

    def lost(self) -> bool:
        found = files.content(self.path)  # a sign of life may be under way in another thread: its counter differs
        return found is None or _identity(found) != _identity(self.body)

    def release(self) -> None:
        self.path.unlink(missing_ok=True, still=lambda: not self.lost())


def described(body: bytes) -> dict[str, Any]:
    """The description of its holder in the bytes of a lease; empty if it was not written whole."""
    with suppress(ValueError):
        found = json.loads(body)
        return found if isinstance(found, dict) else {}
    return {}


def _identity(body: bytes) -> object:
    """The part of a lease that no other has and that stays the same while its counter rises."""
    return described(body).get("id", body)
