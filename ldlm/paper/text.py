"""The text of the tiny scale: parts for the models, for the scorer, and held out, with no document in common."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldlm import config as configs
from ldlm import files
from ldlm.errors import InputError
from ldlm.features import digests, splitting, textfiles
from ldlm.paper.plan import PARTS, TEXT
from ldlm.paper.settings import TINY

SHARES = {"held-out": 0.06, "scorer": 0.4}  # of the documents; the rest is trained on
MOST_CHARACTERS, FEWEST_CHARACTERS = 10_000_000, 200_000
CHARACTERS_PER_TOKEN = 4  # at most, of prose with the small tokenizer; novels have 3.2
BUILT_IN = "documentation of Python and the installed packages"


def record(folder: Path) -> dict[str, Any] | None:
    """The record of the text of an output; None before there is one. `InputError` for what is no such record."""
    path = folder / TEXT
    if not path.exists():
        return None
    found = files.read_json(path)
    if not isinstance(found, dict) or not found.keys() >= {"file", "source_sha256"}:
        raise InputError(f"{path} is no record of a text; restore it, or choose another --output")
    return found


def check(folder: Path, source: Path | None, rows: int = 0) -> None:
    """`InputError` if there is no such file, or the output holds another text, or one too small for so many `rows`."""
    there, name = record(folder), BUILT_IN if source is None else source.name
    fingerprint = None if source is None else textfiles.fingerprints([source])[str(source)]
    if there is not None and (there["file"], there["source_sha256"]) != (name, fingerprint):
        raise InputError(f"{folder} holds tables of another text, {there['file']}; choose another --output")
    if there is not None and rows:
        remedy = "lower --texts, or choose another --output with"
        _check_rows(f"the text of {folder}", there["characters"]["held-out"], rows, remedy)


def write(folder: Path, source: Path | None, rows: int) -> None:
    """Write the parts, and finally their record; `InputError` if they are too small, also to hold out so many `rows`.

    How many rows the held-out part makes is known only when there is a tokenizer, and is estimated.
    """
    seen = textfiles.seen([] if source is None else [source])
    with digests.as_hashed(seen, "run the same command again"):
        documents = _first(splitting.shuffled(source))
    characters = sum(map(len, documents))
    if characters < FEWEST_CHARACTERS:
        raise InputError(
            f"{source or BUILT_IN} has {characters:,} characters of text; a table needs {FEWEST_CHARACTERS:,}"
        )
    parts = splitting.divided(documents, SHARES, rest="train")
    _check_parts(source, parts, rows)
    files.make_folder((folder / TEXT).parent)
    for name, part in parts.items():
        files.write_atomic(folder / PARTS[name], files.dump_jsonl({"text": document} for document in part))
    described = {
        "file": BUILT_IN if source is None else source.name,
        "source_sha256": None if source is None else seen[str(source)].sha256,
        "sha256": hashlib.sha256("\n".join(documents).encode()).hexdigest(),
        "documents": {name: len(part) for name, part in parts.items()},
        "characters": {name: sum(map(len, part)) for name, part in parts.items()},
    }
    files.write_json(folder / TEXT, described)


def _check_parts(source: Path | None, parts: Mapping[str, Sequence[str]], rows: int) -> None:
    """`InputError` if a part is empty, or the held-out one too small for so many rows."""
    documents, fewest = sum(map(len, parts.values())), math.ceil(1 / SHARES["held-out"])
    if not all(parts.values()):
        raise InputError(
            f"{source or BUILT_IN} has {documents} documents, of which none would be held out; cut it into smaller "
            f"ones and give {fewest} or more"
        )
    _check_rows(source or BUILT_IN, sum(map(len, parts["held-out"])), rows, "lower --texts, or give")


def _check_rows(text: Path | str, held_out: int, rows: int, remedy: str) -> None:
    """`InputError` if so many held-out characters are too few for so many rows."""
    made = held_out // (CHARACTERS_PER_TOKEN * (configs.preset(TINY).shapes.seq_len - 2))
    if made < rows:
        raise InputError(
            f"{text} has {held_out / SHARES['held-out']:,.0f} characters, of which {held_out:,} are held out, about "
            f"{made} rows; what is asked for needs {rows}: {remedy} {math.ceil(rows / max(1, made))} times as much text"
        )


def _first(documents: list[str]) -> list[str]:
    """The first documents, up to the one with which their length exceeds MOST_CHARACTERS."""
    total = 0
    for number, document in enumerate(documents):
        total += len(document)
        if total > MOST_CHARACTERS:
            return documents[: number + 1]
    return documents
