"""The picture of a comparison: its figures against evaluations, a column for each family of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison.plan import AUTOREGRESSIVE, EQUAL_FLOPS, EQUAL_STEPS, LDLM, REGIMES, WAYS
from ldlm.pages import chart, drawing
from ldlm.pages.chart import Axis, Chart, Line

FAMILIES = {
    "masks": ("ldlm", "mdlm", "mdlm-p", "remdm"),
    "uniform states": ("ldlm", "duo", "duo-p", "psi", "psi-rescale"),
    "continuous states": ("ldlm", "ldlm-paper", "candi", "flm"),
}
COLOURS = (chart.BLUE, chart.ORANGE, chart.GREEN, chart.PURPLE, chart.RED)
WORDS = {EQUAL_STEPS: "equal steps", EQUAL_FLOPS: "equal FLOPs"}


def draw(path: Path, figures: Mapping[str, Any], axes: Mapping[str, Axis]) -> None:
    """Draw a row of charts for each axis; bands reach from the lowest to the highest seed."""
    charts = [
        _chart(figures, regime, family, key, axis)
        for regime in REGIMES
        for key, axis in axes.items()
        for family in FAMILIES
        if any(row["regime"] == regime for row in figures["rows"])
    ]
    drawing.png(path, charts, columns=len(FAMILIES))


def _chart(figures: Mapping[str, Any], regime: str, family: str, key: str, axis: Axis) -> Chart:
    names = {way.key: way for way in WAYS}
    lines = []
    for way, color in zip(FAMILIES[family], COLOURS, strict=False):
        own = regime if names[way].method == LDLM else EQUAL_STEPS
        rows = [row for row in figures["rows"] if (row["regime"], row["way"]) == (own, way)]
        lines.append(_line(names[way].name, color, rows, key))
    budgets = sorted({row["budget"] for row in figures["rows"]})
    ends, references = [budgets[0], budgets[-1]], figures["references"]
    if references[AUTOREGRESSIVE]:
        values = [row[key] for row in references[AUTOREGRESSIVE] if row[key] is not None]
        lines += [Line("GPT-2", chart.GREY, ends, [sum(values) / len(values)] * 2, dashed=True)] if values else []
    if references["real"][key] is not None:
        lines.append(Line("real text", chart.GOLD, ends, [references["real"][key]] * 2, dashed=True))
    x_axis = Axis("evaluations per text, log scale", log=True, short=lambda value: f"{value:,g}")
    return Chart(f"{family}, {WORDS[regime]}", x_axis, axis, [line for line in lines if line.x])


def _line(name: str, color: str, rows: Sequence[Mapping[str, Any]], key: str) -> Line:
    found: dict[int, list[float]] = {}
    for row in rows:
        if row[key] is not None:
            found.setdefault(row["budget"], []).append(row[key])
    x = sorted(found)
    band = [min(found[budget]) for budget in x], [max(found[budget]) for budget in x]
    return Line(name, color, x, [sum(found[b]) / len(found[b]) for b in x], dots=True, band=band)
