"""Sets of texts on disk: the JSON lines that `sample` writes, or any file with a text per line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldlm import files, text
from ldlm.errors import InputError

Row = Sequence[int] | np.ndarray  # the tokens of a text
FORMATS = (".jsonl", ".parquet", ".txt")  # what a folder's texts are taken from


@dataclass(frozen=True)
class Texts:
    """Texts, with the token rows they came from and their seeds where the file has them for every text."""

    texts: list[str]
    tokens: Sequence[Row] | None
    seeds: list[int] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, count: int) -> Texts:
        """So many of them, or all."""
        return Texts(*(None if part is None else part[:count] for part in (self.texts, self.tokens, self.seeds)))  # type: ignore[arg-type]


def read(path: Path, column: str = "text") -> Texts:
    """A jsonl file with `column` (and perhaps `tokens` and `seed`) per line, or a plain file with a text per line."""
    if path.suffix == ".json":
        raise InputError(f"{path} is one JSON document; give a text per line, for example with jq -c '.[]' {path.name}")
    if path.suffix != ".jsonl":
        texts = list(text.file_documents([path], column))
        if path.suffix != ".parquet" and all(map(_is_row, texts[:3])):
            raise InputError(f"{path} holds a JSON object per line; name it {path.stem}.jsonl to have its texts read")
        return Texts(texts, None)
    if not path.exists():
        raise InputError(f"there is no file {path}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the files in it")
    texts = []
    tokens: list[np.ndarray | None] = []
    seeds: list[object] = []
    try:
        for row in files.read_jsonl(path):
            texts.append(_text(row, column, path, len(texts) + 1))
            tokens.append(_tokens(row.get("tokens")))
            seeds.append(row.get("seed"))
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8; convert it, for example with iconv -f latin1 -t utf-8") from None
    if not texts:
        raise InputError(f"{path} holds no text")
    return Texts(
        texts,
        [row for row in tokens if row is not None] if all(row is not None for row in tokens) else None,
        [seed for seed in seeds if isinstance(seed, int)] if all(isinstance(seed, int) for seed in seeds) else None,
    )


def _is_row(line: str) -> bool:
    """Whether a line is what `rows` makes, and no text."""
    try:
        return line.startswith("{") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _text(row: dict[str, object], column: str, path: Path, number: int) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise InputError(
            f"{path}, text {number} has no string in {column!r} (fields: {', '.join(row)}); set --text-column"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{path}, text {number} holds half a character, {value[error.start]!a}, which no tokenizer reads; remove it"
        ) from None
    return value


def _tokens(value: object) -> np.ndarray | None:
    """Token ids (tokens,) int32, an eighth of what the list takes; None for anything else."""
    if not isinstance(value, list) or not all(isinstance(token, int) and 0 <= token < 2**31 for token in value):
        return None
    return np.array(value, np.int32)


def in_folders(paths: Iterable[Path]) -> list[Path]:
    """The paths, with the text files directly in a folder, by name, in place of the folder."""
    found = []
    for path in paths:
        inside = sorted(file for file in path.iterdir() if file.suffix in FORMATS) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path} holds no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file")
        found += inside
    return found


def rows(texts: Sequence[str], tokens: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[dict[str, object]]:
    """The objects of `sample`'s output."""
    return [
        {"text": text, "tokens": list(ids), "seed": int(seed)}
        for text, ids, seed in zip(texts, tokens, seeds, strict=True)
    ]


def record(path: Path) -> Path:
    """Where `ldlm sample` records how the texts of a file were made: beside the file, whatever link names it."""
    there = files.target(path)
    return there.with_name(there.name + ".meta.json")
