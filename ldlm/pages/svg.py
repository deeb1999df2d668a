"""Charts as SVG within a page: the drawing in the page's colours and fonts, and what a pointer shows on it."""

from __future__ import annotations

import io
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ldlm.pages import drawing
from ldlm.pages.chart import Chart, Line, Points
from ldlm.pages.drawing import BOTTOM, COLOURS, HEIGHT, PLACES, TOP, WIDTH, places

if TYPE_CHECKING:
    from matplotlib.axes import Axes


AREA = {"width": WIDTH, "height": HEIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}  # measured from the top


@dataclass(frozen=True)
class Strip:
    """A vertical strip of a drawing, and the values in it, which stand at x = `at`."""

    left: float
    width: float
    at: float
    words: str


@dataclass(frozen=True)
class Spot:
    """A place in a drawing, with what a pointer shows there."""

    x: float
    y: float
    radius: float
    words: str


@dataclass(frozen=True)
class Drawing:
    """A chart as SVG markup of WIDTH × HEIGHT units, without the <svg> element, and what a pointer shows."""

    svg: str
    strips: list[Strip]
    spots: list[Spot]


def draw(chart: Chart) -> Drawing:
    """Draw a chart for a page. Its colours are the page's variables: `var(--blue)`."""
    with drawing.house_look(chart.title):
        figure = drawing.canvas(WIDTH, HEIGHT)
        ax = drawing.draw(chart, figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        return Drawing(_clean(stream.getvalue()), _strips(chart, ax), _spots(chart, ax))


def _spots(chart: Chart, ax: Axes) -> list[Spot]:
    """The points with their titles."""
    return [
        Spot(round(x, 1), round(HEIGHT - y, 1), round(mark.radius(index), 1), mark.titles[index])
        for mark in chart.marks
        if isinstance(mark, Points)
        for index, (x, y) in enumerate(places(ax, mark.x, mark.y))
    ]


def _strips(chart: Chart, ax: Axes) -> list[Strip]:
    """Strips from left to right, each with the values of the lines in it."""
    lines = [mark for mark in chart.named if isinstance(mark, Line) and len(mark.x)]
    if not lines:
        return []
    longest = max(lines, key=lambda line: len(line.x)).x
    chosen = [longest[round(i)] for i in np.linspace(0, len(longest) - 1, min(PLACES, len(longest)))]
    at = [x for x, _ in places(ax, chosen, [1.0] * len(chosen))]
    (start, _), (stop, _) = places(ax, ax.get_xlim(), ax.get_ylim())
    edges = [start, *((a + b) / 2 for a, b in pairwise(at)), stop]
    return [
        Strip(round(left, 1), round(right - left, 1), round(place, 1), _told(chart, lines, x, ax, left, right))
        for x, place, left, right in zip(chosen, at, edges, edges[1:], strict=False)
    ]


def _told(chart: Chart, lines: Sequence[Line], x: float, ax: Axes, left: float, right: float) -> str:
    """The values of lines nearest to x, if they lie between two places."""
    said = [f"{chart.x.label} {chart.x.number(x)}"]
    for line in lines:
        nearest = _nearest(line.x, x)
        value = line.y[nearest]
        ((at, _),) = places(ax, [line.x[nearest]], [1.0])
        if value is not None and chart.y.shows(value) and left - 1e-6 <= at <= right + 1e-6:
            said.append(f"{line.name}: {chart.y.number(value)}")
    return "\n".join(said)


def _nearest(ascending: Sequence[float], x: float) -> int:
    """Index of the value nearest to x."""
    after = min(bisect_left(ascending, x), len(ascending) - 1)
    return after - 1 if after and x - ascending[after - 1] < ascending[after] - x else after


def _clean(drawn: str) -> str:
    """The markup within matplotlib's SVG, in the colours and fonts of the page, with coordinates to a tenth of a point.

    Its style, which would apply to the whole page, and names that several drawings would share are left out.
    """
    inner = drawn.partition("</style>")[2].partition("</defs>")[2].rpartition("</svg>")[0]
    return re.sub(r"<[^>]+>", _clean_tag, re.sub(r"\s*\n\s*", " ", inner)).replace("> <", "><").strip()


def _clean_tag(found: re.Match[str]) -> str:
    tag = re.sub(r"<g id=\"[^\"]*\"", "<g", found[0]).replace("xlink:href", "href")
    tag = re.sub(r" transform=\"rotate\(-0 [^\"]*\"", "", tag)
    tag = re.sub(r"font[\w-]*: [^;\"]*(; )?", "", tag)
    tag = re.sub(r"\d+\.\d{3,}", lambda digits: f"{float(digits[0]):.1f}".removesuffix(".0"), tag)
    for name, value in COLOURS.items():
        tag = tag.replace(value, f"var(--{name})")
    return tag
