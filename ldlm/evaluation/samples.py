"""Sets of texts on disk: the JSON lines that `sample` writes, or files of any kind that `textfiles` reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ldlm import files
from ldlm.errors import InputError
from ldlm.evaluation.boundaries import Boundaries
from ldlm.features import textfiles
from ldlm.features.documents import Part

Row = Sequence[int] | np.ndarray  # the tokens of a text


@dataclass(frozen=True)
class Texts:
    """Texts, with the token rows they came from and their seeds where the file has them for every text.

    `boundaries` are the strings that mark where rows and documents begin and end in them, and `clean_up` says whether
    they were decoded with the tokenizer's clean-up of spaces, None where that is not known.
    """

    texts: list[str]
    tokens: Sequence[Row] | None
    seeds: list[int] | None = None
    boundaries: Boundaries = Boundaries()
    clean_up: bool | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, count: int) -> Texts:
        """So many of them, or all."""
        parts = {name: getattr(self, name) for name in ("texts", "tokens", "seeds")}
        return replace(self, **{name: part[:count] for name, part in parts.items() if part is not None})


def read(path: Path, column: str = "text") -> Texts:
    """The texts of a file of any kind, with `tokens` and `seed` where every row is a JSON object that has them.

    A blank text is one that a model may have drawn, and counts; a null row and a blank line of plain text do not.
    """
    texts: list[str] = []
    tokens: list[np.ndarray | None] = []
    seeds: list[object] = []
    held: list[str] = []
    for text, fields in textfiles.rows(path, column):
        if text is not None:
            held.append(text)
        if text is None or isinstance(text, Part):
            continue
        texts.append("".join(held))
        tokens.append(_tokens(fields.get("tokens")))
        seeds.append(fields.get("seed"))
        held.clear()
    if not texts:
        raise InputError(f"{path} holds no text")
    return Texts(
        texts,
        [row for row in tokens if row is not None] if all(row is not None for row in tokens) else None,
        [seed for seed in seeds if isinstance(seed, int)] if all(isinstance(seed, int) for seed in seeds) else None,
    )


def _tokens(value: object) -> np.ndarray | None:
    """Token ids (tokens,) int32, an eighth of what the list takes; None for anything else."""
    if not isinstance(value, list) or not all(isinstance(token, int) and 0 <= token < 2**31 for token in value):
        return None
    return np.array(value, np.int32)


def in_folders(paths: Iterable[Path]) -> list[Path]:
    """The paths, with the text files directly in a folder, by name, in place of the folder."""
    found = []
    for path in paths:
        inside = sorted(filter(textfiles.is_named_text, path.iterdir())) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path} holds no {', '.join(textfiles.NAMES[:-1])} or {textfiles.NAMES[-1]} file")
        found += inside
    return found


def rows(texts: Sequence[str], tokens: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[dict[str, object]]:
    """The objects of `sample`'s output."""
    return [
        {"text": text, "tokens": list(ids), "seed": int(seed)}
        for text, ids, seed in zip(texts, tokens, seeds, strict=True)
    ]


# ----------------------------------------------------------------------------------------------------------------------
# What is recorded beside a file of texts


def described(texts: Texts, path: Path, named: Sequence[str] = ()) -> Texts:
    """Texts with what the record beside their file says of them; where there is none, `named` are their boundaries."""
    found = record(path)
    if "boundaries" in found:
        return replace(texts, boundaries=Boundaries.from_json(found["boundaries"]), clean_up=found["clean_up"])
    return replace(texts, boundaries=Boundaries.in_texts(named, texts.texts))


def remarks(paths: Iterable[Path], named: Sequence[str]) -> Iterator[str]:
    """Notes to the user on how the boundaries in files of texts are found, a line each."""
    for path in paths:
        found = record(path)
        if "boundaries" in found and named:
            known = " ".join(found["boundaries"]["tokens"]) or "none"
            yield f"{path} has a record of its boundary tokens ({known}), and --boundary-tokens is not used for it"
        if found and "boundaries" not in found and not named:
            yield f"{path} has no record of its boundary tokens and is scored as written; name them: --boundary-tokens"


def record_of(tokenizer: Any, clean_up: bool) -> dict[str, Any]:
    """The record beside texts of how they were decoded: boundaries and clean-up."""
    return {"boundaries": Boundaries.of(tokenizer).to_json(), "clean_up": clean_up}


def record_path(path: Path) -> Path:
    """Where the record of a file of texts lies: beside the file, whatever link names it."""
    there = files.target(path)
    return there.with_name(there.name + ".meta.json")


def write_record(path: Path, kind: str, values: dict[str, Any]) -> None:
    """Record what is said of the texts in a file: `samples` of a model, or `texts` of any other origin."""
    files.write_json(record_path(path), {"kind": kind, **values})


def record(path: Path) -> dict[str, Any]:
    """The record that `ldlm sample` or `ldlm features texts` left beside a file of texts; empty without one."""
    found = files.read_json(record_path(path)) if record_path(path).is_file() else {}
    return found if isinstance(found, dict) and found.get("kind") in ("samples", "texts") else {}
