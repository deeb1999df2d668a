"""Whether an artefact is complete: it has a manifest, and one of its own.

A process that is stopped between its last look and the put of a manifest may wake in a folder that another has begun
anew meanwhile, and its manifest then lies among files that it does not describe. So a manifest that has hashes of the
first two files counts only beside these, or, where one of these is damaged, beside its description of the store; and
that of a store only where there are records of shards. A store begun anew with the same settings passes for a sealed
one from its first record on: for its own processes it is none until every record is as the manifest has it
(`sealing.Seal`), and to readers it is one with damage, which `repair` mends.
"""

from __future__ import annotations

from collections.abc import Mapping

from ldlm import files
from ldlm.location import Location, ObjectPath

FIRST = ("artifact.json", "config.yaml")  # what the artefact is, by which one differs from one that replaced it
DESCRIPTION = "store.json"  # of a feature store; it is written later and has their hashes
LEDGER = "ledger"  # the folder of the records of a feature store


def is_complete(path: Location) -> bool:
    """Whether the artefact has a manifest that is not another's. Whether it is damaged is for its readers to say."""
    data = files.content(path / "manifest.json")
    if data is None:
        return False
    covered = (files.load_digested(data) or {}).get("sha256")
    if not isinstance(covered, dict) or DESCRIPTION not in covered:
        return True
    if not all(same(path, name, covered) for name in FIRST) and not same(path, DESCRIPTION, covered):
        return False  # the first files are those of another, and not just damaged
    return _has_records(path, covered)


def _has_records(path: Location, covered: Mapping[str, str]) -> bool:
    """Whether a store has a record at all, if its manifest has some."""
    folder = path / LEDGER
    there = folder.is_dir() if isinstance(folder, ObjectPath) else any(folder.glob("*.json"))
    return there or not any(name.startswith(f"{LEDGER}/") for name in covered)


def same(path: Location, name: str, covered: Mapping[str, str]) -> bool:
    """Whether a small file is as a manifest has it, or not in that manifest."""
    return name not in covered or files.sha256(files.content(path / name) or b"") == covered[name]
