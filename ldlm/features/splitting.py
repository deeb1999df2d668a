"""A text in parts that have no document in common: for a model, for the scorer of its samples, and held out."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

from ldlm.features import builtin_text, textfiles
from ldlm.features.documents import whole


def shuffled(path: str | Path | None, column: str = "text", *, seed: int = 0) -> list[str]:
    """The documents of a file, each once, in random order; those of the built-in text if there is no path."""
    found = builtin_text.documents() if path is None else whole(textfiles.file_documents([path], column))
    documents = list(dict.fromkeys(found))
    random.Random(seed).shuffle(documents)
    return documents


def divided(documents: Sequence[str], shares: Mapping[str, float], rest: str) -> dict[str, list[str]]:
    """The documents in consecutive parts: each name in `shares` gets its share of them, and `rest` what is left."""
    ends = [int(len(documents) * share) for share in accumulate(shares.values())]
    edges = pairwise([0, *ends, len(documents)])
    return {name: list(documents[start:end]) for name, (start, end) in zip([*shares, rest], edges, strict=True)}
