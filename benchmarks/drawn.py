"""Texts drawn in several ways with several seeds: their figures, and the table of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import cell
from ldlm.cli import show
from ldlm.config import EvaluateConfig
from ldlm.paper.comparing import ONE
from ldlm.stages import evaluate

FIGURES = {"gen_ppl": "gen. ppl", "entropy": "entropy", "diversity": "diversity"}
ENTROPY_SLACK = 0.05  # nats; a lower perplexity at less entropy than that below is no win

Figures = Sequence[Mapping[str, float]]  # of one way, by seed or by training


def judged(texts: Path, scorer: str, max_tokens: int | None, reference: Path | None = None) -> dict[str, float]:
    """Figures of a file of texts; with `reference`, those of as many real texts from that file.

    `max_tokens` are scored of each text; None for as many as `ldlm evaluate` takes.
    """
    settings = EvaluateConfig(scorer=scorer, max_tokens=max_tokens, device="cpu")
    found: dict[str, float] = evaluate.run(settings, [texts], reference)[-1].scores.pick(*FIGURES)
    return found


def table(found: Mapping[str, Any]) -> str:
    """A row for each way and number of evaluations, with mean ± deviation over the seeds, and one for real text."""
    rows = [
        (row["way"], row["evaluations"], *(cell([one[key] for one in row["figures"]]) for key in FIGURES))
        for row in found["rows"]
    ]
    if found["real"] is not None:
        rows.append(("real text", "", *(show.value(found["real"][key]) for key in FIGURES)))
    head = f"{found['texts']} texts with each of {len(found['seeds'])} seeds"
    return f"{head}\n\n{show.table(('way', 'evaluations', *FIGURES.values()), rows)}"


def compared(ours: Figures, name: str, other: Figures) -> str:
    """How a way compares with the one called `name`, and whether it wins: beyond every seed and without collapse.

    One measurement of either is no evidence, since nothing says how far chance goes.
    """
    apart, entropy = (mean(ours, key) - mean(other, key) for key in ("gen_ppl", "entropy"))
    beyond = max(one["gen_ppl"] for one in ours) < min(one["gen_ppl"] for one in other)
    said = "it wins" if beyond and entropy > -ENTROPY_SLACK else "it does not win"
    if min(len(ours), len(other)) < 2:
        said = ONE
    return f"has a perplexity {apart:+.1f} beside {name}, and an entropy {entropy:+.3f}: {said}"


def mean(figures: Figures, key: str) -> float:
    """Mean of a figure over the seeds or trainings of a way."""
    return statistics.mean(one[key] for one in figures)
