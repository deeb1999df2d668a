"""Measures one set of texts: generative perplexity, entropy and diversity, with their intervals (SPEC 9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ldlm.config import EvaluateConfig
from ldlm.evaluation import metrics
from ldlm.evaluation.samples import Row, Texts
from ldlm.evaluation.scorecache import ScoreCache
from ldlm.evaluation.scorer import Scorer
from ldlm.evaluation.scores import SetScores
from ldlm.features.encoder import tokenizer_fingerprint

Advance = Callable[[int], None]


def measure(
    texts: Texts,
    scorer: Scorer,
    config: EvaluateConfig,
    max_tokens: int,
    fewest: int | None = None,
    advance: Advance = lambda count: None,
    cache: ScoreCache | None = None,
) -> SetScores:
    """Scores of one set of texts, cut at `max_tokens`.

    Diversity is that of the first `fewest` texts: the size of the smallest set compared with this one.
    """
    likelihoods = _likelihoods(texts, scorer, config, max_tokens, advance, cache)
    rows = _rows(texts, scorer, config, max_tokens)
    entropy_T = metrics.entropies(rows)
    scored = len(likelihoods.nll_T) if likelihoods else 0
    diversity_texts = min(len(rows), fewest or len(rows))
    resampling = {"resamples": config.resamples, "seed": config.seed}
    return SetScores(
        gen_ppl=likelihoods.perplexity() if likelihoods else None,
        entropy=float(entropy_T.mean()),
        diversity=metrics.diversity(rows[:diversity_texts]),
        diversity_texts=diversity_texts,
        intervals={
            "gen_ppl": metrics.bootstrap(likelihoods.perplexity, scored, **resampling) if likelihoods else None,
            "entropy": metrics.bootstrap(lambda chosen: entropy_T[chosen].mean(), len(entropy_T), **resampling),
        },
        bootstrap={"level": 0.95, **resampling},
        protocol=config.protocol,
        boundaries=config.boundaries,
        boundary_tokens=list(texts.boundaries.tokens),
        clean_up=texts.clean_up,
        scorer=scorer.name,
        scorer_revision=scorer.revision,
        scorer_tokenizer=tokenizer_fingerprint(scorer.tokenizer)[:12],
        dtype=scorer.dtype,
        num_texts=len(texts),
        texts_scored=scored,
        tokens=sum(map(len, rows)),
        tokens_scored=int(likelihoods.count_T.sum()) if likelihoods else 0,
        tokens_from="file" if texts.tokens else "scorer",
        max_tokens=max_tokens,
        seeds=[min(texts.seeds), max(texts.seeds)] if texts.seeds else None,
    )


def _likelihoods(
    texts: Texts,
    scorer: Scorer,
    config: EvaluateConfig,
    max_tokens: int,
    advance: Advance,
    cache: ScoreCache | None,
) -> metrics.TextScores | None:
    """Likelihoods of the texts under the scorer; None if no text has a token to score."""
    spelled = texts.boundaries.spell(texts.texts, config.boundaries, scorer)
    how: Any = {"max_tokens": max_tokens, "batch_size": config.batch_size, "advance": advance, "cache": cache}
    try:
        return metrics.score(spelled, scorer, config.protocol, **how)
    except metrics.NothingToScore:
        return None


def _rows(texts: Texts, scorer: Scorer, config: EvaluateConfig, max_tokens: int) -> list[Row]:
    """The tokens that entropy and diversity count, special tokens included: those in the file, or else the scorer's."""
    if texts.tokens:
        return [ids[:max_tokens] for ids in texts.tokens]
    # Boundaries dropped for perplexity are counted here, as the scorer's EOS.
    kept = "eos" if config.boundaries == "drop" and scorer.eos is not None else config.boundaries
    return [*scorer.tokens(texts.boundaries.spell(texts.texts, kept, scorer), max_tokens)]
