"""The picture of a comparison: its figures against evaluations and seconds, a column for each family of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison.plan import AUTOREGRESSIVE, EQUAL_FLOPS, EQUAL_STEPS, LDLM, WAYS
from benchmarks.comparison.sources import Rows
from benchmarks.comparison.tables import per_text
from ldlm.pages import chart, drawing
from ldlm.pages.chart import Axis, Chart, Line, Mark, Points

FAMILIES = {
    "masks": ("mdlm", "mdlm-p", "remdm"),
    "uniform states": ("duo", "duo-p", "psi", "psi-rescale"),
    "continuous states": ("ldlm-paper", "candi", "flm"),
}
COLOURS = (chart.ORANGE, chart.GREEN, chart.PURPLE, chart.RED)
NAMES = {way.key: way.name for way in WAYS}
# Only LDLM has separate trainings for equal FLOPs, so one chart shows both regimes.
OURS = ((EQUAL_STEPS, NAMES[LDLM], chart.BLUE), (EQUAL_FLOPS, f"{NAMES[LDLM]}, equal FLOPs", chart.TEAL))
EVALUATIONS = Axis("evaluations per text, at most, log scale", log=True, short=lambda value: f"{value:,g}")
SECONDS = Axis("CPU seconds per text, log scale", log=True)


def draw(path: Path, figures: Mapping[str, Any], axes: Mapping[str, Axis]) -> None:
    """Draw a row of charts for each axis, and the first figure against seconds; bands span all seeds."""
    drawing.png(path, charts(figures, axes), columns=len(FAMILIES))


def charts(figures: Mapping[str, Any], axes: Mapping[str, Axis]) -> list[Chart]:
    """The charts, row by row."""
    first = next(iter(axes))
    against = [_against_evaluations(figures, family, key, axis) for key, axis in axes.items() for family in FAMILIES]
    return against + [_against_seconds(figures, family, first, axes[first]) for family in FAMILIES]


def _against_evaluations(figures: Mapping[str, Any], family: str, key: str, axis: Axis) -> Chart:
    budgets = sorted({row["budget"] for row in figures["rows"]})
    ends, marks = [budgets[0], budgets[-1]], _lines(figures["rows"], family, "budget", key)
    if values := _values(figures["references"][AUTOREGRESSIVE], key):
        marks.append(Line("GPT-2", chart.GREY, ends, [sum(values) / len(values)] * 2, dashed=True))
    return Chart(family, EVALUATIONS, axis, [*marks, *_real(figures, ends, key)])


def _against_seconds(figures: Mapping[str, Any], family: str, key: str, axis: Axis) -> Chart:
    timed, of_ar = (_timed(rows, key) for rows in (figures["rows"], figures["references"][AUTOREGRESSIVE]))
    marks = _lines(timed, family, "cpu_seconds", key)
    if of_ar:
        marks.append(Points("GPT-2", chart.GREY, [_mean(of_ar, "cpu_seconds")], [_mean(of_ar, key)], ["GPT-2"]))
    seconds = [row["cpu_seconds"] for row in (*timed, *of_ar)]
    return Chart(family, SECONDS, axis, [*marks, *_real(figures, [min(seconds), max(seconds)] if seconds else [], key)])


def _timed(rows: Rows, key: str) -> Rows:
    """The rows with a figure and with CPU seconds, given per text."""
    timed = per_text(rows, "cpu_seconds")
    return [row for row in timed if row[key] is not None and SECONDS.shows(row["cpu_seconds"])]


def _real(figures: Mapping[str, Any], ends: Sequence[float], key: str) -> list[Mark]:
    real = figures["references"]["real"][key]
    return [] if real is None else [Line("real text", chart.GOLD, ends, [real] * len(ends), dashed=True)]


def _lines(rows: Rows, family: str, across: str, key: str) -> list[Mark]:
    """Lines for LDLM and for the ways of a family."""
    ways = [(EQUAL_STEPS, way, NAMES[way], color) for way, color in zip(FAMILIES[family], COLOURS, strict=False)]
    own = [(regime, LDLM, name, color) for regime, name, color in OURS]
    return [
        _line(name, color, found, across, key)
        for regime, way, name, color in (*own, *ways)
        if (found := [row for row in rows if (row["regime"], row["way"]) == (regime, way) and row[key] is not None])
    ]


def _line(name: str, color: str, rows: Rows, across: str, key: str) -> Line:
    """The mean over seeds at each budget, against the mean of `across`."""
    cells = [[row for row in rows if row["budget"] == budget] for budget in sorted({row["budget"] for row in rows})]
    found = sorted((_mean(cell, across), _mean(cell, key), *_ends(cell, key)) for cell in cells)
    x, y, low, high = (list(values) for values in zip(*found, strict=True))
    return Line(name, color, x, y, dots=True, band=(low, high))


def _values(rows: Rows, key: str) -> list[float]:
    return [row[key] for row in rows if row[key] is not None]


def _mean(rows: Rows, key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def _ends(rows: Rows, key: str) -> tuple[float, float]:
    return min(_values(rows, key)), max(_values(rows, key))
