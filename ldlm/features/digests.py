"""Hashes of large text files, which are remembered: a terabyte is hashed once, and not by every process that starts.

A hash stands in the user's cache with what its file was known by: path, size, time of modification, time of change and
inode. It holds while all of them are the same. The time of change is the kernel's: no program sets it, so another file
that was moved or copied there, with the same size and time of modification, is hashed. The number of the device is left
out, since machines number their mounts differently and share the hashes of one file server. The processes that start
together divide the files among them. Where the cache can't be written, each process hashes all files.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from ldlm import files
from ldlm.features.detection import as_input_error
from ldlm.features.shared_work import Tally, share
from ldlm.leases import Leases
from ldlm.location import user_cache
from ldlm.progress import SILENT, Progress

LEAST = 2**24  # bytes; a smaller file takes no time
SETTLED = 2.0  # seconds after a change, within which another may get the same time; the coarsest clocks tick so slowly
PART = 2**20


def sha256(paths: Sequence[Path], progress: Progress = SILENT) -> dict[Path, str]:
    """The sha256 of files, by path; `InputError` for one that can't be read."""
    large = {path: size for path in paths if (size := files.size(path) or 0) >= LEAST}
    found = _Hashing(large).run(progress) if large else {}
    return {path: found.get(path) or _hashed(path) for path in paths}


class _Hashing:
    """The hashing of large files, together with other processes that have this cache."""

    def __init__(self, sizes: dict[Path, int]) -> None:
        self.sizes, self.found = sizes, dict[Path, str]()
        self.seen: dict[Path, dict[str, int]] = {}
        self.since = 0.0
        self.folder = user_cache() / "digests"
        self.leases = Leases(self.folder / "claims", self.folder / "claims")

    def run(self, progress: Progress) -> dict[Path, str]:
        """The hashes by path; fewer where the cache can't be written."""
        with suppress(OSError), Tally(progress, "hash the text", self.sizes, self._all_known, unit="byte") as tally:
            self.seen, self.since = {path: _state(path) for path in self.sizes}, time.monotonic()
            share(
                list(self.sizes),
                done=self._known,
                work=partial(self._work, tally),
                claim=lambda path: self.leases.claim(self._place(path).stem),
            )
        return self.found

    def _work(self, tally: Tally[Path], path: Path) -> None:
        before = self.seen[path]
        self._remember(path, before, None)  # an error before the work, where nothing can be written
        # A later change gets another time, whatever the file server's clock says. All files wait together.
        time.sleep(max(0.0, self.since + SETTLED - time.monotonic()))
        digest = _hashed(path, partial(tally.advance, path))
        if _state(path) == before:
            self._remember(path, before, digest)
        self.found[path] = digest

    def _place(self, path: Path) -> Path:
        """The file in which a hash is remembered."""
        return self.folder / f"{files.sha256(str(path.absolute()).encode())[:32]}.json"

    def _remember(self, path: Path, state: dict[str, int], digest: str | None) -> None:
        record = {"path": str(path.absolute()), **state, "sha256": digest}
        files.write_atomic(self._place(path), files.dump_digested(record))

    def _known(self, path: Path) -> bool:
        """True once the hash of a file is known here; the cache is looked into."""
        if path not in self.found:
            record = files.load_digested(files.content(self._place(path)) or b"") or {}
            state = _state(path)
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
    """The sha256 of a file; `advance` is told of bytes as they are read."""
    digest = hashlib.sha256()
    with as_input_error(lambda: str(path)), open(path, "rb") as file:
        while part := file.read(PART):
            digest.update(part)
            advance(len(part))
    return digest.hexdigest()
