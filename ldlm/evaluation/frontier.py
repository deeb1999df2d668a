"""Finalists, verdict and tables of a sweep (Tables 5, 8, 9, Figure 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldlm.config import PAPERS_SAMPLER
from ldlm.errors import InputError
from ldlm.pages import plots

PAPERS_BUDGET = 128  # whose entropy the finalists are held to, or the nearest budget that is swept


@dataclass(frozen=True)
class External:
    """Anybody's samples, with what they cost: `name=FILE,nfe,seconds` (seconds per text)."""

    name: str
    path: Path
    nfe: int
    seconds: float

    @classmethod
    def parse(cls, given: str) -> External:
        """From the command line; `InputError` when it reads otherwise."""
        name, equals, rest = given.partition("=")
        parts = rest.rsplit(",", 2)
        try:
            if not (name and equals and parts[0]):
                raise ValueError
            return cls(name, Path(parts[0]), int(parts[1]), float(parts[2]))
        except (ValueError, IndexError):
            raise InputError(
                f"--external takes NAME=FILE,NFE,SECONDS (evaluations and seconds per text), for example "
                f"mdlm=mdlm.jsonl,128,2.5, and not {given!r}"
            ) from None


_KEYS = ("solver", "grid", "guidance", "budget")


def _variant(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in (*_KEYS, "decoder", "final", "temperature"))


def finalists(rows: Sequence[dict[str, Any]], entropy_slack: float) -> list[dict[str, Any]]:
    """For each budget the best variant of the paper's sampler and the best of all, which is marked as `best`.

    Best is the lowest perplexity among those whose entropy is at most `entropy_slack` below the bar; where there is
    none, the highest entropy. The bar is the entropy of the paper's sampler (any variant of it, the best by
    perplexity) at `PAPERS_BUDGET`, or at the nearest budget; without it, that of all there. A row without a perplexity,
    whose texts have nothing to score, is neither the bar nor the best; where there are only such, none is marked.
    """
    bar = _bar(rows)

    def best(among: list[dict[str, Any]]) -> dict[str, Any]:
        among = plots.scored(among) or among
        diverse = [row for row in plots.scored(among) if row["entropy"] >= bar - entropy_slack]
        if diverse:
            return min(diverse, key=lambda row: row["gen_ppl"])
        return max(among, key=lambda row: row["entropy"])

    chosen: list[dict[str, Any]] = []
    for budget in sorted({row["budget"] for row in rows}):
        there = [row for row in rows if row["budget"] == budget]
        papers, winner = [row for row in there if _is_papers(row)], best(there)
        if papers and (pick := best(papers)) is not winner:
            chosen.append({**pick, "best": False})
        chosen.append({**winner, "best": winner["gen_ppl"] is not None})
    return chosen


def _bar(rows: Sequence[dict[str, Any]]) -> float:
    """The entropy that finalists are held to; 0 where no row has a perplexity."""
    there = plots.scored(rows)
    own = [row for row in there if _is_papers(row)] or there
    if not own:
        return 0.0
    nearest = min({row["budget"] for row in own}, key=lambda budget: abs(budget - PAPERS_BUDGET))
    return min((row for row in own if row["budget"] == nearest), key=lambda row: row["gen_ppl"])["entropy"]


def _is_papers(row: dict[str, Any]) -> bool:
    return all(row.get(key, value) == value for key, value in PAPERS_SAMPLER.items())


# ----------------------------------------------------------------------------------------------------------------------
# What was found, as text

_COLUMNS = {
    "evaluations": "budget", "solver": "solver", "grid": "grid", "w": "guidance", "decoder": "decoder",
    "final": "final", "temperature": "temperature", "gen. ppl": "gen_ppl", "entropy": "entropy",
    "diversity": "diversity", "s/text": "seconds",
}  # fmt: skip
_DIGITS = {
    "gen_ppl": ".1f",
    "entropy": ".3f",
    "diversity": ".3f",
    "seconds": ".4f",
    "guidance": "g",
    "temperature": "g",
}


def tables(summary: dict[str, Any]) -> str:
    """The finalists, the ways to decode the paper's sampler, others' samples, and all that was screened (Markdown)."""
    own = [row for row in summary["drawn"] if _is_papers(row)]
    parts = [
        f"Scorer {summary['scorer']}, model at step {summary['step']:,}, {summary['texts']:,} texts each, "
        f"{summary['screen_texts']:,} to screen; diversity of {summary['diversity_texts']:,} texts of each; boundaries "
        f"{summary['boundaries']}; seconds on {summary['device']}.",
        "## The paper's sampler and the best at each budget",
        _markdown(summary["finalists"]),
    ]
    if summary["real"] is not None:
        parts.append(f"Real text: {_figures(summary['real'])}.")
    parts.append(verdict(summary))
    if own:
        nearest = min({row["budget"] for row in own}, key=lambda budget: abs(budget - PAPERS_BUDGET))
        parts += [
            f"## Decoding the paper's sampler at {nearest} evaluations",
            _markdown([row for row in own if row["budget"] == nearest]),
        ]
    without = len(summary["screened"]) - len(plots.scored(summary["screened"]))
    if without:
        parts.append(
            f"{without:,} of the {len(summary['screened']):,} combinations that were screened have no perplexity (–): "
            f"none of their texts has a token to score."
        )
    if summary["externals"]:
        parts.append("## Other models")
        parts += [
            f"- {one['name']}: {_figures(one)}, {one['nfe']} evaluations, {one['seconds']:g} s/text, "
            f"{one['num_texts']:,} texts"
            for one in summary["externals"]
        ]
    parts += [f"## Screened with {summary['screen_texts']:,} texts", _markdown(summary["screened"])]
    return "\n\n".join(parts) + "\n"


def verdict(summary: dict[str, Any]) -> str:
    """The best finalist at a quarter of the paper's evaluations, or fewer, beside the paper's sampler."""
    own, winners = plots.frontier_lines(summary["finalists"]).values()
    if not plots.scored(summary["finalists"]):
        return "No combination has a perplexity: none of the texts has a token to score."
    if not own:
        swept = any(map(_is_papers, summary["finalists"]))
        return f"The paper's sampler {'has no perplexity' if swept else 'was not among those swept'}."
    base = min(own, key=lambda row: abs(row["budget"] - PAPERS_BUDGET))
    fewer = [row for row in winners if row["budget"] <= base["budget"] / 4]
    if not fewer:
        return f"Nothing was swept at a quarter of {base['budget']} evaluations."
    best = max(fewer, key=lambda row: row["budget"])
    return (
        f"At {best['budget']} evaluations {best['solver']} ({best['grid']}, w = {best['guidance']:g}): "
        f"{_figures(best)}; the paper's sampler at {base['budget']}: {_figures(base)}."
    )


def _figures(row: Mapping[str, Any]) -> str:
    shown = "no perplexity" if row["gen_ppl"] is None else f"perplexity {row['gen_ppl']:.1f}"
    return f"{shown}, entropy {row['entropy']:.3f}, diversity {row['diversity']:.3f}"


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    for row in rows:
        cells = ["–" if row[key] is None else format(row[key], _DIGITS.get(key, "")) for key in _COLUMNS.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
