"""Leases: which process works on what, even where the file system's locks hold on one machine only.

A lease is a small file that gets its name only if the name is free, or an object put only if there is none. It holds
machine, process, start and a counter, which a thread of its holder raises every `HEARTBEAT` seconds. Another process
may take it away once its content has not changed for `EXPIRY` seconds of that process's own monotonic clock; clocks are
never compared. A kernel lock (`locks`) accompanies it: a process that dies frees the lock, and then others on the same
machine take the lease at once.

Leases avoid duplicate work. No guarantee of an artefact rests on one: its holder may be stopped for longer than it
lasts, and two processes may take it at the same moment.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ldlm import files
from ldlm.errors import StorageError
from ldlm.lease_places import Held, LeaseFiles, LeaseObjects, Places, described
from ldlm.location import Location
from ldlm.locks import tried

HEARTBEAT = 30.0  # seconds between two signs of life
EXPIRY = 300.0  # seconds without one, as the observer counts them, after which a lease may be taken
_FIRST, _LONGEST = 0.02, 2.0  # seconds between two looks at what another process holds


def machine(folder: Path) -> str:
    """An identity that two processes share when they see each other's locks in `folder`.

    It is the running kernel, the mount and the folder: two mounts of a file system in user space know nothing of each
    other, and pods on one node may have caches of their own.
    """
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        kernel = files.unique()  # equal to no other
    found = folder.stat()
    return f"{kernel}:{found.st_dev}:{found.st_ino}"


class Lease:
    """A lease that this process holds, until `release` or the end of the block."""

    def __init__(self, leases: Leases, held: Held, locked: ExitStack, about: dict[str, Any]) -> None:
        self._leases, self._held, self._locked, self._about, self._beats = leases, held, locked, about, 0
        self._using, self._released = threading.Lock(), False  # a closed descriptor may become another file's

    def lost(self) -> bool:
        """Whether another process has taken the lease: this one was stopped for longer than it lasts.

        A file that is written whole, and of which the first is kept, may still be written. What is shared must not be
        deleted.
        """
        return self._released or self._held.lost()

    def check(self) -> None:
        """`StorageError` once another process has taken the lease; called before each removal of what is shared."""
        if self.lost():
            raise StorageError(
                f"{self._leases.folder}: this process was stopped for so long that another took its place; "
                f"run the same command again"
            )

    def renew(self) -> None:
        """Give a sign of life. One that fails, as on a full disk, is skipped: the next comes soon."""
        with self._using, suppress(OSError, StorageError):
            if not self._released:
                self._beats += 1
                self._held.renew(_body(self._about, self._beats))

    def release(self) -> None:
        """Let others have it."""
        self._leases._forget(self)
        with self._locked, self._using, suppress(OSError, StorageError):  # then it expires
            if not self._released:
                self._released = True
                self._held.release()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _body(about: dict[str, Any], beats: int) -> bytes:
    return (json.dumps({**about, "beats": f"{beats:012d}"}) + "\n").encode()


class Leases:
    """The leases in `folder`, as this process sees and holds them. For any thread.

    `locks` is the local folder of the kernel locks beside them, `None` for none. The other arguments are for
    simulations: another clock, the identity of another machine, or signs of life that are not given by a thread.
    """

    def __init__(
        self,
        folder: Location,
        locks: Path | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        here: str | None = None,
        heartbeat: float | None = HEARTBEAT,
        expiry: float = EXPIRY,
    ) -> None:
        self.places: Places = LeaseFiles(folder) if isinstance(folder, Path) else LeaseObjects(folder)
        self.folder, self.locks, self.clock, self.sleep = folder, locks, clock, sleep
        self.heartbeat, self.expiry = heartbeat, expiry
        self._here = here
        self._seen: dict[str, tuple[bytes, float]] = {}  # another's lease as it was, and since when
        self._held: set[Lease] = set()
        self._changing = threading.Lock()
        self._beating = False

    @property
    def here(self) -> str:
        """The identity of this machine, for processes that share its locks."""
        if self._here is None:
            self._here = files.unique() if self.locks is None else machine(self.locks)
        return self._here

    def claim(self, name: str) -> Lease | None:
        """Take the lease `name`; None while another process or thread has it."""
        with ExitStack() as locked:
            free = None if self.locks is None else locked.enter_context(tried(self.locks / name))
            about = {
                "machine": self.here,
                "host": platform.node(),
                "process": os.getpid(),
                "start": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "id": files.unique(),
                "locked": free is True,
            }
            held = None if free is False else self.places.create(name, _body(about, 0))
            if held is None and self._over(name, free):
                held = self.places.create(name, _body(about, 0))
            if held is None:
                return None
            lease = Lease(self, held, locked.pop_all(), about)
        self._remember(name, lease)
        return lease

    def _over(self, name: str, free: bool | None) -> bool:
        """Take away a lease whose holder is gone; `free` is True when this process holds the lock beside it."""
        found = self.places.read(name)
        if found is None:
            return free is not False  # it was released just now
        if not (free and self._locked_here(found)):
            seen = self._seen.get(name)
            if seen is None or seen[0] != found:
                self._seen[name] = (found, self.clock())
                return False
            if self.clock() - seen[1] < self.expiry:
                return False
        return self.places.take(name, found)

    def _locked_here(self, body: bytes) -> bool:
        """Whether the holder of a lease had the lock that this process has now."""
        found = described(body)
        return found.get("locked") is True and found.get("machine") == self.here

    @contextmanager
    def turn(self, name: str) -> Iterator[Lease]:
        """Wait for the lease `name`, and hold it within the block."""
        pauses = waits()
        while (lease := self.claim(name)) is None:
            self.sleep(next(pauses))
        with lease:
            yield lease

    # Signs of life

    def _remember(self, name: str, lease: Lease) -> None:
        with self._changing:
            self._seen.pop(name, None)
            self._held.add(lease)
            if self.heartbeat is not None and not self._beating:
                self._beating = True
                threading.Thread(target=self._keep_beating, name="ldlm-leases", daemon=True).start()

    def _forget(self, lease: Lease) -> None:
        with self._changing:
            self._held.discard(lease)

    def beat(self) -> None:
        """Give a sign of life for every lease that is held."""
        with self._changing:
            held = list(self._held)
        for lease in held:
            lease.renew()

    def _keep_beating(self) -> None:
        assert self.heartbeat is not None
        while True:
            time.sleep(self.heartbeat)
            with self._changing:
                if not self._held:
                    self._beating = False
                    return
            self.beat()


def waits() -> Iterator[float]:
    """Seconds to wait between looks at what another process holds, longer and longer."""
    pause = _FIRST
    while True:
        yield pause
        pause = min(_LONGEST, 1.5 * pause)
