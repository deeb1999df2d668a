"""Scores of anybody's texts: generative perplexity, entropy, diversity and, if requested, MAUVE (SPEC 9)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldlm import runtime
from ldlm.config import EvaluateConfig
from ldlm.errors import InputError
from ldlm.evaluation import mauve, metrics, samples, validity
from ldlm.evaluation.boundaries import Boundaries
from ldlm.evaluation.measure import measure
from ldlm.evaluation.samples import Texts
from ldlm.evaluation.scorer import Scorer
from ldlm.evaluation.scores import FileScores
from ldlm.evaluation.validity import SourceScores
from ldlm.features import textfiles
from ldlm.features.store import FeatureStore
from ldlm.hub import load_tokenizer
from ldlm.location import Location
from ldlm.progress import SILENT, Progress
from ldlm.stories import tokens

TRAINING_ROWS = 8192  # rows searched at a time
LONGEST = 1024  # tokens; texts are cut here if neither the user nor the files give a length


def plan(
    config: EvaluateConfig, files: Sequence[Path], reference: Path | None, *, seeds: bool = False
) -> dict[str, Any]:
    """Number of texts that `run` would score, by file."""
    paths = _paths(files, reference, seeds)
    sets = _read(paths, config, reference, SILENT)
    return {"texts": {str(path): len(texts) for path, texts in zip(paths, sets, strict=True)}}


def run(
    config: EvaluateConfig,
    files: Sequence[Path],
    reference: Path | None = None,
    *,
    seeds: bool = False,
    with_mauve: bool = False,
    training: Location | None = None,
    cache: Path | None = None,
    progress: Progress = SILENT,
) -> list[FileScores]:
    """Scores of each file, and of the reference last.

    With `seeds`, the files, or those in the folders, are draws of one model with different seeds. `with_mauve` compares
    each with the reference. `training` is a feature store, in whose training rows the 8-grams of all texts are looked
    up; `cache` is a folder that keeps likelihoods between calls.
    """
    if with_mauve:
        mauve.library()
        if reference is None:
            raise InputError("MAUVE compares with real text; give some with --reference FILE")
    store = None if training is None else FeatureStore(training)
    paths = _paths(files, reference, seeds)
    sets = _read(paths, config, reference, progress)
    if with_mauve:
        for path, texts in zip(paths, sets, strict=True):
            mauve.check_number(f"texts of {path}", len(texts))
    if seeds:
        samples.check_seeds(paths[: len(paths) - (reference is not None)], sets)
    scorer = Scorer(config.scorer, runtime.device(config.device), progress.note)
    for remark in samples.unread_remarks(paths, sets, config.boundaries, scorer):
        progress.note(remark)
    max_tokens = _max_tokens(config, sets, scorer, progress)
    fewest = min(map(len, sets))
    with (
        scorer.cache(cache, progress.note) if cache else nullcontext() as kept,
        progress.task("score", sum(map(len, sets)), "text") as task,
    ):
        scores = [measure(texts, scorer, config, max_tokens, fewest, task.advance, kept) for texts in sets]
    if all(one.gen_ppl is None for one in scores):
        raise metrics.NothingToScore(config.protocol)
    found = [*mauve.of_texts(sets, scorer, config, max_tokens, progress), None] if with_mauve else [None] * len(sets)
    copied = [None] * len(sets) if store is None else _copied(sets, store, progress)
    results = [
        FileScores(file=str(path), role="texts", scores=one, mauve=mauve, copied_8grams=share)
        for path, one, mauve, share in zip(paths, scores, found, copied, strict=True)
    ]
    return results if reference is None else [*results[:-1], replace(results[-1], role="reference")]


def by_source(
    config: EvaluateConfig, files: Sequence[Path], *, seeds: bool = False, progress: Progress = SILENT
) -> list[SourceScores]:
    """Scores of each file by the process that its texts should come from; no scorer is needed.

    With `seeds`, the files, or those in the folders, are draws of one model with different seeds, and each is compared
    with real texts of its own, from consecutive seeds that begin with the configured one; otherwise all files are
    compared with the same real texts.
    """
    paths = _paths(files, None, seeds)
    sets = [_with_ends(texts) for texts in _read(paths, config, None, progress)]
    if seeds:
        samples.check_seeds(paths, sets)
    for path, texts in zip(paths, sets, strict=True):
        if unknown := validity.unknown_words(texts):
            progress.note(_unknown(path, unknown))
    measures = [validity.Measure(config.seed + number * seeds) for number in range(len(sets))]
    with progress.task("judge", 2 * sum(map(len, sets)), "text") as task:
        return [
            measure.scores(texts, str(path), task.advance)
            for measure, path, texts in zip(measures, paths, sets, strict=True)
        ]


def _unknown(path: Path, words: Counter[str]) -> str:
    """The remark on words that no story has; such a word makes a sentence invalid, whatever else it says."""
    commonest = ", ".join(repr(word) for word, _ in words.most_common(3))
    return (
        f"{path}: words that no story has occur {words.total():,} times, such as {commonest}; score texts of another "
        "source without --source, with a --scorer"
    )


def _with_ends(texts: Texts) -> Texts:
    """The texts; if they name no boundary tokens but contain the stories' own, with that one."""
    if texts.boundaries.tokens or not any(tokens.ENDS in text for text in texts.texts):
        return texts
    return replace(texts, boundaries=Boundaries.in_texts((tokens.ENDS,), texts.texts))


