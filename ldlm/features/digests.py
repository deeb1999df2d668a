"""Remembered hashes of large text files: a terabyte is hashed once, not by every process that starts.

The user's cache keeps each hash with the path, size, modification time, change time and inode of its file. The hash
holds while all of these are unchanged. Only the kernel sets the change time, so another file that is moved or copied to
the path is hashed again, even with the same size and modification time. The device number is left out, since machines
that share the hashes of one file server number their mounts differently. Processes that start together divide the files
among themselves; if the cache can't be written, each hashes all files. Machines that make a store in an object store
divide the files too: until the seal, the object store keeps each hash under all these properties of its file.

Text that is read after it was hashed is compared with what was `Seen` of it then.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ldlm import files
from ldlm.errors import Unreadable
from ldlm.features.detection import as_input_error
from ldlm.features.shared_work import Tally, share
from ldlm.leases import Leases
from ldlm.location import Location, ObjectPath, user_cache
from ldlm.presence import CLAIMS
from ldlm.progress import SILENT, Progress

LEAST = 2**24  # bytes; hashing a smaller file takes no time
SETTLED = 2.0  # seconds after a change within which another may get the same time: the coarsest clocks tick this slowly
PART = 2**20
RESTORE = "put its old content back and run the same command again, or begin anew with --overwrite"


class Seen(NamedTuple):
    """The sha256 of a file, with its size and times from before it was hashed.

    The inode is left out, since some file systems give a file another one now and then.
    """

    sha256: str
    bytes: int
    modified: int  # nanoseconds, as is the next
    changed: int

    def differs(self, path: Path) -> set[str]:
        """Names of the size and times in which the file is not as it was; `Unreadable` when it is gone."""
        with as_input_error(lambda: str(path)):
            now = _state(path)
        return {name for name in ("bytes", "modified", "changed") if now[name] != getattr(self, name)}


def seen(paths: Sequence[Path], progress: Progress = SILENT, store: Location | None = None) -> dict[Path, Seen]:
    """The sha256, size and times of files, by path; arguments and errors as those of `sha256`."""
    states = dict[Path, dict[str, int]]()
    for path in paths:
        with as_input_error(lambda: str(path)):  # noqa: B023
            states[path] = _state(path)
    found = sha256(paths, progress, store)
    return {
        path: Seen(found[path], state["bytes"], state["modified"], state["changed"]) for path, state in states.items()
    }


@contextmanager
def as_hashed(before: Mapping[str, Seen], remedy: str = RESTORE) -> Iterator[None]:
    """Files are read within the block: `Unreadable`, and no error of it, if one has changed since it was hashed."""
    try:
        yield
    except Exception:  # a library may fail in any way on a file that changes while it reads
        check(before, remedy)
        raise
    check(before, remedy)


def check(before: Mapping[str, Seen], remedy: str = RESTORE) -> None:
    """`Unreadable` when a file has changed since it was hashed: what was made of it before stays.

    Where only the time of the last change of status differs, as after chmod or a hard link, the file is hashed again.
    """
    found = {path: one.differs(Path(path)) for path, one in before.items()}
    touched = [Path(path) for path, names in found.items() if names == {"changed"}]
    hashes = sha256(touched) if touched else {}
    for path, one in before.items():
        if found[path] and hashes.get(Path(path)) != one.sha256:
            raise Unreadable(f"{path} has changed since it was hashed; {remedy}")


def sha256(paths: Sequence[Path], progress: Progress = SILENT, store: Location | None = None) -> dict[Path, str]:
    """The sha256 of files, by path; `InputError` for one that can't be read.

    Processes that make the same `store` in an object store hash each file once between them.
    """
    large = {path: size for path in paths if (size := files.size(path) or 0) >= LEAST}
    shared = store / CLAIMS / "digests" if isinstance(store, ObjectPath) else None
    found = _Hashing(large, shared).run(progress) if large else {}
    return {path: found.get(path) or _hashed(path) for path in paths}


class _Hashing:
    """Hashes large files together with other processes that have this cache, or the folder `shared` beyond it."""

    def __init__(self, sizes: dict[Path, int], shared: ObjectPath | None) -> None:
        self.sizes, self.found, self.shared = sizes, dict[Path, str](), shared
        self.seen: dict[Path, dict[str, int]] = {}
        self.since = 0.0
        self.folder = user_cache() / "digests"
        self.leases = Leases((shared or self.folder) / "claims", self.folder / "claims")

    def run(self, progress: Progress) -> dict[Path, str]:
        """The hashes by path; fewer if the cache can't be written."""
        with suppress(OSError), Tally(progress, "hash the text", self.sizes, self._all_known, unit="byte") as tally:
            self.seen, self.since = {path: _state(path) for path in self.sizes}, time.monotonic()
            share(
                list(self.sizes),
                done=self._known,
                work=partial(self._work, tally),
                claim=lambda path: self.leases.claim(self._places(path)[-1].stem),
            )
        return self.found

    def _work(self, tally: Tally[Path], path: Path) -> None:
        before = self.seen[path]
        self._remember(path, before, None)  # if nothing can be written, fail before the work
        # After this wait a change gets another time, whatever the file server's clock says. One wait serves all files.
        time.sleep(max(0.0, self.since + SETTLED - time.monotonic()))
        digest = _hashed(path, partial(tally.advance, path))
        if _state(path) == before:
            self._remember(path, before, digest)
        self.found[path] = digest

    def _places(self, path: Path) -> list[Location]:
        """The files that remember a hash: in the cache by path, and where machines meet by path and state.

        Two machines may have different files at one path, each on its own disk.
        """
        named = str(path.absolute())
        places: list[Location] = [self.folder / f"{files.sha256(named.encode())[:32]}.json"]
        if self.shared is not None:
            places.append(self.shared / f"{files.sha256_json([named, _state(path)])[:32]}.json")
        return places

    def _remember(self, path: Path, state: dict[str, int], digest: str | None) -> None:
        record = {"path": str(path.absolute()), **state, "sha256": digest}
        for place in self._places(path):
            files.write_atomic(place, files.dump_digested(record))

    def _known(self, path: Path) -> bool:
        """Whether the hash of a file is known here, after a look into the cache."""
        state = _state(path)
        for place in [] if path in self.found else self._places(path):
            record = files.load_digested(files.content(place) or b"") or {}
            if record.get("sha256") and state == {name: record.get(name) for name in state}:
                self.found[path] = record["sha256"]
        return path in self.found

    def _all_known(self) -> set[Path]:
        return set(filter(self._known, self.sizes))


def _state(path: Path) -> dict[str, int]:
    """The properties of a file that show a change: size, the two times in nanoseconds, and inode."""
    found = path.stat()
    return {
        "bytes": found.st_size,
        "modified": found.st_mtime_ns,
        "changed": found.st_ctime_ns,
        "inode": found.st_ino,
    }


def _hashed(path: Path, advance: Callable[[int], object] = lambda count: None) -> str:
    """The sha256 of a file; `advance` counts bytes as they are read."""
    digest = hashlib.sha256()
    with as_input_error(lambda: str(path)), open(path, "rb") as file:
        while part := file.read(PART):
            digest.update(part)
            advance(len(part))
    return digest.hexdigest()
