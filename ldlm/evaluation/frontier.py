"""Quality against the number of denoiser evaluations: finalists, verdict and tables of a sweep (Tables 5, 8, 9)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ldlm import markdown
from ldlm.config import PAPERS_SAMPLER
from ldlm.errors import InputError
from ldlm.evaluation.scores import FIGURES, SetScores

INTERVALS = "In brackets are 95 % bootstrap intervals over texts."
PAPERS_BUDGET = 128  # evaluations; the paper's sampler here, or at the nearest budget, sets the finalists' entropy bar
RECORDED = (*FIGURES, "intervals", "num_texts", "diversity_texts")  # the fields of `SetScores` in a sweep's record


def is_papers(settings: Mapping[str, Any]) -> bool:
    """Whether settings are those of the paper's sampler, at any number of steps; absent settings count as equal."""
    return all(settings.get(name, value) == value for name, value in PAPERS_SAMPLER.items())


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to draw texts, and their scores: a row of `sweep.json`."""

    solver: str
    grid: str
    guidance: float
    budget: int  # evaluations of the denoiser per text
    t_min: float = PAPERS_SAMPLER["t_min"]
    steps: int
    final: str
    temperature: float
    decoder: str
    seconds: float  # per text, for drawing and decoding
    gen_ppl: float | None  # None if no text has a token to score
    entropy: float  # nats
    diversity: float
    intervals: Mapping[str, list[float] | None] | None = None  # [low, high] of gen_ppl and of entropy; not recorded
    num_texts: int
    diversity_texts: int | None = None  # None: not recorded
    best: bool | None = None  # at its budget; None unless the variant is a finalist

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Variant:
        """Inverse of `to_json`."""
        return cls(**{field.name: row[field.name] for field in fields(cls) if field.name in row})

    def to_json(self) -> dict[str, Any]:
        """The fields by name; `best` for finalists only, and no intervals where an earlier version recorded none."""
        optional = ("best", "intervals")
        return {name: value for name, value in asdict(self).items() if name not in optional or value is not None}

    @property
    def way(self) -> tuple[Any, ...]:
        """The fields by which the variants of a sweep differ."""
        return self.solver, self.grid, self.guidance, self.budget, self.decoder, self.final, self.temperature

    @property
    def is_papers(self) -> bool:
        """Whether this is the paper's sampler, with any way of decoding."""
        return is_papers(vars(self))


@dataclass(frozen=True)
class External:
    """Texts drawn from another model, with their cost."""

    name: str
    path: Path
    nfe: int  # evaluations per text
    seconds: float  # per text

    @classmethod
    def parse(cls, given: str) -> External:
        """From `NAME=FILE,NFE,SECONDS`; `InputError` for any other form, and for costs that are not positive."""
        name, equals, rest = given.partition("=")
        parts = rest.rsplit(",", 2)
        try:
            nfe, seconds = int(parts[1]), float(parts[2])
            if not (name and equals and parts[0] and nfe >= 1 and 0 < seconds < math.inf):
                raise ValueError
            return cls(name, Path(parts[0]), nfe, seconds)
        except (ValueError, IndexError):
            raise InputError(
                f"--external takes NAME=FILE,NFE,SECONDS (evaluations and seconds per text, both above 0), for example "
                f"mdlm=mdlm.jsonl,128,2.5, and not {given!r}"
            ) from None


def compared(externals: Mapping[External, SetScores], real: SetScores | None) -> dict[str, Any]:
    """Scores and costs of other models' texts, and scores of real text, by their keys in the record of a sweep."""
    return {
        "externals": [
            {"name": one.name, "nfe": one.nfe, "seconds": one.seconds, **scores.pick(*RECORDED)}
            for one, scores in externals.items()
        ],
        "real": None if real is None else real.pick(*RECORDED),
    }


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """All findings of a sweep."""

    finalists: Sequence[Variant]
    drawn: Sequence[Variant]  # every variant on the finalists' trajectories, with many texts
    screened: Sequence[Variant]  # every variant, with few texts
    externals: Mapping[External, SetScores]
    real: SetScores | None  # of the reference
    about: Mapping[str, Any]  # what all figures depend on, by key in `sweep.json`

    def to_json(self) -> dict[str, Any]:
        """The content of `sweep.json`."""
        return {
            **{name: [row.to_json() for row in getattr(self, name)] for name in ("finalists", "drawn", "screened")},
            **compared(self.externals, self.real),
            **self.about,
        }

    def table(self) -> str:
        """The content of `table.md`."""
        return tables(self)


# ----------------------------------------------------------------------------------------------------------------------
# The choice of finalists


def finalists(rows: Sequence[Variant], entropy_slack: float) -> list[Variant]:
    """For each budget, the best variant of the paper's sampler and the best of all, which is marked as `best`.

    The best has the lowest perplexity among the variants whose entropy is at most `entropy_slack` below the bar (see
    `_bar`), or the highest entropy if there are none. A variant without a perplexity is best only if no other is left,
    and is not marked.
    """
    bar = _bar(rows)

    def best(among: Sequence[Variant]) -> Variant:
        diverse = [row for row in scored(among) if row.entropy >= bar - entropy_slack]
        if diverse:
            return min(diverse, key=_perplexity)
        return max(scored(among) or among, key=lambda row: row.entropy)

    chosen: list[Variant] = []
    for budget in sorted({row.budget for row in rows}):
        there = [row for row in rows if row.budget == budget]
        papers, winner = [row for row in there if row.is_papers], best(there)
        if papers and (pick := best(papers)) is not winner:
            chosen.append(replace(pick, best=False))
        chosen.append(replace(winner, best=winner.gen_ppl is not None))
    return chosen


