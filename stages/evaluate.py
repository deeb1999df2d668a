"""Score anybody's texts: generative perplexity, with entropy and diversity beside it, and MAUVE when asked (SPEC 9)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ldlm import runtime
from ldlm.config import EvaluateConfig, differences
from ldlm.errors import InputError
from ldlm.evaluation import mauve, metrics, samples
from ldlm.evaluation.measure import measure
from ldlm.evaluation.samples import Texts
from ldlm.evaluation.scorer import Scorer
from ldlm.evaluation.scores import FileScores, Mauve
from ldlm.features import textfiles
from ldlm.progress import SILENT, Progress

LONGEST = 1024  # tokens of a text, where nobody says and no row of tokens tells


def plan(
    config: EvaluateConfig, files: Sequence[Path], reference: Path | None, *, seeds: bool = False
) -> dict[str, Any]:
    """How many texts it would score."""
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
    cache: Path | None = None,
    progress: Progress = SILENT,
) -> list[FileScores]:
    """Scores of each file, and of the reference last.

    `seeds`: the files, or those in the folders, are draws of one model with different seeds. `with_mauve` compares each
    with the reference. `cache` is a folder where likelihoods are kept between calls.
    """
    if with_mauve:
        mauve.library()
        if reference is None:
            raise InputError("MAUVE compares with real text; give some with --reference FILE")
    paths = _paths(files, reference, seeds)
    sets = _read(paths, config, reference, progress)
    if seeds:
        _check_seeds(paths[: len(paths) - (reference is not None)], sets)
    scorer = Scorer(config.scorer, runtime.device(config.device))
    max_tokens = _max_tokens(config, sets, scorer, progress)
    fewest = min(map(len, sets))
    with (
        scorer.cache(cache, progress.note) if cache else nullcontext() as kept,
        progress.task("score", sum(map(len, sets)), "text") as task,
    ):
        scores = [measure(texts, scorer, config, max_tokens, fewest, task.advance, kept) for texts in sets]
    if all(one.gen_ppl is None for one in scores):
        raise metrics.NothingToScore(config.protocol)
    found = [*_mauve(sets, scorer, config, max_tokens, progress), None] if with_mauve else [None] * len(sets)
    results = [
        FileScores(file=str(path), role="texts", scores=one, mauve=mauve)
        for path, one, mauve in zip(paths, scores, found, strict=True)
    ]
    return results if reference is None else [*results[:-1], replace(results[-1], role="reference")]


def _paths(files: Sequence[Path], reference: Path | None, seeds: bool) -> list[Path]:
    return [*(samples.in_folders(files) if seeds else files), *([reference] if reference else [])]


def _read(paths: Sequence[Path], config: EvaluateConfig, reference: Path | None, progress: Progress) -> list[Texts]:
    """All sets. Of the reference, the last, as many texts as the largest has: diversity falls with their number."""
    textfiles.check_streams(paths)
    for remark in [*textfiles.remarks(paths, config.text_column), *samples.remarks(paths, config.boundary_tokens)]:
        progress.note(remark)
    sets = [samples.described(samples.read(path, config.text_column), path, config.boundary_tokens) for path in paths]
    if reference is None or len(sets) == 1:
        return sets
    *drawn, real = sets
    count = max(map(len, drawn))
    if len(real) > count:
        progress.note(
            f"{reference}: the first {count:,} of its {len(real):,} texts, for diversity falls with their number"
        )
    return [*drawn, real.first(count)]


def _max_tokens(config: EvaluateConfig, sets: Sequence[Texts], scorer: Scorer, progress: Progress) -> int:
    """Where texts are cut (SPEC 13.12); `InputError` when the user asks for more than the scorer takes."""
    if config.max_tokens is None:
        return scorer.fitting(_longest(sets) or LONGEST, progress.note)
    scorer.check_length(config.max_tokens)
    return config.max_tokens


def _longest(sets: Sequence[Texts]) -> int:
    """Tokens in the longest row that comes with its tokens: the run's L, where a run drew the texts."""
    return max((len(ids) for texts in sets for ids in texts.tokens or []), default=0)


