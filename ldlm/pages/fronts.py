"""Charts of several runs on one frontier (Figure 1): quality against evaluations and against seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ldlm.evaluation.fronts import lines
from ldlm.pages.chart import GOLD, SERIES, Axis, Chart, Line, Points, number
from ldlm.pages.results import PPL_LOG, of_real, scored

Row = Mapping[str, Any]

SHAPES = ("disc", "square", "triangle", "diamond")  # of the ways of a run
RADIUS = 4.0

_DIVERSITY = Axis("distinct n-grams, Π over n = 2 to 4")
_ENTROPY = Axis("entropy, nats")
_EVALUATIONS = Axis("evaluations per text, log scale", log=True, short=lambda value: f"{value:,g}")
_SECONDS = Axis("seconds per text, log scale", log=True)


def charts(frontier: Row) -> list[Chart]:
    """Perplexity, entropy and diversity against cost, and perplexity against entropy; a colour for each run.

    Texts without a perplexity are left out of the perplexity charts.
    """
    ppl, entropy = ("gen_ppl", PPL_LOG), ("entropy", _ENTROPY)
    return [
        _against(frontier, "Perplexity and evaluations", ("evaluations", _EVALUATIONS), ppl),
        _against(frontier, "Perplexity and seconds", ("seconds", _SECONDS), ppl),
        _plane(frontier),
        _against(frontier, "Entropy and evaluations", ("evaluations", _EVALUATIONS), entropy),
        _against(frontier, "Entropy and seconds", ("seconds", _SECONDS), entropy),
        _against(frontier, "Diversity and evaluations", ("evaluations", _EVALUATIONS), ("diversity", _DIVERSITY)),
    ]


def _against(frontier: Row, title: str, cost: tuple[str, Axis], figure: tuple[str, Axis]) -> Chart:
    """A figure against a cost, with that of real text as a line."""
    marks = _marks(frontier, cost[0], figure[0])
    at = [x for mark in marks for x in mark.x]
    real = frontier["real"]
    if real is not None and real[figure[0]] is not None and at:
        real_line = Line("real text", GOLD, [min(at), max(at)], [real[figure[0]]] * 2, dashed=True)
        return Chart(title, cost[1], figure[1], [real_line, *marks])
    return Chart(title, cost[1], figure[1], marks)


def _plane(frontier: Row) -> Chart:
    """Perplexity against entropy, with real text as a star; labels are budgets."""
    marks = [*_marks(frontier, "entropy", "gen_ppl"), *of_real(frontier["real"])]
    note = "Numbers are evaluations at most. A low perplexity at an entropy below that of real text is no win."
    return Chart("Perplexity and entropy", _ENTROPY, PPL_LOG, marks, note)


def _marks(frontier: Row, x: str, y: str) -> list[Points]:
    """A line for each way of each run, and a point for each set of other models' texts."""
    found, runs = lines(frontier["points"]), list(frontier["runs"])
    marks = []
    for (run, way), points in found.items():
        ways = [other for name, other in found if name == run]
        how = {"color": _color(runs.index(run)), "shape": SHAPES[ways.index(way) % len(SHAPES)]}
        marks.append(_placed(run if len(ways) == 1 else f"{run}: {way}", points, x, y, joined=True, **how))
    for index, one in enumerate(frontier["externals"], len(runs)):
        marks.append(
            _placed(one["name"], [{**one, "evaluations": one["nfe"]}], x, y, color=_color(index), shape="cross")
        )
    return [mark for mark in marks if len(mark.x)]


def _color(index: int) -> str:
    return SERIES[index % len(SERIES)]


def _placed(name: str, rows: Sequence[Row], x: str, y: str, **how: Any) -> Points:
    rows = scored(rows) if y == "gen_ppl" else rows
    labels = [f"{row['budget']:,}" for row in rows if "budget" in row and x == "entropy"]
    places = [row[x] for row in rows], [row[y] for row in rows]
    return Points(
        name, how.pop("color"), *places, [_title(name, row) for row in rows], labels, [RADIUS] * len(rows), **how
    )


def _title(name: str, row: Row) -> str:
    ppl = "no perplexity" if row["gen_ppl"] is None else f"perplexity {number(row['gen_ppl'])}"
    return (
        f"{name}\n{number(row['evaluations'])} evaluations, {number(row['seconds'])} s per text\n"
        f"{ppl}, entropy {number(row['entropy'])}, diversity {number(row['diversity'])}"
    )
