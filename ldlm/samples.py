"""Sets of texts on disk: the JSON lines that `sample` writes, or any file with a text per line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldlm import files, text
from ldlm.errors import InputError


@dataclass(frozen=True)
class Texts:
    """Texts, and the token rows they came from where the file has them for every text."""

    texts: list[str]
    tokens: list[list[int]] | None

    def __len__(self) -> int:
        return len(self.texts)


def read(path: Path, column: str = "text") -> Texts:
    """A jsonl file with `column` (and perhaps `tokens`) per line, or a plain file with a text per line."""
    if path.suffix != ".jsonl":
        return Texts(list(text.file_documents([path], column)), None)
    if not path.exists():
        raise InputError(f"there is no file {path}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the files in it")
    try:
        rows = list(files.read_jsonl(path))
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8; convert it, for example with iconv -f latin1 -t utf-8") from None
    if not rows:
        raise InputError(f"{path} holds no text")
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get(column), str):
            raise InputError(
                f"{path}, text {number} has no string in {column!r} (fields: {', '.join(row)}); set --text-column"
            )
    tokens = [row.get("tokens") for row in rows]
    return Texts([row[column] for row in rows], tokens if all(_is_tokens(t) for t in tokens) else None)  # type: ignore[arg-type]


def _is_tokens(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(token, int) for token in value)


def rows(texts: Sequence[str], tokens: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[dict[str, object]]:
    """The objects of `sample`'s output."""
    return [
        {"text": text, "tokens": list(ids), "seed": int(seed)}
        for text, ids, seed in zip(texts, tokens, seeds, strict=True)
    ]
