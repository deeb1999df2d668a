"""Whether an artefact is complete: it has a manifest, and one of its own.

A process that is stopped between its last look and the put of a manifest may wake in a folder that another has begun
anew meanwhile, and its manifest then lies among files that it does not describe. So a manifest that has hashes of the
first two files counts only beside these.
"""

from __future__ import annotations

from typing import Any

from ldlm import files
from ldlm.location import Location

FIRST = ("artifact.json", "config.yaml")  # what the artefact is, by which one differs from one that replaced it
DESCRIPTION = "store.json"  # of a feature store; it is written later and has their hashes


def is_complete(path: Location) -> bool:
    """Whether the artefact has a manifest that is not another's. Whether it is damaged is for its readers to say."""
    data = files.content(path / "manifest.json")
    return data is not None and not _is_of_another(path, files.load_digested(data))


def _is_of_another(path: Location, manifest: dict[str, Any] | None) -> bool:
    """Whether a manifest was made for other files than the first two, and these are not just damaged."""
    covered = (manifest or {}).get("sha256")
    if not isinstance(covered, dict) or all(same(path, name, covered) for name in FIRST):
        return False
    return DESCRIPTION in covered and not same(path, DESCRIPTION, covered)


def same(path: Location, name: str, covered: dict[str, str]) -> bool:
    """Whether a small file is as a manifest has it, or not in that manifest."""
    return name not in covered or files.sha256(files.content(path / name) or b"") == covered[name]
