"""Score anybody's texts: generative perplexity, with entropy and diversity beside it (SPEC 9)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldlm import metrics, runtime, samples
from ldlm.config import EvaluateConfig
from ldlm.encoder import tokenizer_fingerprint
from ldlm.metrics import Scorer
from ldlm.progress import SILENT, Progress
from ldlm.samples import Texts


def plan(config: EvaluateConfig, files: Sequence[Path], reference: Path | None) -> dict[str, Any]:
    """How many texts it would score."""
    paths = [*files, *([reference] if reference else [])]
    return {"texts": {str(path): len(samples.read(path, config.text_column)) for path in paths}}


def run(
    config: EvaluateConfig, files: Sequence[Path], reference: Path | None = None, *, progress: Progress = SILENT
) -> list[dict[str, Any]]:
    """The metrics of each file, and of the reference last, as JSON-ready records."""
    paths = [*files, *([reference] if reference else [])]
    sets = [samples.read(path, config.text_column) for path in paths]
    scorer = Scorer(config.scorer, runtime.device(config.device))
    max_tokens = config.max_tokens or _longest(sets) or 1024
    scorer.check_length(max_tokens)
    with progress.task("score", sum(map(len, sets)), "text") as task:
        results = [measure(texts, scorer, config, max_tokens, task.advance) for texts in sets]
    for path, result in zip(paths, results, strict=True):
        result["file"] = str(path)
        result["role"] = "reference" if reference is not None and path == paths[-1] else "texts"
    return results


def _longest(sets: Sequence[Texts]) -> int:
    """Tokens in the longest row that comes with its tokens: the run's L, where a run drew the texts."""
    return max((len(ids) for texts in sets for ids in texts.tokens or []), default=0)


def measure(
    texts: Texts, scorer: Scorer, config: EvaluateConfig, max_tokens: int, advance: Any = lambda count: None
) -> dict[str, Any]:
    """gen_ppl, entropy and diversity of one set, with intervals and all that names them (SPEC 9, 12.13)."""
    scores = metrics.score(texts.texts, scorer, max_tokens=max_tokens, batch_size=config.batch_size, advance=advance)
    rows = [ids[:max_tokens] for ids in texts.tokens or scorer.tokens(texts.texts, max_tokens)]
    entropy_T = metrics.entropies(rows)
    resampling = {"resamples": config.resamples, "seed": config.seed}
    return {
        "gen_ppl": scores.perplexity(),
        "entropy": float(entropy_T.mean()),
        "diversity": metrics.diversity(rows),
        "intervals": {
            "gen_ppl": metrics.bootstrap(scores.perplexity, len(scores.nll_T), **resampling),
            "entropy": metrics.bootstrap(lambda chosen: entropy_T[chosen].mean(), len(entropy_T), **resampling),
        },
        "bootstrap": {"level": 0.95, **resampling},
        "protocol": config.protocol,
        "scorer": scorer.name,
        "num_texts": len(texts),
        "tokens_scored": int(scores.count_T.sum()),
        "max_tokens": max_tokens,
        "tokens_from": "file" if texts.tokens else "scorer",
        "scorer_tokenizer": tokenizer_fingerprint(scorer.tokenizer)[:12],
    }