def _bar(rows: Sequence[Variant]) -> float:
    """Entropy of the lowest-perplexity variant of the paper's sampler, at the budget nearest to `PAPERS_BUDGET`.

    If the paper's sampler was not swept, all variants at that budget are considered; 0 if none has a perplexity.
    """
    there = scored(rows)
    own = [row for row in there if row.is_papers] or there
    return min(_at_papers_budget(own), key=_perplexity).entropy if own else 0.0


def scored(rows: Sequence[Variant]) -> list[Variant]:
    """The variants with a perplexity."""
    return [row for row in rows if row.gen_ppl is not None]


def _perplexity(row: Variant) -> float:
    assert row.gen_ppl is not None
    return row.gen_ppl


def _at_papers_budget(rows: Sequence[Variant]) -> list[Variant]:
    """The variants at the budget nearest to `PAPERS_BUDGET`."""
    nearest = min({row.budget for row in rows}, key=lambda budget: abs(budget - PAPERS_BUDGET))
    return [row for row in rows if row.budget == nearest]


# ----------------------------------------------------------------------------------------------------------------------
# Text


def read_finalists(summary: Mapping[str, Any]) -> list[Variant]:
    """The finalists in the JSON of a sweep of LDLM.

    Early sweeps marked none as best: in those, all but the paper's sampler are.
    """
    finalists = [Variant.from_json(row) for row in summary["finalists"]]
    return [replace(row, best=not row.is_papers) if row.best is None else row for row in finalists]


def verdict(finalists: Sequence[Variant]) -> str:
    """One sentence comparing the best finalist with at most a quarter of the paper's evaluations to the paper's own."""
    found = scored(finalists)
    if not found:
        return "No combination has a perplexity: none of the texts has a token to score."
    own = [row for row in found if row.is_papers]
    if not own:
        swept = any(row.is_papers for row in finalists)
        return f"The paper's sampler {'has no perplexity' if swept else 'was not among those swept'}."
    base = _at_papers_budget(own)[0]
    fewer = [row for row in found if row.best and row.budget <= base.budget / 4]
    if not fewer:
        return f"Nothing was swept at a quarter of {base.budget} evaluations."
    best = max(fewer, key=lambda row: row.budget)
    return (
        f"At {best.budget} evaluations {best.solver} ({best.grid}, w = {best.guidance:g}): {_figures(best)}; "
        f"the paper's sampler at {base.budget}: {_figures(base)}."
    )


def tables(frontier: Frontier) -> str:
    """The finalists, the ways to decode the paper's sampler, other models' texts and all screened variants (Markdown).

    Ends with a newline.
    """
    about, screened = frontier.about, frontier.screened
    screening = f"{about['screen_texts']:,}{' of their own' if 'screen_seeds' in about else ''} to screen"
    parts = [
        f"Scorer {about['scorer']}, model at step {about['step']:,}, {about['texts']:,} texts each, {screening}; "
        f"diversity of {about['diversity_texts']:,} texts of each; boundaries {about['boundaries']}; seconds on "
        f"{about['device']}.",
        "## The paper's sampler and the best at each budget",
        _markdown(frontier.finalists),
    ]
    if any(row.intervals for row in frontier.finalists):
        parts.append(INTERVALS)
    if frontier.real is not None:
        parts.append(f"Real text: {_figures(frontier.real)}.")
    parts.append(verdict(frontier.finalists))
    if own := [row for row in frontier.drawn if row.is_papers]:
        own = _at_papers_budget(own)
        parts += [f"## Decoding the paper's sampler at {own[0].budget} evaluations", _markdown(own)]
    if without := len(screened) - len(scored(screened)):
        parts.append(
            f"{without:,} of the {len(screened):,} combinations that were screened have no perplexity (–): none of "
            f"their texts has a token to score."
        )
    if frontier.externals:
        parts += ["## Other models", *(_external(one, scores) for one, scores in frontier.externals.items())]
    parts += [
        f"## Screened with {about['screen_texts']:,} texts",
        _markdown([replace(row, intervals=None) for row in screened]),
    ]
    return "\n\n".join(parts) + "\n"


def _external(one: External, scores: SetScores) -> str:
    cost = f"{one.nfe} evaluations, {one.seconds:g} s/text"
    return f"- {one.name}: {_figures(scores)}, {cost}, {scores.num_texts:,} texts"


def _figures(row: Variant | SetScores) -> str:
    ppl, entropy = (with_interval(vars(row), name, how) for name, how in (("gen_ppl", ".1f"), ("entropy", ".3f")))
    shown = "no perplexity" if row.gen_ppl is None else f"perplexity {ppl}"
    return f"{shown}, entropy {entropy}, diversity {row.diversity:.3f}"


def with_interval(row: Mapping[str, Any], name: str, how: str) -> str:
    """A figure of a row as text, followed by its interval if the row has one: 20.1 [19.5, 20.8]."""
    interval = (row.get("intervals") or {}).get(name)
    ends = f" [{', '.join(format(end, how) for end in interval)}]" if interval else ""
    return "–" if row[name] is None else format(row[name], how) + ends


_COLUMNS = {  # heading: field of `Variant`, its format
    "evaluations": ("budget", ""),
    "solver": ("solver", ""),
    "grid": ("grid", ""),
    "w": ("guidance", "g"),
    "decoder": ("decoder", ""),
    "final": ("final", ""),
    "temperature": ("temperature", "g"),
    "gen. ppl": ("gen_ppl", ".1f"),
    "entropy": ("entropy", ".3f"),
    "diversity": ("diversity", ".3f"),
    "s/text": ("seconds", ".4f"),
}


def _markdown(rows: Sequence[Variant]) -> str:
    cells = [[with_interval(vars(row), name, how) for name, how in _COLUMNS.values()] for row in rows]
    return markdown.table([*_COLUMNS], cells)
