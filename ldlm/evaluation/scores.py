"""Scores of sets and files of texts, as frozen dataclasses; they become JSON only when written or printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

FIGURES = ("gen_ppl", "entropy", "diversity")  # always shown together: collapse lowers perplexity


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """Scores of one set of texts, with everything that they depend on (SPEC 9, 12.13)."""

    gen_ppl: float | None  # generative perplexity; None if no text has a token to score
    entropy: float  # nats, the mean over texts
    diversity: float  # from 0 to 1, of the first `diversity_texts` texts
    diversity_texts: int
    intervals: dict[str, list[float] | None]  # [low, high] of gen_ppl and of entropy; None for a single text
    bootstrap: dict[str, Any]  # level, resamples and seed of the intervals
    protocol: str  # of perplexity
    boundaries: str  # how the scorer reads boundary tokens
    boundary_tokens: list[str]
    clean_up: bool | None  # whether the texts were decoded with clean-up of spaces; None: unknown
    scorer: str  # name or folder
    scorer_revision: str  # of its weights
    scorer_tokenizer: str  # fingerprint
    dtype: str  # in which the scorer computes
    num_texts: int
    texts_scored: int  # those with a token to score
    tokens: int  # counted by entropy and diversity
    tokens_scored: int  # counted by perplexity
    tokens_from: Literal["file", "scorer"]  # where the tokens of entropy and diversity come from
    max_tokens: int  # per text; the rest is cut off
    seeds: list[int] | None  # the lowest and the highest seed of the texts; None: not in the file

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> SetScores:
        """Scores from `to_json`; unknown keys, from other versions, are ignored."""
        return cls(**{field.name: record[field.name] for field in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def pick(self, *names: str) -> dict[str, Any]:
        """The JSON of some fields."""
        found = self.to_json()
        return {name: found[name] for name in names}


@dataclass(frozen=True)
class Mauve:
    """MAUVE of a set against a reference."""

    value: float | None  # from 0 to 1; None if too few texts have a token
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Value and settings, as they stand beside the other scores."""
        return {"mauve": self.value, "mauve_settings": self.settings}


@dataclass(frozen=True, kw_only=True)
class FileScores:
    """Scores of one file of texts."""

    file: str
    role: Literal["texts", "reference"]
    scores: SetScores
    mauve: Mauve | None = None  # None if it was not asked for, and for the reference
    copied_8grams: float | None = None  # share that occurs in the training text; None if it was not asked for

    def to_json(self) -> dict[str, Any]:
        """Everything on one level."""
        mauve = {} if self.mauve is None else self.mauve.to_json()
        copied = {} if self.copied_8grams is None else {"copied_8grams": self.copied_8grams}
        return {**self.scores.to_json(), "file": self.file, "role": self.role, **mauve, **copied}


# ----------------------------------------------------------------------------------------------------------------------
# Several seeds of one model


@dataclass(frozen=True)
class Spread:
    """Mean and deviation of one figure over files of texts; files without it are left out."""

    mean: float | None  # None if no file has it
    std: float | None  # of a sample (n − 1); None for fewer than two files
    files: int


@dataclass(frozen=True, kw_only=True)
class SeedScores:
    """Figures over files of texts drawn from one model with different seeds."""

    figures: Mapping[str, Spread]  # by name: gen_ppl, entropy, diversity, and whatever else was asked for
    files: int
    texts_each: int

    def to_json(self) -> dict[str, Any]:
        """Each figure with its mean, deviation and number of files."""
        spreads = {name: asdict(spread) for name, spread in self.figures.items()}
        return {**spreads, "files": self.files, "texts_each": self.texts_each}


def over_seeds(results: Sequence[FileScores]) -> SeedScores:
    """Mean and standard deviation of each figure over the files of a model, without the reference."""
    drawn = [result for result in results if result.role == "texts"]
    values = {name: [getattr(result.scores, name) for result in drawn] for name in FIGURES}
    if drawn[0].mauve is not None:
        values["mauve"] = [None if result.mauve is None else result.mauve.value for result in drawn]
    if drawn[0].copied_8grams is not None:
        values["copied_8grams"] = [result.copied_8grams for result in drawn]
    figures = {name: spread(found) for name, found in values.items()}
    return SeedScores(figures=figures, files=len(drawn), texts_each=drawn[0].scores.num_texts)


def spread(found: Sequence[float | None]) -> Spread:
    """Mean and sample standard deviation of a figure given by file, None for a file without it."""
    values = [value for value in found if value is not None]
    mean = float(np.mean(values)) if values else None
    return Spread(mean, float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))
