"""The folders of what a sealed store no longer needs: token rows, and raw states of the sample.

Their names are a mark of the store, so that one that replaces it does not take what a process of the old one still
writes. Folders that an earlier version began have no mark, and are used as they are.
"""

from __future__ import annotations

from pathlib import Path

from ldlm import files
from ldlm.location import Location

PACKED, SPOOL = "packed", "spool"


def packed(out: Location, mark: str) -> Location:
    """The folder of the token rows of a store, beside its shards."""
    before = out / PACKED
    return before if isinstance(before, Path) and (before / "plan.json").is_file() else before / mark


def spool(work: Path, mark: str) -> Path:
    """The folder of the raw states of a store, in its work folder."""
    before = work / SPOOL
    return before if files.matching(before, "states-*") else before / mark
