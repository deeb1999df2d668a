"""Scores of one set of texts: generative perplexity, entropy and diversity, never one without the others (SPEC 9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ldlm.config import EvaluateConfig
from ldlm.evaluation import metrics
from ldlm.evaluation.samples import Texts
from ldlm.evaluation.scorecache import ScoreCache
from ldlm.evaluation.scorer import Scorer
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
) -> dict[str, Any]:
    """gen_ppl, entropy and diversity of one set, with intervals and all that names them (SPEC 9, 12.13).

    Diversity is that of the first `fewest` texts, the size of the smallest set beside this one. Texts of which none has
    anything to score have no perplexity: `gen_ppl` and its interval are None.
    """
    spelled = texts.boundaries.spell(texts.texts, config.boundaries, scorer)
    how: Any = {"max_tokens": max_tokens, "batch_size": config.batch_size, "advance": advance, "cache": cache}
    try:
        scores = metrics.score(spelled, scorer, config.protocol, **how)
    except metrics.NothingToScore:
        scores = None
    rows = [
        ids[:max_tokens] for ids in texts.tokens or scorer.tokens(_with_specials(texts, config, scorer), max_tokens)
    ]
    number = min(len(rows), fewest or len(rows))
    entropy_T = metrics.entropies(rows)
    resampling = {"resamples": config.resamples, "seed": config.seed}
    return {
        "gen_ppl": scores and scores.perplexity(),
        "entropy": float(entropy_T.mean()),
        "diversity": metrics.diversity(rows[:number]),
        "diversity_texts": number,
        "intervals": {
            "gen_ppl": scores and metrics.bootstrap(scores.perplexity, len(scores.nll_T), **resampling),
            "entropy": metrics.bootstrap(lambda chosen: entropy_T[chosen].mean(), len(entropy_T), **resampling),
        },
        "bootstrap": {"level": 0.95, **resampling},
        "protocol": config.protocol,
        "boundaries": config.boundaries,
        "boundary_tokens": list(texts.boundaries.tokens),
        "clean_up": texts.clean_up,
        "scorer": scorer.name,
        "scorer_revision": scorer.revision,
        "scorer_tokenizer": tokenizer_fingerprint(scorer.tokenizer)[:12],
        "dtype": scorer.dtype,
        "num_texts": len(texts),
        "texts_scored": len(scores.nll_T) if scores else 0,
        "tokens": sum(map(len, rows)),
        "tokens_scored": int(scores.count_T.sum()) if scores else 0,
        "tokens_from": "file" if texts.tokens else "scorer",
        "max_tokens": max_tokens,
        "seeds": [min(texts.seeds), max(texts.seeds)] if texts.seeds else None,
    }


def _with_specials(texts: Texts, config: EvaluateConfig, scorer: Scorer) -> Sequence[str]:
    """The texts whose tokens are counted for entropy and diversity, which take special tokens in (SPEC 9)."""
    kept = "eos" if config.boundaries == "drop" and scorer.eos is not None else config.boundaries
    return texts.boundaries.spell(texts.texts, kept, scorer)
