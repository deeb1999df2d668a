"""Put a shard's files into place together with its record: those of the first process to record them.

Two machines that make the same shard may differ in the last bits, and either may stop between any two steps and resume
later. So each first writes its files beside their places, under names that contain their hashes. The first record put
under `.NAME.decided` then decides: whoever comes later puts the files that it names into place, not its own. The record
proper comes last. Nobody overwrites a shard that has one.

An object store has neither links nor renames, so the service copies each file into its place. Every process copies the
same bytes, those of the decision, until the decision is removed together with the files beside the places.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ldlm import files
from ldlm.emptying import take_away
from ldlm.errors import StorageError
from ldlm.location import Location, ObjectPath

NAME = ".{}.decided"  # with the shard's name, beside its record


def decision(record: Location) -> Location:
    """The file that decides which files a shard gets, from the path of its record."""
    return _sibling(record, NAME.format(record.stem))


def _sibling(path: Location, name: str) -> Location:
    if isinstance(path, Path):
        return path.with_name(name)
    return ObjectPath(path.root, path.key.removesuffix(path.name) + name)


def put(root: Location, made: Mapping[str, files.Buffer], record_path: Location, facts: Mapping[str, Any]) -> None:
    """Put files, by name below `root`, and then their record: `facts` with the files' sizes and hashes.

    If another process was first, its files and record stay.
    """
    entries = {name: {"bytes": len(data), "sha256": files.sha256(data)} for name, data in made.items()}
    own = {_beside(root, name, entry) for name, entry in entries.items()}
    for name, entry in entries.items():
        files.write_atomic(_beside(root, name, entry), made[name])
    record = files.dump_digested({**facts, "files": entries}).encode()
    try:
        decided = bytes(files.write_once(decision(record_path), record))
    except FileNotFoundError:  # another process put the record, and removed the decision before it was read here
        if not record_path.is_file():
            raise
        for path in own:
            path.unlink(missing_ok=True)
        return
    named = json.loads(decided)["files"]
    if all(_placed(root, name, entry, record_path) for name, entry in named.items()):
        files.write_once(record_path, decided)
    for path in own | {_beside(root, name, entry) for name, entry in named.items()}:
        path.unlink(missing_ok=True)
    _undecided(decision(record_path), decided)


def _undecided(path: Location, decided: bytes) -> None:
    """Remove the decision unless it is another one by now. The shard has its record."""
    if isinstance(path, Path):
        take_away(path, lambda found: found.read_bytes() == decided)
    else:
        path.unlink(missing_ok=True, still=lambda: files.content(path) == decided)


def _beside(root: Location, name: str, entry: Mapping[str, Any]) -> Location:
    """Where a file waits for the decision."""
    place = root / name
    return _sibling(place, f".{entry['sha256']}.{place.name}")


def _placed(root: Location, name: str, entry: Mapping[str, Any], record: Location) -> bool:
    """Put a decided file into its place; False if the shard already has its record, and all is done."""
    place, beside = root / name, _beside(root, name, entry)
    try:
        if isinstance(beside, ObjectPath):
            if record.is_file():
                return False
            beside.copy_to(cast(ObjectPath, place))
            return True
        place = cast(Path, place)
        if files.link(beside, place) or files.sha256_file(place) == entry["sha256"]:
            return True
        # The file there was never recorded: every decision that was carried out has left a record.
        if record.is_file():
            return False
        copy = place.with_name(f".{files.unique()}.{place.name}")
        files.link(beside, copy)
        files.put(copy, place)
    except FileNotFoundError:  # another process has meanwhile put it there and recorded it
        if record.is_file():
            return False
        found = files.content(place)
        if found is None or files.sha256(found) != entry["sha256"]:
            raise StorageError(
                f"{decision(record)} names files that are gone; remove it and run the same command again"
            ) from None
    return True