# ----------------------------------------------------------------------------------------------------------------------
# Several seeds of one model


def _check_seeds(paths: Sequence[Path], sets: Sequence[Texts]) -> None:
    if len(paths) < 2:
        raise InputError("--seeds takes the spread over several files of one model, and there is one; give more")
    drawn = [found for path in paths if (found := _settings(samples.record(path)))]
    for settings in drawn[1:]:
        both = sorted(drawn[0].keys() & settings.keys())  # a record of another version may lack one
        if changed := differences({key: drawn[0][key] for key in both}, {key: settings[key] for key in both}):
            raise InputError(
                f"these are not seeds of one model: they differ in more ({'; '.join(changed)}); leave one out"
            )
    seen: dict[tuple[str, ...], tuple[Path, Texts]] = {}
    for path, texts in zip(paths, sets, strict=False):
        other, before = seen.setdefault(tuple(texts.texts), (path, texts))
        others = texts.seeds and before.seeds and texts.seeds != before.seeds  # a collapsed model has one text for all
        if (other != path and not others) or paths.count(path) > 1:
            raise InputError(f"{other} and {path} hold the same texts, so they are not two seeds; leave one out")
    counts = [len(texts) for texts in sets[: len(paths)]]
    if len(set(counts)) > 1:
        raise InputError(
            f"the seeds have {', '.join(map(str, counts))} texts; diversity falls with their number, so give as many "
            "of each"
        )


def _settings(found: dict[str, Any]) -> dict[str, Any]:
    """How `ldlm sample` drew a set, but for its seed; empty for what is not its record."""
    if found.get("kind") != "samples":
        return {}
    sampler = {f"sampler.{key}": value for key, value in found["config"]["sampler"].items()}
    names = [name for name in ("decoder", "precision", "checkpoint", "clean_up") if name in found]
    return {**sampler, **{name: found[name] for name in names}}


# ----------------------------------------------------------------------------------------------------------------------
# MAUVE


def _mauve(
    sets: Sequence[Texts], scorer: Scorer, config: EvaluateConfig, max_tokens: int, progress: Progress
) -> list[Mauve]:
    """MAUVE of every set but the last against the last, which is the reference; all with as many texts."""
    model = scorer if config.mauve_model in (None, scorer.name) else Scorer(config.mauve_model, scorer.device)
    if config.max_tokens is None:
        max_tokens = model.fitting(max_tokens, progress.note)
    model.check_length(max_tokens)
    spelled = [texts.boundaries.spell(texts.texts, config.boundaries, model) for texts in sets]
    rows = [[ids for ids in model.tokens(texts, max_tokens) if len(ids)] for texts in spelled]
    *drawn, real = rows
    collapsed = [len(some) < mauve.FEWEST <= len(texts) for some, texts in zip(drawn, spelled, strict=False)]
    count = min([len(real), *(len(some) for some, nothing in zip(drawn, collapsed, strict=True) if not nothing)])
    with progress.task("mauve", count * len(sets), "text") as task:

        def states(some: Sequence[np.ndarray]) -> np.ndarray:
            return model.last_states(some[:count], config.batch_size, task.advance)

        reference = states(real)
        found = [
            Mauve(None, {}) if nothing else mauve.score(states(some), reference)
            for some, nothing in zip(drawn, collapsed, strict=True)
        ]
    named = {"model": model.name, "model_revision": model.revision, "max_tokens": max_tokens}
    return [Mauve(one.value, {**one.settings, **named}) for one in found]


def mauve_of_features(texts: Path, reference: Path) -> dict[str, Any]:
    """MAUVE of features that were computed elsewhere, from two .npy files: of each as many as of the shorter."""
    mauve.library()
    p_TD, q_TD = mauve.read_features(texts), mauve.read_features(reference)
    if p_TD.shape[1] != q_TD.shape[1]:
        raise InputError(
            f"{texts} has features of width {p_TD.shape[1]} and {reference} of {q_TD.shape[1]}; take one model for both"
        )
    count = min(len(p_TD), len(q_TD))
    return {**mauve.score(p_TD[:count], q_TD[:count]).to_json(), "file": str(texts), "reference": str(reference)}
