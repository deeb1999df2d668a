"""Files of a shard that go into their places together with its record: those of the first process that has them.

Two machines that make a shard may differ in last bits, and either may stop between any two steps and go on later. So
each first lays its files beside their places, under names with their hashes. Then the first record that is put under
`.NAME.decided` decides: whoever comes later puts the files that it names into place, and not its own. The record proper
comes last. Nobody writes over a shard that has one.

In an object store, which has neither links nor renames, the service copies a file into its place. All who do so copy
the same bytes, those of the decision, until it goes with what lay beside.
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

NAME = ".{}.decided"  # by the shard's name, beside its record


def decision(record: Location) -> Location:
    """The file by which the files of a shard are decided, from the path of its record."""
    return _sibling(record, NAME.format(record.stem))


def _sibling(path: Location, name: str) -> Location:
    if isinstance(path, Path):
        return path.with_name(name)
    return ObjectPath(path.root, path.key.removesuffix(path.name) + name)


def put(root: Location, made: Mapping[str, files.Buffer], record_path: Location, facts: Mapping[str, Any]) -> None:
    """Put files, by their names below `root`, and then their record, which is `facts` with their sizes and hashes.

    The files and the record of another process stay where it was first.
    """
    entries = {name: {"bytes": len(data), "sha256": files.sha256(data)} for name, data in made.items()}
    own = {_beside(root, name, entry) for name, entry in entries.items()}
    for name, entry in entries.items():
        files.write_atomic(_beside(root, name, entry), made[name])
    record = files.dump_digested({**facts, "files": entries}).encode()
    try:
        decided = bytes(files.write_once(decision(record_path), record))
    except FileNotFoundError:  # another process has put the record, and its decision went before it was read here
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
    """Remove this decision, whose shard has its record. In an object store each would be followed by the record."""
    if isinstance(path, Path):
        take_away(path, lambda found: found.read_bytes() == decided)
    else:
        path.unlink(missing_ok=True, still=lambda: files.content(path) == decided)


def _beside(root: Location, name: str, entry: Mapping[str, Any]) -> Location:
    """Where a file lies until it is decided."""
    place = root / name
    return _sibling(place, f".{entry['sha256']}.{place.name}")


def _placed(root: Location, name: str, entry: Mapping[str, Any], record: Location) -> bool:
    """Put a decided file into its place; False where the shard has its record already, and all is done."""
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
        # A file that was never recorded: every decision on a shard that ended has left a record.
        if record.is_file():
            return False
        copy = place.with_name(f".{files.unique()}.{place.name}")
        files.link(beside, copy)
        files.put(copy, place)
    except FileNotFoundError:  # another process has put it there and recorded it meanwhile
        if record.is_file():
            return False
        found = files.content(place)
        if found is None or files.sha256(found) != entry["sha256"]:
            raise StorageError(
                f"{decision(record)} names files that are gone; remove it and run the same command again"
            ) from None
    return True
