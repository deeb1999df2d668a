"""Charts as inline SVG: sharp at every size, a few kilobytes each, and drawn without a script.

A chart is a <figure>. Its heading and its keys are HTML, so that they wrap on a phone; the drawing is an <svg> of
WIDTH × HEIGHT units that fills its column. What stands at a place is told by <title>, which browsers show to a pointer,
and what the whole chart shows by its aria-label. Colours are the page's: `STYLE` gives them, for light and for dark.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise

import numpy as np

WIDTH, HEIGHT = 400, 236
TOP, RIGHT, BOTTOM = 24, 14, 36  # what stands outside the axes; on the left as much as the numbers take
LETTER = 7.6  # width of a digit
MOST = 400  # points that a line is drawn with, a unit of width each
SMOOTH = 0.008  # of a line's points: standard deviation of the bell that smooths it
PLACES = 60  # at which a pointer is told the values
BLUE, ORANGE, GREEN, PURPLE, GREY, GOLD = "blue", "orange", "green", "purple", "grey", "gold"

Values = Sequence[float | None]  # what is missing is None


def number(value: float) -> str:
    """A figure with the digits that one wants to read."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def short(value: float) -> str:
    """The same for an axis: 20k for 20,000."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= (size if size > 1e3 else 1e4):
            return f"{value / size:g}{letter}"
    return f"{value:,g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}".replace("e-0", "e-")


def percent(value: float) -> str:
    """A share."""
    return f"{100 * value:.3g} %"


@dataclass(frozen=True)
class Axis:
    """What is measured, with its unit, and how far the axis goes where that is not for the values to say."""

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    number: Callable[[float], str] = number
    short: Callable[[float], str] = short


@dataclass(frozen=True)
class Line:
    """Values in the ascending order of x. A `noisy` line is drawn faintly, with its smoothed course on top."""

    name: str
    color: str
    x: Sequence[float]
    y: Values
    noisy: bool = False
    dashed: bool = False
    dots: bool = False
    faint: bool = False
    band: tuple[Values, Values] | None = None  # lower and upper ends of a region around it


@dataclass(frozen=True)
class Points:
    """Places, each with a title of its own; `labels` stand beside them, `radii` are in units of the drawing."""

    name: str
    color: str
    x: Sequence[float]
    y: Sequence[float]
    titles: Sequence[str]
    labels: Sequence[str] = ()
    radii: Sequence[float] = ()
    star: bool = False
    joined: bool = False

    def radius(self, number: int) -> float:
        """Of the place with that number."""
        return self.radii[number] if self.radii else 3.5


@dataclass(frozen=True)
class Cloud:
    """Many places that say something together only."""

    name: str
    color: str
    x: Sequence[float]
    y: Sequence[float]


Mark = Line | Points | Cloud


def chart(title: str, x: Axis, y: Axis, marks: Sequence[Mark], note: str = "") -> str:
    """The figure; empty where nothing can be drawn."""
    frame = Frame.around(x, y, marks)
    if frame is None:
        return ""
    drawing = [frame.grid(), *(_draw(mark, frame) for mark in marks), *_pointers(marks, frame)]
    points = [mark for mark in marks if isinstance(mark, Points)]
    drawing += [*(_titled(mark, frame) for mark in points), _labels(points, frame)]
    said = "; ".join(filter(None, (_said(mark, y) for mark in marks)))
    label = f"{title}. {y.label} against {x.label}. {said}."
    return (
        f'<figure class="chart"><h3>{escape(title)}</h3>{_keys(marks)}'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(drawing)}</svg>'
        f"<figcaption>{escape(note)}</figcaption></figure>"
    )


# ----------------------------------------------------------------------------------------------------------------------
# Axes


@dataclass(frozen=True)
class Scale:
    """Where the values of an axis stand: between `start` and `stop`, in units of the drawing."""

    axis: Axis
    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float | None) -> float | None:
        """None for a value that has no place."""
        if value is None or not math.isfinite(value) or (self.axis.log and value <= 0):
            return None
        low, high, value = (math.log(v) if self.axis.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values on the axis, at most so many."""
        found = _log_ticks(self.low, self.high, most) if self.axis.log else []
        return found if len(found) > 1 else _linear_ticks(self.low, self.high, most)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (step * power for step in (1, 2, 2.5, 5, 10, 20)):
        # A hair of slack, or an axis that ends at a round value would go without its last tick.
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [float(f"{n * step:.12g}") for n in range(first, last + 1)]
    raise AssertionError("20 times a power of ten below the range holds it")


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten, with as much between them as there is room for."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leading in ((1, 2, 5), (1, 3), (1,)):
        found = [digit * 10.0**power for power in powers for digit in leading]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def _extent(axis: Axis, values: Sequence[float], room: float) -> tuple[float, float] | None:
    """How far the axis goes: the values and `room` around them, as a share; None where there are none."""
    there = [v for v in values if v is not None and math.isfinite(v) and not (axis.log and v <= 0)]
    if not there:
        return None
    low, high = min(there), max(there)
    if axis.log:
        margin = (high / low) ** room if high > low else 1.5
        low, high = low / margin, high * margin
    else:
        margin = room * (high - low) if high > low else abs(high) / 2 or 1.0
        low, high = low - margin, high + margin
    low, high = (low if axis.low is None else axis.low), (high if axis.high is None else axis.high)
    return (low, high) if low < high else (low, low + 1.0)


