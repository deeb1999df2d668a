"""Measures texts by the process that they should come from (`ldlm.stories`): validity, likelihood, violations.

Rows of a model begin and end anywhere in a story. Between two boundary tokens stands a whole story, before the first
the end of one, and after the last the beginning of one; these two are judged as far as they go, and only whole stories
count as stories. A long story is seldom whole in a row, so whole stories are shorter than those of the source, and
their likelihood per story is higher: compare with real stories cut into as many rows of the same lengths, which are
measured as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np

from ldlm.evaluation import intervals, metrics
from ldlm.evaluation.boundaries import Boundaries
from ldlm.evaluation.samples import Texts
from ldlm.evaluation.scores import Spread, spread
from ldlm.stories import process
from ldlm.stories.grammar import KINDS
from ldlm.stories.judging import Judge, Judgement
from ldlm.stories.process import STORIES
from ldlm.stories.reading import Reader, words_of
from ldlm.stories.words import ROLES

Advance = Callable[[int], None]
Words = Sequence[str]

BOUNDARY = ""  # stands for a boundary token among words


class Part(NamedTuple):
    """A story in a row, or the part of it that the row holds."""

    words: Words
    begins: bool
    ends: bool


@dataclass(frozen=True, kw_only=True)
class Validity:
    """Validity and likelihood of a set of texts under a source; shares (0 to 1) are None if nothing could be valid."""

    num_texts: int
    words: int  # with punctuation
    stories: int  # whole ones
    stories_valid: float | None  # share
    sentences: int  # whole ones, in whole and in cut stories
    sentences_valid: float | None  # share
    cut_sentences: int  # without their beginning or end
    cut_sentences_valid: float | None  # share, as far as they go
    violations: dict[str, int]  # by kind
    distances: dict[str, int]  # violations that contradict a sentence, by how many sentences back it is
    nats_per_story: float | None  # −ln p, mean over the valid stories; None without any
    nats_per_word: float | None
    words_per_story: float | None  # of the valid stories
    coverage: float  # share of the source's choices that occur: its sentences, and the words of each role
    choices: int  # of the source
    entropy: float  # nats, of the words of a text, boundaries included; mean over texts
    diversity: float  # from 0 to 1, of n-grams of words
    intervals: dict[str, list[float] | None]  # [low, high] at 95 % of the shares of valid stories and sentences

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SourceScores:
    """Validity of a file of texts under a source, and of as many real texts of the same lengths."""

    file: str
    source: str
    version: int  # of the source
    source_nats_per_story: float  # exact entropy
    source_nats_per_word: float
    source_words_per_story: float
    found: Validity
    real: Validity
    seed: int  # of the real texts

    def to_json(self) -> dict[str, Any]:
        """Everything on one level, except for the real texts."""
        own = {name: value for name, value in asdict(self).items() if name not in ("found", "real")}
        return {**own, **self.found.to_json(), "real": self.real.to_json()}


SHARES_AND_MEANS = (
    "stories_valid",
    "sentences_valid",
    "cut_sentences_valid",
    "nats_per_story",
    "nats_per_word",
    "coverage",
    "entropy",
    "diversity",
)  # the fields of `Validity` whose mean over files is meaningful


@dataclass(frozen=True, kw_only=True)
class SourceSeedScores:
    """Figures over files of texts drawn from one model with different seeds, and over as many sets of real texts."""

    figures: Mapping[str, Spread]  # by the names in `SHARES_AND_MEANS`
    violations: Mapping[str, Spread]  # by kind: their numbers in a file
    real: Mapping[str, Spread]
    files: int
    texts_each: int

    def to_json(self) -> dict[str, Any]:
        """Each figure with its mean, deviation and number of files."""
        parts = {"violations": self.violations, "real": self.real}
        nested = {part: {name: asdict(one) for name, one in found.items()} for part, found in parts.items()}
        figures = {name: asdict(one) for name, one in self.figures.items()}
        return {**figures, **nested, "files": self.files, "texts_each": self.texts_each}


def over_seeds(results: Sequence[SourceScores]) -> SourceSeedScores:
    """Mean and standard deviation of each figure over the files of a model."""
    found, real = [one.found for one in results], [one.real for one in results]
    return SourceSeedScores(
        figures={name: spread([getattr(one, name) for one in found]) for name in SHARES_AND_MEANS},
        violations={kind: spread([one.violations[kind] for one in found]) for kind in KINDS},
        real={name: spread([getattr(one, name) for one in real]) for name in SHARES_AND_MEANS},
        files=len(results),
        texts_each=found[0].num_texts,
    )


@cache
def judge() -> Judge:
    """The judge of stories; what it computes about the source for one text it keeps for the next."""
    return Judge(Reader(STORIES))


@dataclass(eq=False)
class Measure:
    """Measures sets of texts against the stories."""

    seed: int  # of the real texts
    judge: Judge = field(default_factory=judge)

    def scores(self, texts: Texts, file: str, advance: Advance = lambda count: None) -> SourceScores:
        """Scores of a set of texts, and of as many real ones of the same lengths; advances by twice its size."""
        rows = [pieces(text, texts.boundaries) for text in texts.texts]
        lengths = [sum(map(len, row)) + len(row) - 1 for row in rows]
        real = self._real(rows, lengths, bool(texts.boundaries.tokens))
        expected = STORIES.expected
        return SourceScores(
            file=file,
            source="stories",
            version=process.VERSION,
            source_nats_per_story=expected.nats,
            source_nats_per_word=expected.nats / expected.words,
            source_words_per_story=expected.words,
            found=self._validity(rows, bool(texts.boundaries.tokens), advance),
            real=self._validity(real, bool(texts.boundaries.tokens), advance),
            seed=self.seed,
        )

    def validity(self, texts: Texts) -> Validity:
        """Validity of a set of texts alone, without real texts for comparison."""
        rows = [pieces(text, texts.boundaries) for text in texts.texts]
        return self._validity(rows, bool(texts.boundaries.tokens), lambda count: None)

    def _real(self, rows: Sequence[Sequence[Words]], lengths: Sequence[int], cut: bool) -> list[list[Words]]:
        """Real stories as rows of these lengths, cut from a stream of them, or one per text if rows are not cut."""
        numbered = (process.STORIES.told(process.random_of("real", self.seed, number)) for number in count())
        if not cut:
            return [[story] for story in islice(numbered, len(rows))]
        stream = (word for story in numbered for word in [*story, BOUNDARY])
        next_words = (list(islice(stream, length)) for length in lengths)
        return [_split(words) for words in next_words]

    def _validity(self, rows: Sequence[Sequence[Words]], cut: bool, advance: Advance) -> Validity:
        judged: list[list[tuple[Part, Judgement]]] = []
        for row in rows:
            found = [
                (part, self.judge.judge(part.words, begins=part.begins, ends=part.ends)) for part in parts(row, cut)
            ]
            judged.append(found)
            advance(1)
        return self._summary(rows, judged)

    def _summary(self, rows: Sequence[Sequence[Words]], judged: Sequence[Sequence[tuple[Part, Judgement]]]) -> Validity:
        everything = [one for row in judged for one in row]
        ids = _numbered(rows)
        stories_T2 = _counted(judged, lambda one: (one.whole and one.is_valid, one.whole))
        sentences_T2 = _counted(judged, lambda one: (one.valid, one.sentences))
        cut_T2 = _counted(judged, lambda one: (one.cut_valid, one.cut))
        likely = [(one.nats, len(part.words)) for part, one in everything if one.nats is not None]
        nats, words = (sum(column) for column in zip(*likely, strict=True)) if likely else (0.0, 0)
        wrong = [violation for _, one in everything for violation in one.violations]
        taken = {choice for _, one in everything for choice in one.choices}
        kinds, distances = Counter(one.kind for one in wrong), Counter(one.distance for one in wrong)
        choices = len(STORIES.forms) + sum(len(STORIES.classes[name]) for name in ROLES.values())
        return Validity(
            num_texts=len(rows),
            words=sum(len(words) for row in rows for words in row),
            stories=int(stories_T2[:, 1].sum()),
            stories_valid=_share(stories_T2),
            sentences=int(sentences_T2[:, 1].sum()),
            sentences_valid=_share(sentences_T2),
            cut_sentences=int(cut_T2[:, 1].sum()),
            cut_sentences_valid=_share(cut_T2),
            violations={kind: kinds[kind] for kind in KINDS},
            distances={str(back): distances[back] for back in sorted(one for one in distances if one is not None)},
            nats_per_story=nats / len(likely) if likely else None,
            nats_per_word=nats / words if words else None,
            words_per_story=words / len(likely) if likely else None,
            coverage=len(taken) / choices,
            choices=choices,
            entropy=float(metrics.entropies(ids).mean()),
            diversity=metrics.diversity(ids),
            intervals={
                "stories_valid": intervals.of_share(stories_T2),
                "sentences_valid": intervals.of_share(sentences_T2),
            },
        )


def pieces(text: str, boundaries: Boundaries) -> list[Words]:
    """The words of a text between its boundary tokens; tokens that only frame the row do not count as boundaries."""
    return [words_of(piece) for piece in _between(text, boundaries)]


def _between(text: str, boundaries: Boundaries) -> list[str]:
    found = [*boundaries.pieces(text)]
    if len(found) > 1 and not words_of(found[0]):
        found = found[1:]
    if len(found) > 1 and not words_of(found[-1]):
        found = found[:-1]
    return found


def unknown_words(texts: Texts) -> Counter[str]:
    """The words in a set of texts that no story has, and how often each occurs."""
    known = {*STORIES.vocabulary}
    return Counter(
        word for text in texts.texts for piece in pieces(text, texts.boundaries) for word in piece if word not in known
    )


def whole_stories(texts: Texts) -> Iterator[str]:
    """The stories in a set of texts that have their beginning and end, as written, in order."""
    cut = bool(texts.boundaries.tokens)
    for text in texts.texts:
        found = _between(text, texts.boundaries)
        yield from found[1:-1] if cut else found


def kinds(story: str) -> list[str]:
    """The kinds of violation in a whole story, each once; none if it is valid."""
    return [*dict.fromkeys(violation.kind for violation in judge().judge(words_of(story)).violations)]


def parts(row: Sequence[Words], cut: bool) -> Iterator[Part]:
    """The stories of a row; if rows are cut, the first lacks its beginning and the last its end."""
    for number, words in enumerate(row):
        part = Part(words, not cut or number > 0, not cut or number < len(row) - 1)
        if words or (part.begins and part.ends):  # a whole story without words counts, and is wrong
            yield part


def _split(words: Sequence[str]) -> list[Words]:
    found: list[list[str]] = [[]]
    for word in words:
        if word == BOUNDARY:
            found.append([])
        else:
            found[-1].append(word)
    return [*found]


def _numbered(rows: Iterable[Sequence[Words]]) -> list[list[int]]:
    """The words of each row as numbers, boundaries included."""
    numbers: dict[str, int] = {BOUNDARY: 0}
    return [
        [numbers.setdefault(word, len(numbers)) for piece in row for word in [BOUNDARY, *piece]][1:] for row in rows
    ]


def _counted(
    judged: Sequence[Sequence[tuple[Part, Judgement]]], counts: Callable[[Judgement], tuple[int, int]]
) -> np.ndarray:
    """Counts of valid ones and of all, by text (T, 2)."""
    return np.array([[sum(column) for column in zip((0, 0), *(counts(one) for _, one in row))] for row in judged])  # noqa: B905


def _share(counts_T2: np.ndarray) -> float | None:
    valid, all_of_them = counts_T2.sum(0)
    return float(valid / all_of_them) if all_of_them else None