def _paths(files: Sequence[Path], reference: Path | None, seeds: bool) -> list[Path]:
    return [*(samples.in_folders(files, reference) if seeds else files), *([reference] if reference else [])]


def _read(paths: Sequence[Path], config: EvaluateConfig, reference: Path | None, progress: Progress) -> list[Texts]:
    """Read all sets; the reference, which comes last, is cut to as many texts as the largest other set has."""
    textfiles.check_streams(paths)
    sets = samples.read_all(paths, config.text_column, config.boundary_tokens, progress.note)
    if reference is None or len(sets) == 1:
        return sets
    *drawn, real = sets
    count = max(map(len, drawn))
    if len(real) > count:
        progress.note(
            f"{reference}: the first {count:,} of its {len(real):,} texts, since diversity falls as their number grows"
        )
    return [*drawn, real.first(count)]


def _copied(sets: Sequence[Texts], store: FeatureStore, progress: Progress) -> list[float]:
    """The share of each set's 8-grams that occur in the store's training rows.

    Texts are encoded with the store's tokenizer, so that anybody's are counted alike, and cut to the length of its
    rows, since no 8-gram of the training text crosses the end of a row.
    """
    tokenizer, training = load_tokenizer(str(store.tokenizer_path)), store.split("train")
    encoded = [
        [row[: store.shapes.seq_len] for row in tokenizer(texts.texts, add_special_tokens=False)["input_ids"]]
        for texts in sets
    ]
    with progress.task("look for 8-grams", training.rows, "row") as task:

        def rows() -> Iterator[list[int]]:
            for start in range(0, training.rows, TRAINING_ROWS):
                part = training.tokens[start : start + TRAINING_ROWS]
                yield from part.tolist()
                task.advance(len(part))

        return metrics.copied_shares(encoded, rows())


def _max_tokens(config: EvaluateConfig, sets: Sequence[Texts], scorer: Scorer, progress: Progress) -> int:
    """Length in tokens at which texts are cut (SPEC 13.12); `InputError` if the user's is longer than the scorer's."""
    if config.max_tokens is None:
        return scorer.fitting(_longest(sets) or LONGEST, progress.note)
    scorer.check_length(config.max_tokens)
    return config.max_tokens


def _longest(sets: Sequence[Texts]) -> int:
    """Length of the longest row of tokens in the files, 0 without any; for texts drawn from a run, its L."""
    return max((len(ids) for texts in sets for ids in texts.tokens or []), default=0)


# ----------------------------------------------------------------------------------------------------------------------
# MAUVE


def mauve_of_features(texts: Path, reference: Path) -> dict[str, Any]:
    """MAUVE of features computed elsewhere, from two .npy files; the longer is cut to the length of the shorter."""
    mauve.library()
    p_TD, q_TD = mauve.read_features(texts), mauve.read_features(reference)
    if p_TD.shape[1] != q_TD.shape[1]:
        raise InputError(
            f"{texts} has features of width {p_TD.shape[1]} and {reference} of {q_TD.shape[1]}; use one model for both"
        )
    count = min(len(p_TD), len(q_TD))
    return {**mauve.score(p_TD[:count], q_TD[:count]).to_json(), "file": str(texts), "reference": str(reference)}