@dataclass(frozen=True)
class Frame:
    """The two axes."""

    x: Scale
    y: Scale

    @classmethod
    def around(cls, x: Axis, y: Axis, marks: Sequence[Mark]) -> Frame | None:
        """Axes that hold the marks; None where there is nothing to hold."""
        across = _extent(x, [v for mark in marks for v in mark.x], 0.05 if _scattered(marks) else 0.0)
        up = _extent(y, [v for mark in marks for v in _heights(mark)], 0.06)
        if across is None or up is None:
            return None
        scale = Scale(y, *up, HEIGHT - BOTTOM, TOP)
        left = 10 + LETTER * max(len(y.short(tick)) for tick in scale.ticks(5))
        return cls(Scale(x, *across, left, WIDTH - RIGHT), scale)

    def place(self, x: float | None, y: float | None) -> tuple[float, float] | None:
        """Where a point is drawn; None for one that is not."""
        at, height = self.x(x), self.y(y)
        return None if at is None or height is None else (at, height)

    def grid(self) -> str:
        """Lines at the round values of y, and what the axes say."""
        x, y = self.x, self.y
        lines, numbers = [], []
        for value in y.ticks(5):
            height = y(value)
            assert height is not None
            lines.append(f"M{_c(x.start)} {_c(height)}H{_c(x.stop)}")
            numbers.append(_words(x.start - 6, height + 4, y.axis.short(value), "end"))
        for value in x.ticks(6):
            at = x(value)
            assert at is not None
            lines.append(f"M{_c(at)} {y.start}v4")
            # A number at the very end must not stick out.
            half = LETTER * len(x.axis.short(value)) / 2
            numbers.append(_words(min(at, WIDTH - half), y.start + 16, x.axis.short(value), "middle"))
        numbers.append(_words(0, 11, y.axis.label, "start", "label"))
        numbers.append(_words(WIDTH - RIGHT, HEIGHT - 4, x.axis.label, "end", "label"))
        return f'<path class="grid" d="{"".join(lines)}"/>{"".join(numbers)}'


def _scattered(marks: Sequence[Mark]) -> bool:
    return any(isinstance(mark, Points) for mark in marks)


def _heights(mark: Mark) -> list[float]:
    band = mark.band or ((), ()) if isinstance(mark, Line) else ((), ())
    return [v for values in (mark.y, *band) for v in values if v is not None]


# ----------------------------------------------------------------------------------------------------------------------
# Marks


