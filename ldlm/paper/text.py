"""The text of the tiny scale: parts for the models, for the scorer, and held out, with no document in common."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ldlm import files
from ldlm.errors import InputError
from ldlm.features import splitting, textfiles
from ldlm.paper.plan import PARTS, TEXT

SHARES = {"held-out": 0.06, "scorer": 0.4}  # of the documents; the rest is trained on
MOST_CHARACTERS, FEWEST_CHARACTERS = 10_000_000, 200_000
BUILT_IN = "documentation of Python and the installed packages"


def record(folder: Path) -> dict[str, Any] | None:
    """The record of the text of an output; None before there is one."""
    path = folder / TEXT
    return files.read_json(path) if path.exists() else None


def check(folder: Path, source: Path | None) -> None:
    """`InputError` if the output holds a text other than `source`, or if there is no such file."""
    there, name = record(folder), BUILT_IN if source is None else source.name
    fingerprint = None if source is None else textfiles.fingerprints([source])[str(source)]
    if there is not None and (there["file"], there["source_sha256"]) != (name, fingerprint):
        raise InputError(f"{folder} holds tables of another text, {there['file']}; choose another --output")


def write(folder: Path, source: Path | None) -> None:
    """Write the parts, and finally their record."""
    documents = _first(splitting.shuffled(source))
    characters = sum(map(len, documents))
    if characters < FEWEST_CHARACTERS:
        raise InputError(
            f"{source or BUILT_IN} has {characters:,} characters of text; a table needs {FEWEST_CHARACTERS:,}"
        )
    parts = splitting.divided(documents, SHARES, rest="train")
    files.make_folder((folder / TEXT).parent)
    for name, part in parts.items():
        files.write_atomic(folder / PARTS[name], files.dump_jsonl({"text": document} for document in part))
    described = {
        "file": BUILT_IN if source is None else source.name,
        "source_sha256": None if source is None else textfiles.fingerprints([source])[str(source)],
        "sha256": hashlib.sha256("\n".join(documents).encode()).hexdigest(),
        "documents": {name: len(part) for name, part in parts.items()},
        "characters": {name: sum(map(len, part)) for name, part in parts.items()},
    }
    files.write_json(folder / TEXT, described)


def _first(documents: list[str]) -> list[str]:
    """The first documents, up to the one with which their length exceeds MOST_CHARACTERS."""
    total = 0
    for number, document in enumerate(documents):
        total += len(document)
        if total > MOST_CHARACTERS:
            return documents[: number + 1]
    return documents
