"""Deleting an artefact so that nobody opens what is left of it, wherever the process is killed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ldlm import emptying, files, presence
from ldlm.errors import InputError, StorageError
from ldlm.kinds import SCHEMA
from ldlm.lease_places import SUFFIX
from ldlm.location import Location
from ldlm.presence import CLAIMS

COMPLETE = ("manifest.json", "config.json")  # written last: their presence makes a folder complete to its readers


def empty(path: Location, kind: str, check: Callable[[], None]) -> None:
    """Delete the contents of a folder, and keep the folder, which may be a link or a mount point.

    The manifest is removed and the folder marked first: after a kill from then on, nobody opens it, and the next
    `begin` empties and refills it. `check` is that of `presence.replacing`, and raises `StorageError` when it does.
    """
    emptying.remove(path / "manifest.json", check)
    check()
    _mark(path, kind)
    emptying.remove(path / "config.yaml", check)  # read when a stage decides whether to resume
    for file, _ in list(files.below(path)):
        if file.name in COMPLETE:  # also of artefacts and models inside it
            emptying.remove(file, check)
    lease = f"{CLAIMS}/{presence.ALONE}"  # of this process, and its lock
    kept = [path / name for name in ("artifact.json", lease, lease + SUFFIX)]
    emptying.empty(path, but=kept, check=check)


def remove(path: Location, kind: str, check: Callable[[], None]) -> None:
    """Delete a folder and its contents; a link or a mount point is left empty."""
    empty(path, kind, check)
    emptying.remove(path / "artifact.json", check)
    if isinstance(path, Path):
        with suppress(OSError):
            path.rmdir()


def remove_if_alone(path: Location, kind: str) -> None:
    """`remove`, unless other processes are at work there: they may read what this one could not, and finish it."""
    with suppress(InputError, StorageError):
        with presence.alone(path, "none") as lease:
            remove(path, kind, lease.check)
        if isinstance(path, Path):
            with suppress(OSError):  # another has begun it meanwhile
                path.rmdir()


def _mark(path: Location, kind: str) -> None:
    """Mark a folder as one whose remaining files the next `begin` deletes."""
    files.write_json(path / "artifact.json", {"kind": kind, "schema": SCHEMA, "emptied": True})
