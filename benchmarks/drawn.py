"""Texts drawn in several ways with several seeds: their figures, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.records import cell
from ldlm.cli import show
from ldlm.config import EvaluateConfig
from ldlm.stages import evaluate

FIGURES = {"gen_ppl": "gen. ppl", "entropy": "entropy", "diversity": "diversity"}


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