def _draw(mark: Mark, frame: Frame) -> str:
    if isinstance(mark, Line):
        return _line(mark, frame)
    if isinstance(mark, Cloud):
        return f'<path class="cloud {mark.color}" d="{_path(mark.x, mark.y, frame, joined=False)}"/>'
    return f'<path class="line thin {mark.color}" d="{_path(mark.x, mark.y, frame)}"/>' if mark.joined else ""


def _line(line: Line, frame: Frame) -> str:
    parts = []
    if line.band is not None:
        parts.append(f'<path class="band {line.color}" d="{_region(line, frame)}"/>')
    if line.noisy:
        parts.append(f'<path class="line raw {line.color}" d="{_path(*thinned(line.x, line.y), frame)}"/>')
        y: Values = smoothed(line.y)
    else:
        y = line.y
    marks = "".join(f" {name}" for name in ("dashed", "faint") if getattr(line, name))
    parts.append(f'<path class="line{marks} {line.color}" d="{_path(*thinned(line.x, y), frame)}"/>')
    if line.dots and len(line.x) <= PLACES:
        parts.append(f'<path class="dots {line.color}" d="{_path(line.x, line.y, frame, joined=False)}"/>')
    return "".join(parts)


def smoothed(y: Values) -> list[float | None]:
    """The mean around each value, weighted by a bell that is as wide as SMOOTH of the line; it lags behind nothing.

    Before the first value that is there, and after the last, nothing is made up.
    """
    values = np.array([math.nan if v is None else v for v in y], dtype=float)
    there = np.isfinite(values)
    reach = max(1.0, SMOOTH * len(values))
    bell = np.exp(-0.5 * (np.arange(-math.ceil(3 * reach), math.ceil(3 * reach) + 1) / reach) ** 2)
    half = len(bell) // 2
    total, weight = (
        np.convolve(part, bell)[half : half + len(values)]
        for part in (np.where(there, values, 0.0), there.astype(float))
    )
    return [float(t / w) if known else None for t, w, known in zip(total, weight, there, strict=True)]


