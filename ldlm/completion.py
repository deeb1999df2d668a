"""Whether an artefact is complete: whether it has a manifest that is its own.

A process that is stopped between its last check and putting the manifest may wake in a folder that another has
meanwhile begun anew, and its manifest then lies among files that it does not describe. So a manifest with hashes of the
first two files counts only beside those files or, if one of them is damaged, beside the description of the store that
it covers; and a store's manifest counts only if there are records of shards. A store begun anew with the same settings
passes for a sealed one from its first record on: its own processes don't take it for sealed until every record is as
the manifest has it (`sealing.Seal`), and readers take it for a damaged one, which `repair` mends.
"""

from __future__ import annotations

from collections.abc import Mapping

from ldlm import files
from ldlm.location import Location, ObjectPath

FIRST = ("artifact.json", "config.yaml")  # what the artefact is; these tell it from one that replaced it
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
    """Whether a small file is as the manifest has it, or is not in the manifest."""
    return name not in covered or files.sha256(files.content(path / name) or b"") == covered[name]
