"""Charts as data: axes, marks, and each chart's content in words and as a table. `drawing` draws them.

Colours are names, to which the drawing and the page's style give values. A missing value is None and leaves a gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

MOST = 400  # points with which a line is drawn and listed
SMOOTH = 0.008  # standard deviation of the smoothing kernel, as a share of a line's points
BLUE, ORANGE, GREEN, PURPLE, GREY, GOLD, RED, TEAL = (
    "blue", "orange", "green", "purple", "grey", "gold", "red", "teal",
)  # fmt: skip
STAR = 9.0  # radius of a star, in points
SERIES = (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, GREY)

Values = Sequence[float | None]


def number(value: float) -> str:
    """A number with four significant digits, or rounded to an integer if that is longer."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def short(value: float) -> str:
    """A number for an axis: 20k for 20,000."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= (size if size > 1e3 else 1e4):
            return f"{value / size:g}{letter}"
    return f"{value:,g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}".replace("e-0", "e-")


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.3g} %"


@dataclass(frozen=True)
class Axis:
    """The quantity along an axis with its unit, and the ends of the axis that do not depend on the values.

    With `names` it has a place for each name, at 0, 1, 2 and so on.
    """

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    number: Callable[[float], str] = number
    short: Callable[[float], str] = short
    names: Sequence[str] = ()

    def shows(self, value: float | None) -> bool:
        """Whether the value has a place on the axis."""
        return value is not None and math.isfinite(value) and (value > 0 or not self.log)


@dataclass(frozen=True)
class Line:
    """Values in ascending order of x.

    A `noisy` line is drawn faintly, with its smoothed course on top. A `faint` one is background, without an entry in
    the legend. With `steps` a value holds until the next x. `band` has the lower and upper ends of an interval around
    each value.
    """

    name: str
    color: str
    x: Sequence[float]
    y: Values
    noisy: bool = False
    dashed: bool = False
    dots: bool = False
    faint: bool = False
    steps: bool = False
    joined: bool = True
    band: tuple[Values, Values] | None = None


@dataclass(frozen=True)
class Points:
    """Points, each with its own title; `labels` stand beside them, `radii` are in points (1/72 inch).

    `shape` is a disc, a square, a triangle, a diamond, a star or a cross.
    """

    name: str
    color: str
    x: Sequence[float]
    y: Sequence[float]
    titles: Sequence[str]
    labels: Sequence[str] = ()
    radii: Sequence[float] = ()
    shape: str = "disc"
    joined: bool = False

    def radius(self, index: int) -> float:
        """Radius of the point with that index."""
        return self.radii[index] if self.radii else 3.5


def star(name: str, entropy: float, perplexity: float) -> Points:
    """Real text in a plane of perplexity against entropy."""
    title = f"{name}: perplexity {number(perplexity)}, entropy {number(entropy)}"
    return Points(name, GOLD, [entropy], [perplexity], [title], radii=[STAR], shape="star")


@dataclass(frozen=True)
class Cloud:
    """Many points that are not told apart."""

    name: str
    color: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Bars:
    """A horizontal bar for each name of the y axis, with the value as text at its end; a missing one reads `none`."""

    x: Values
    y: Sequence[float]
    colors: Sequence[str]
    name: str = ""

    def shown(self) -> list[str]:
        """The values as text."""
        return ["none" if v is None else f"{v:,.{2 if v < 100 else 0}f}" for v in self.x]


@dataclass(frozen=True)
class Rule:
    """A place on the x axis at which something changes: a dashed line from bottom to top."""

    name: str
    x: float


Mark = Line | Points | Cloud | Bars
Table = tuple[list[str], list[list[str]]]  # head, rows


@dataclass(frozen=True)
class Chart:
    """A chart: two axes and the marks drawn on them, in this order."""

    title: str
    x: Axis
    y: Axis
    marks: Sequence[Mark]
    note: str = ""
    rules: Sequence[Rule] = ()

    @property
    def has_values(self) -> bool:
        """Whether any mark has a value that can be drawn."""
        return any(
            self.x.shows(x) and self.y.shows(y) for mark in self.marks for x, y in zip(mark.x, mark.y, strict=True)
        )

    @property
    def keys(self) -> list[tuple[str, str, str]]:
        """Shape, colour and name of each entry of the legend; none if there is nothing to tell apart."""
        named = [mark for mark in self.named if not isinstance(mark, Bars)]
        keys = [(_shape(mark), mark.color, mark.name) for mark in named]
        keys += [("dash", GREY, rule.name) for rule in self.rules]
        return keys if len(keys) > 1 else []

    @property
    def named(self) -> list[Mark]:
        """Marks that are not in the background."""
        return [mark for mark in self.marks if mark.name and not (isinstance(mark, Line) and mark.faint)]

    def words(self) -> str:
        """A description for those who cannot see the chart."""
        marks = [
            *(_said(mark, self.y) for mark in self.named),
            *(f"{r.name} at {self.x.number(r.x)}" for r in self.rules),
        ]
        said = "; ".join(filter(None, marks))
        return f"{self.title}. {self.y.label} against {self.x.label}. {said}."

    def table(self) -> Table:
        """The numbers: a row for each x if all marks are lines, else a row for each point of each mark."""
        lines = [mark for mark in self.marks if isinstance(mark, Line)]
        return _by_x(self.x, lines) if len(lines) == len(self.marks) else _by_place(self)


def _shape(mark: Line | Points | Cloud) -> str:
    if isinstance(mark, Line):
        return "dash" if mark.dashed else "stroke"
    return mark.shape if isinstance(mark, Points) else "disc"


def _said(mark: Mark, y: Axis) -> str:
    if isinstance(mark, Cloud):
        return f"{mark.name}: {len(mark.x):,} points"
    there = [value for value in mark.y if value is not None and math.isfinite(value)]
    if not there:
        return ""
    if isinstance(mark, Points) and not mark.joined:
        return f"{mark.name}: {', '.join(map(y.number, there))}"
    return f"{mark.name}: from {y.number(there[0])} to {y.number(there[-1])}"


# ----------------------------------------------------------------------------------------------------------------------
# Numbers of lines


def smoothed(y: Values) -> list[float | None]:
    """The mean around each value, weighted by a Gaussian of standard deviation SMOOTH; symmetric, so without lag.

    Nothing is made up before the first value, after the last, or in gaps.
    """
    values = _floats(y)
    there = np.isfinite(values)
    width = max(1.0, SMOOTH * len(values))
    half = math.ceil(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / width) ** 2)
    total, weight = (
        np.convolve(part, kernel)[half : half + len(values)]
        for part in (np.where(there, values, 0.0), there.astype(float))
    )
    return [float(t / w) if known else None for t, w, known in zip(total, weight, there, strict=True)]


def thinned(x: Sequence[float], *ys: Values) -> tuple[list[float], list[list[float | None]]]:
    """At most MOST points that look the same: in each piece of a line, the least and greatest of each of `ys`."""
    if len(x) <= MOST:
        return list(x), [list(y) for y in ys]
    values = [_floats(y) for y in ys]
    chosen: list[int] = []
    for piece in np.array_split(np.arange(len(x)), MOST // (2 * len(ys))):
        chosen += sorted(set().union(*(_ends(each, piece) for each in values)))
    return [x[i] for i in chosen], [[y[i] for i in chosen] for y in ys]


def _ends(values: np.ndarray, piece: np.ndarray) -> set[int]:
    """Indices of the least and the greatest value in a piece; of its first if there is none, which keeps a gap."""
    there = piece[np.isfinite(values[piece])]
    return {int(there[values[there].argmin()]), int(there[values[there].argmax()])} if len(there) else {int(piece[0])}


def _floats(y: Values) -> np.ndarray:
    return np.array([math.nan if v is None else v for v in y], dtype=float)


def _by_x(axis: Axis, lines: Sequence[Line]) -> Table:
    columns: dict[str, dict[float, float | None]] = {}
    for line in lines:
        x, values = thinned(line.x, line.y, *(line.band or ()))
        for more, y in zip(("", ", lower end", ", upper end"), values, strict=False):
            columns[line.name + more] = dict(zip(x, y, strict=True))
    places = sorted({x for values in columns.values() for x in values})
    rows = [[_digits(x), *(_digits(values.get(x)) for values in columns.values())] for x in places]
    return [axis.label, *columns], rows


def _by_place(chart: Chart) -> Table:
    rows = []
    for mark in chart.marks:
        names: Iterable[str] = [mark.name] * len(mark.x)
        if isinstance(mark, Points) and mark.labels:
            names = (f"{mark.name}, {label}" for label in mark.labels)
        elif isinstance(mark, Bars):
            names = chart.y.names
        rows += [[name, _digits(x), _digits(y)] for name, x, y in zip(names, mark.x, mark.y, strict=True)]
    return ["", chart.x.label, chart.y.label], rows


def _digits(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"
