"""The seal of a store, which is its manifest, and the removal of what a sealed store no longer needs.

A process that seals may be stopped between any two steps, for longer than its leases last, and another may meanwhile
begin the store anew. So everything that takes time comes first: leftovers are swept, each after a check of the leases,
sizes are added up and files made durable. Once the manifest is ready, the leases are checked again, and it gets its
name only if the name is free. After the seal, a process removes things only while the seal is there and belongs to the
store that it made.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from ldlm import emptying, files
from ldlm.artifact import Artifact
from ldlm.completion import DESCRIPTION, FIRST, same
from ldlm.errors import StorageError
from ldlm.features import ledger
from ldlm.features.packing import Packing
from ldlm.leases import Lease, waits
from ldlm.location import Location
from ldlm.presence import CLAIMS


class Replaced(StorageError):
    """Another process has begun the store anew, or unsealed it: what is there now is not this process's to touch."""


class _Overtaken(StorageError):
    """Another process has taken the lease under which this one removes files."""


class Seal:
    """The seal of a store, for a process that makes the store that `artifact.json` and `config.yaml` describe now.

    `at_work` is the lease by which that process is at work in the store, once it has one.
    """

    def __init__(self, path: Location) -> None:
        self.path = path
        self.at_work: Lease | None = None
        self._made_of = self._first()
        self._size = 0  # of the manifest that was found to be this store's; it has a line for each shard

    def _first(self) -> list[bytes | None]:
        return [files.content(self.path / name) for name in FIRST]

    @property
    def mark(self) -> str:
        """A name made from the store's first two files; stores that differ in them have different names."""
        return files.sha256(b"\n".join(found or b"" for found in self._made_of))[:16]

    @property
    def replaced(self) -> bool:
        """Whether this store's removal has begun, or another store in its place."""
        return self._first() != self._made_of

    def check(self) -> None:
        """`Replaced` once another process has replaced the store, `StorageError` once one may have it to itself."""
        if self.at_work is not None:
            self.at_work.check()
        if self.replaced:
            raise Replaced(
                f"{self.path}: this process was stopped for so long that another began the store anew; "
                f"run the same command again"
            )

    @property
    def there(self) -> bool:
        """Whether the store that this process makes is sealed: it is there, with all that the manifest covers."""
        manifest = self.path / "manifest.json"
        size = files.size(manifest)
        if not size or self.replaced:
            return False
        if size != self._size and self._covers(files.content(manifest)):
            self._size = size
        return size == self._size

    def _covers(self, data: bytes | None) -> bool:
        """Whether a manifest is that of the store as it is: a store begun anew may have the same first files."""
        covered = (files.load_digested(data or b"") or {}).get("sha256", {})
        first = bool(covered) and all(same(self.path, name, covered) for name in (*FIRST, DESCRIPTION))
        return first and ledger.is_covered(self.path, covered)

    def still_there(self) -> None:
        """`Replaced` unless the store that this process makes is sealed; called before removals."""
        if not self.there:
            raise Replaced(f"{self.path} is not sealed any more: another process has begun it anew")

    def put(self, result: Artifact, lease: Lease) -> None:
        """Seal a store that has every shard, under this lease. `StorageError` if this process may not, or no longer.

        A manifest that is not of this store is removed first.
        """

        def check() -> None:
            lease.check()
            self.check()

        check()
        covered, description = ledger.seal(self.path), ledger.read_description(self.path)
        path = self.path / "manifest.json"
        if not self._covers(files.content(path)):  # another store's, by a process that was stopped for long
            emptying.remove(path, check)
        ledger.sweep(self.path, check)  # what is left there now belongs to no shard
        size = sum(files.sizes(self.path / "features.zarr").values())
        files.fsync_tree(self.path)
        manifest = result.record(**{**description, "bytes": size, "sha256": covered}).encode()
        if bytes(files.write_once(path, manifest, check)) != manifest and not self.there:
            raise StorageError(f"{path} is of another store; run the same command again")


def clear(seal: Seal, packing: Packing, unneeded: Sequence[Location], work: Path) -> None:
    """Remove token rows, spool, leases and what a killed process left beside the seal; a sealed store needs none.

    The folders `unneeded` may also hold those of earlier stores, whose processes woke late. Nothing of a store that has
    replaced this one is removed: this ends once the seal is lost. `StorageError` when a service fails.
    """
    pauses = waits()
    with suppress(Replaced):
        while any(folder.is_dir() for folder in unneeded):
            with packing.leases.claim("pack") or nullcontext() as lease:
                seal.still_there()
                gone = lease is not None and _remove_rows(packing, unneeded, seal, lease)
                if gone and isinstance(packing.folder, Path):  # a mount point stays; objects may be put late
                    break
            time.sleep(next(pauses))
        seal.still_there()
        if isinstance(seal.path, Path):
            for left in files.matching(seal.path, ".*.tmp"):  # by a kill before the manifest lost its temporary name
                emptying.remove(left, seal.still_there)
        else:
            shutil.rmtree(work, ignore_errors=True)
        with suppress(OSError):
            emptying.remove_folder(seal.path / CLAIMS, seal.still_there)


def _remove_rows(packing: Packing, unneeded: Sequence[Location], seal: Seal, lease: Lease) -> bool:
    """Remove token rows and spool; False if another process has meanwhile taken the lease for it."""

    def check() -> None:
        if lease.lost():
            raise _Overtaken(f"another process removes the token rows of {seal.path}")
        seal.still_there()

    with suppress(_Overtaken):
        packing.remove(check)
        for folder in unneeded:
            emptying.remove_folder(folder, check)
        return True
    return False