def thinned(x: Sequence[float], y: Values) -> tuple[Sequence[float], Values]:
    """A line of at most MOST points that looks the same: of each piece of it, the least and the most."""
    if len(x) <= MOST:
        return x, y
    values = np.array([math.nan if v is None else v for v in y], dtype=float)
    chosen: list[int] = []
    for piece in np.array_split(np.arange(len(values)), MOST // 2):
        there = piece[np.isfinite(values[piece])]
        ends = {int(there[values[there].argmin()]), int(there[values[there].argmax()])} if len(there) else {piece[0]}
        chosen += sorted(ends)
    return [x[i] for i in chosen], [y[i] for i in chosen]


def _path(x: Sequence[float], y: Values, frame: Frame, *, joined: bool = True) -> str:
    """Through all points, with a gap where there is none; or, not `joined`, a dot at each."""
    places = [frame.place(*point) for point in zip(x, y, strict=True)]
    if not joined:
        return "".join(f"M{_c(place[0])} {_c(place[1])}h0" for place in places if place)
    pieces = [list(piece) for there, piece in groupby(places, key=lambda place: place is not None) if there]
    return "".join(_polyline(piece) for piece in pieces)


def _polyline(places: Sequence[tuple[float, float] | None]) -> str:
    points = [f"{_c(place[0])} {_c(place[1])}" for place in places if place]
    return f"M{points[0]}" + ("L" + " ".join(points[1:]) if len(points) > 1 else "h0")


def _region(line: Line, frame: Frame) -> str:
    """Between the two ends of the band."""
    assert line.band is not None
    step = math.ceil(len(line.x) / MOST)
    low, high = (
        [place for point in zip(line.x[::step], ends[::step], strict=True) if (place := frame.place(*point))]
        for ends in line.band
    )
    return _polyline([*low, *reversed(high)]) + "z" if low and high else ""


def _titled(points: Points, frame: Frame) -> str:
    """The places themselves, which lie above all else."""
    parts = []
    for number, (x, y, title) in enumerate(zip(points.x, points.y, points.titles, strict=True)):
        place = frame.place(x, y)
        if place is None:
            continue
        radius = points.radius(number)
        shape = (
            f'<path d="{_star(*place, radius)}"/>'
            if points.star
            else f'<circle cx="{_c(place[0])}" cy="{_c(place[1])}" r="{_c(radius)}"/>'
        )
        parts.append(f"<g><title>{escape(title)}</title>{shape}</g>")
    return f'<g class="points {points.color}">{"".join(parts)}</g>'


def _labels(all_points: Sequence[Points], frame: Frame) -> str:
    """What stands beside the points, where there is room; the title of a point says it in any case."""
    taken: list[Box] = []
    wanted: list[tuple[float, float, float, str]] = []
    for points in all_points:
        for number, point in enumerate(zip(points.x, points.y, strict=True)):
            place = frame.place(*point)
            if place is None:
                continue
            x, y, r = *place, points.radius(number)
            taken.append((x - r, y - r, x + r, y + r))
            if points.labels:
                wanted.append((x, y, r, points.labels[number]))
    drawn = []
    for x, y, r, label in wanted:
        width, height = LETTER * len(label), 11
        for left, bottom in ((x + r, y - r + 2), (x + r, y + r + height - 2), (x - r - width, y - r + 2),
                             (x - r - width, y + r + height - 2), (x - width / 2, y - r - 1)):  # fmt: skip
            box = (left, bottom - height, left + width, bottom)
            inside = frame.x.start <= box[0] and box[2] <= WIDTH and box[1] >= TOP - height
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                drawn.append(_words(left + width / 2, bottom - 1, label, "middle"))
                break
    return "".join(drawn)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _star(x: float, y: float, radius: float) -> str:
    corners = [
        (x + r * math.sin(math.pi * i / 5), y - r * math.cos(math.pi * i / 5))
        for i, r in enumerate([radius, 0.45 * radius] * 5)
    ]
    return _polyline(corners) + "z"


# ----------------------------------------------------------------------------------------------------------------------
# What is told in words


def _pointers(marks: Sequence[Mark], frame: Frame) -> list[str]:
    """Strips from top to bottom, each with the values that lie in it."""
    lines = [mark for mark in marks if isinstance(mark, Line) and mark.name and len(mark.x)]
    if not lines:
        return []
    longest = max(lines, key=lambda line: len(line.x)).x
    chosen = [longest[round(i)] for i in np.linspace(0, len(longest) - 1, min(PLACES, len(longest)))]
    at = [place for x in chosen if (place := frame.x(x)) is not None]
    edges = [frame.x.start, *((a + b) / 2 for a, b in pairwise(at)), frame.x.stop]
    strips = []
    for x, place, left, right in zip(chosen, at, edges, edges[1:], strict=False):
        said = [f"{frame.x.axis.label} {frame.x.axis.number(x)}"]
        for line in lines:
            nearest = _nearest(line.x, x)
            value, there = line.y[nearest], frame.x(line.x[nearest])
            if value is not None and there is not None and left <= there <= right:
                said.append(f"{line.name}: {frame.y.axis.number(value)}")
        top, height = TOP, HEIGHT - BOTTOM - TOP
        strips.append(
            f'<g class="at"><title>{escape(chr(10).join(said))}</title><rect x="{_c(left)}" y="{top}" '
            f'width="{_c(right - left)}" height="{height}"/><path d="M{_c(place)} {top}v{height}"/></g>'
        )
    return strips


def _nearest(ascending: Sequence[float], x: float) -> int:
    """Which of the values is nearest to x."""
    after = min(bisect_left(ascending, x), len(ascending) - 1)
    return after - 1 if after and x - ascending[after - 1] < ascending[after] - x else after


def _said(mark: Mark, y: Axis) -> str:
    """A mark in a few words, for those who do not see it."""
    if isinstance(mark, Cloud):
        return f"{mark.name}: {len(mark.x):,} points"
    there = [value for value in mark.y if value is not None and math.isfinite(value)]
    if not there or not mark.name:
        return ""
    if isinstance(mark, Points) and not mark.joined:
        return f"{mark.name}: {', '.join(map(y.number, there))}"
    return f"{mark.name}: from {y.number(there[0])} to {y.number(there[-1])}"


def _keys(marks: Sequence[Mark]) -> str:
    """Which colour is what; nothing where there is nothing to tell apart."""
    named = [mark for mark in marks if mark.name]
    keys = [f'<span><i class="{_key(mark)}"></i>{escape(mark.name)}</span>' for mark in named if len(named) > 1]
    return f'<p class="keys">{"".join(keys)}</p>'


def _key(mark: Mark) -> str:
    shape = {Line: "stroke", Points: "disc", Cloud: "disc"}[type(mark)]
    if isinstance(mark, Line) and mark.dashed:
        shape = "dash"
    elif isinstance(mark, Points) and mark.star:
        shape = "star"
    return f"{shape} {mark.color}"


def _words(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    placed = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{_c(x)}" y="{_c(y)}"{placed}{named}>{escape(words)}</text>'


def _c(value: float) -> str:
    """A coordinate to a tenth of a unit."""
    return f"{value:.1f}".removesuffix(".0")


STYLE = """
:root { --blue: #1c7ed6; --orange: #d9650a; --green: #2b8a3e; --purple: #9c36b5; --grey: #8a8f98; --gold: #e0a800; }
@media (prefers-color-scheme: dark) {
:root { --blue: #6cc5ff; --orange: #ffa657; --green: #69db7c; --purple: #da8cff; --grey: #7d7f8f; --gold: #ffd43b; }
}
.blue { --c: var(--blue); } .orange { --c: var(--orange); } .green { --c: var(--green); }
.purple { --c: var(--purple); } .grey { --c: var(--grey); } .gold { --c: var(--gold); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 0 1.2rem; }
.chart { margin: 0 0 1.2rem; padding: 1rem 1.1rem .8rem; min-width: 0; display: grid; gap: 0;
  grid-row: span 4; grid-template-rows: subgrid; /* heads and drawings of a row stand at one height */
  background: var(--card); border: 1px solid var(--line); border-radius: 14px; break-inside: avoid; }
.chart h3 { margin: 0 0 .15rem; font-size: 1rem; }
.chart svg { display: block; width: 100%; height: auto; }
.chart text { font-size: 11.5px; fill: var(--soft); font-variant-numeric: tabular-nums; }
@media (max-width: 30rem) { .chart text { font-size: 13px; } }
.keys { display: flex; flex-wrap: wrap; align-content: flex-start; gap: .1rem 1rem; margin: 0 0 .5rem;
  font-size: .82rem; color: var(--soft); }
.keys span { display: inline-flex; align-items: center; gap: .4rem; }
.keys i { flex: none; width: 1.1rem; border-top: 3px solid var(--c); border-radius: 2px; }
.keys .dash { border-top: 2px dashed var(--c); border-radius: 0; }
.keys .disc { width: .6rem; height: .6rem; border: 0; border-radius: 50%; background: var(--c); }
.keys .star { width: auto; border: 0; font-style: normal; line-height: 1; }
.keys .star::before { content: "★"; color: var(--c); }
.grid { fill: none; stroke: var(--line); }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.thin { stroke-width: 1.25; opacity: .7; }
.raw { stroke-width: 1; opacity: .32; }
.faint { stroke-width: 1.25; opacity: .35; }
.dashed { stroke-width: 1.5; stroke-dasharray: 4 5; }
.band { fill: var(--c); opacity: .14; }
.dots, .cloud { fill: none; stroke: var(--c); stroke-linecap: round; stroke-width: 6; }
.cloud { stroke-width: 4; opacity: .3; }
.points circle, .points path { fill: var(--c); stroke: var(--card); stroke-width: 1; }
.at rect { fill: transparent; }
.at path { stroke: var(--soft); opacity: 0; }
.at:hover path { opacity: .6; }
"""
