"""Charts drawn by matplotlib, without a display: as PNG here, as SVG for a page in `svg`.

A chart looks the same everywhere: `MPLBACKEND`, which notebooks set, and the user's matplotlibrc do not affect it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import fill, wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from ldlm import files
from ldlm.pages.chart import GREY, Axis, Bars, Chart, Cloud, Line, Mark, Points, smoothed, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

# In points. The left margin is as wide as the numbers need.
WIDTH, HEIGHT = 400, 236
TOP, RIGHT, BOTTOM = 24, 20, 36
HEAD, FOOT, GAP = 26, 34, 24  # of a picture: for the title, for the note, and between charts
LETTER = 7.6  # width of a digit
TEXT = 11.5  # size of letters
DPI = 110  # of a picture
PLACES = 60  # most x positions at which a pointer shows the values

COLOURS = {
    "blue": "#1c7ed6", "orange": "#d9650a", "green": "#2b8a3e", "purple": "#9c36b5", "grey": "#8a8f98",
    "gold": "#e0a800", "red": "#c92a2a", "teal": "#0c8599", "soft": "#63636f", "line": "#dedce3", "card": "#ffffff",
    "ink": "#16161d",
}  # fmt: skip
MARKERS = {"disc": "o", "star": "*", "cross": "x", "square": "s", "triangle": "^", "diamond": "D"}
DASHES = (0, (3, 3))
LEGEND: dict[str, Any] = {"fontsize": 9.5, "frameon": False, "labelcolor": COLOURS["soft"]}
WITHIN = 4  # names for which a chart has room; a longer legend goes below it, in columns
LEGEND_COLUMNS, NOTE_LETTERS = 2, 72  # per line below a chart
LEGEND_LINE, NOTE_LINE = 15, 12  # in points


def png(path: Path, charts: Sequence[Chart], columns: int = 4, *, shared_legend: bool = False) -> None:
    """Draw charts with their titles and legends into one file, which is written whole or not at all.

    Charts without values are left out, unless there are no others; without charts there is no file. A legend stands in
    its chart, or below it if it is long. A shared legend stands beside all charts, which must have the same marks.
    """
    if not charts:
        return
    charts = [chart for chart in charts if chart.has_values] or charts
    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    with house_look(), files.replacing(path) as temporary:
        across, up = WIDTH + GAP, HEIGHT + HEAD + FOOT + (0 if shared_legend else max(map(_legend_height, charts)))
        figure = canvas(columns * across - GAP, rows * up)
        for index, chart in enumerate(charts):
            row, column = divmod(index, columns)
            left, bottom = column * across, (rows - row) * up - HEIGHT - HEAD
            ax = draw(chart, figure, left, bottom)
            _write(figure, left, bottom + HEIGHT + 8, chart.title, size=13, color="ink", weight="bold")
            _write(figure, left, bottom - 4, fill(chart.note, NOTE_LETTERS), size=9.5, va="top")
            if chart.keys and not shared_legend:
                _legend(figure, ax, chart, left, bottom)
        if shared_legend:
            _shared_legend(figure)
        figure.set(frameon=True, facecolor=COLOURS["card"])
        figure.savefig(temporary, format="png", dpi=DPI, bbox_inches=_extent(figure).padded(0.2))


def _extent(figure: Figure) -> Bbox:
    """The box, in inches, of everything that a figure shows in a picture.

    `bbox_inches="tight"` finds the same one, but draws the figure once more to do so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.dpi = DPI  # letters are laid out on whole pixels
    box: Bbox = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    return box


def _legend_height(chart: Chart) -> int:
    """Height in points of a chart's legend below it; 0 if the legend is inside."""
    return 0 if len(chart.keys) <= WITHIN else LEGEND_LINE * -(-len(chart.keys) // LEGEND_COLUMNS)


def _legend(figure: Figure, ax: Axes, chart: Chart, left: float, bottom: float) -> None:
    """Write the names of a chart's marks into it or, if there are many, below it and its note."""
    if not _legend_height(chart):
        ax.legend(**LEGEND)
        return
    width, height = 72 * figure.get_size_inches()
    under = bottom - 4 - NOTE_LINE * len(wrap(chart.note, NOTE_LETTERS))
    ax.legend(
        loc="upper left", bbox_to_anchor=(left / width, under / height), bbox_transform=figure.transFigure,
        ncols=LEGEND_COLUMNS, borderpad=0, borderaxespad=0, **LEGEND,
    )  # fmt: skip


def _shared_legend(figure: Figure) -> None:
    """Write the names of all marks of a figure to the right of its charts, each once."""
    by_name: dict[str, Any] = {}
    for ax in figure.axes:
        handles, names = ax.get_legend_handles_labels()
        by_name.update(zip(names, handles, strict=True))
    if by_name:
        figure.legend(by_name.values(), by_name, loc="upper left", bbox_to_anchor=(1.0, 1.0), **LEGEND)


# ----------------------------------------------------------------------------------------------------------------------
# matplotlib and its settings


def library() -> Any:
    """matplotlib, imported without the user's choice of backend, which may not be installed here.

    Nothing is drawn through pyplot, so no backend is needed; other users of matplotlib still get the chosen one.
    """
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    chosen = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if chosen is not None:
            os.environ["MPLBACKEND"] = chosen
    if chosen:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = chosen
    return matplotlib


@contextmanager
def house_look(salt: str = "") -> Iterator[None]:
    """Use our settings instead of the user's within the block. `salt` makes the names in an SVG unique to it."""
    matplotlib = library()
    own = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    ours = {"svg.fonttype": "none", "svg.hashsalt": salt, "text.parse_math": False, "font.size": TEXT}
    with matplotlib.rc_context({**own, **ours}):
        yield


def canvas(width: float, height: float) -> Figure:
    """An empty figure; its size is in points."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72, frameon=False)


def _write(figure: Figure, x: float, y: float, words: str, *, color: str = "soft", **how: Any) -> None:
    """Write words at a place in points, which is on their baseline."""
    width, height = 72 * figure.get_size_inches()
    figure.text(x / width, y / height, words, color=COLOURS[color], **{"va": "baseline", **how})


# ----------------------------------------------------------------------------------------------------------------------
# Axes


def draw(chart: Chart, figure: Figure, left: float = 0, bottom: float = 0) -> Axes:
    """Draw a chart whose lower left corner is at this place in points."""
    ax = figure.add_axes((0, 0, 1, 1), frameon=False)
    for axis, set_scale in ((chart.x, ax.set_xscale), (chart.y, ax.set_yscale)):
        if axis.log:
            set_scale("log", nonpositive="mask")
    for mark in chart.marks:
        _mark(ax, mark)
    for rule in chart.rules:
        ax.axvline(rule.x, color=COLOURS[GREY], linestyle=DASHES, linewidth=1.5, label=rule.name)
    _scale(ax, chart)
    widest = max((len(label.get_text()) for label in ax.get_yticklabels()), default=0)
    inset = 10 + LETTER * widest
    width, height = 72 * figure.get_size_inches()
    ax.set_position((
        (left + inset) / width, (bottom + BOTTOM) / height,
        (WIDTH - RIGHT - inset) / width, (HEIGHT - TOP - BOTTOM) / height,
    ))  # fmt: skip
    _write(figure, left, bottom + HEIGHT - 11, chart.y.label)
    _write(figure, left + WIDTH - RIGHT, bottom + 4, chart.x.label, ha="right")
    _label(figure, ax, chart)
    return ax


def _scale(ax: Axes, chart: Chart) -> None:
    """Set the ends of the axes, their ticks, and the grid behind the chart."""
    scattered = not all(isinstance(mark, Line) and mark.joined for mark in chart.marks)
    ax.margins(*(0.05, 0.1) if scattered else (0, 0.06))
    ax.set_xlim(chart.x.low, chart.x.high)
    ax.set_ylim(chart.y.low, chart.y.high)
    for axis, drawn, ends, most in ((chart.x, ax.xaxis, ax.get_xlim(), 6), (chart.y, ax.yaxis, ax.get_ylim(), 5)):
        at = ticks(axis, *ends, most)
        drawn.set_ticks(at, list(axis.names) or [axis.short(value) for value in at])
        drawn.set_ticks([], minor=True)
    ax.tick_params(labelsize=TEXT, labelcolor=COLOURS["soft"], color=COLOURS["line"], length=4, pad=3)
    ax.tick_params(axis="y", length=0, pad=6)
    ax.set_axisbelow(True)
    if chart.y.names:
        ax.invert_yaxis()
    else:
        ax.grid(axis="y", color=COLOURS["line"], linewidth=1, clip_on=False)
    if len(chart.x.names) > 2:
        ax.tick_params(axis="x", labelrotation=20)


def ticks(axis: Axis, low: float, high: float, most: int) -> list[float]:
    """At most `most` round values between the ends of an axis; for `names`, a place each."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    def within(values: Sequence[float]) -> list[float]:
        # A hair of slack; otherwise an axis that ends at a round value would lose its last tick.
        return [float(f"{v:.12g}") for v in values if low - 1e-9 * abs(low) <= v <= high + 1e-9 * abs(high)]

    if axis.names:
        return list(range(len(axis.names)))
    if axis.log:
        for leading in ((1, 2, 5), (1, 3), (1,)):
            found = within(LogLocator(subs=leading).tick_values(low, high))
            if 2 <= len(found) <= most:
                return found
        if len(found) > most:
            return found[:: -(-len(found) // most)]
    counts = (MaxNLocator(bins, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) for bins in range(most + 1, 0, -1))
    return next(found for found in map(within, counts) if len(found) <= most)


# ----------------------------------------------------------------------------------------------------------------------
# Marks


def _mark(ax: Axes, mark: Mark) -> None:
    match mark:
        case Line():
            _line(ax, mark)
        case Points():
            _points(ax, mark)
        case Cloud():
            _cloud(ax, mark)
        case Bars():
            _bars(ax, mark)


def _line(ax: Axes, line: Line) -> None:
    if line.band is not None:
        _band(ax, line)
    how: dict[str, Any] = {"color": COLOURS[line.color], "clip_on": False, "linewidth": 2,
                           "solid_capstyle": "round", "solid_joinstyle": "round"}  # fmt: skip
    if line.noisy:
        x, (y,) = thinned(line.x, line.y)
        ax.plot(x, _gaps(y), **(how | {"linewidth": 1, "alpha": 0.32}))
    x, (y,) = thinned(line.x, smoothed(line.y) if line.noisy else line.y)
    how |= {"drawstyle": "steps-post"} if line.steps else {}
    how |= {"linestyle": DASHES, "linewidth": 1.5} if line.dashed else {}
    how |= {"linestyle": "none"} if not line.joined else {}
    how |= {"linewidth": 1.25, "alpha": 0.35} if line.faint else {"label": line.name}
    dotted = line.dots and len(line.x) <= PLACES
    how |= {"markersize": 6} if dotted else {"markersize": 2, "markevery": _alone(y)}
    ax.plot(x, _gaps(y), marker="o", markeredgewidth=0, **how)


def _gaps(y: Sequence[float | None]) -> list[float]:
    return [np.nan if value is None else value for value in y]


def _alone(y: Sequence[float | None]) -> list[int]:
    """Indices of single values between gaps, which a line would not show."""
    there = np.isfinite([np.nan, *_gaps(y), np.nan])
    return np.flatnonzero(there[1:-1] & ~there[:-2] & ~there[2:]).tolist()


def _band(ax: Axes, line: Line) -> None:
    """Draw the interval of each value: a region around a line, a bar at single points."""
    assert line.band is not None
    x, (_, low, high) = thinned(line.x, line.y, *line.band)
    if line.joined:
        ax.fill_between(x, _gaps(low), _gaps(high), color=COLOURS[line.color], alpha=0.14, linewidth=0, clip_on=False)
    else:
        ax.vlines(x, _gaps(low), _gaps(high), color=COLOURS[line.color], linewidth=1.5)


def _points(ax: Axes, points: Points) -> None:
    color = COLOURS[points.color]
    if points.joined:
        ax.plot(points.x, points.y, color=color, linewidth=1.25, alpha=0.7, clip_on=False)
    areas = [(2 * points.radius(i)) ** 2 for i in range(len(points.x))]
    how: dict[str, Any] = {"linewidths": 1.5} if points.shape == "cross" else {"edgecolors": COLOURS["card"]}
    how |= {"marker": MARKERS[points.shape], "label": points.name, "clip_on": False, "zorder": 3}
    ax.scatter(points.x, points.y, areas, color, **how)


def _cloud(ax: Axes, cloud: Cloud) -> None:
    ax.plot(cloud.x, cloud.y, "o", color=COLOURS[cloud.color], alpha=0.3, markersize=4, markeredgewidth=0,
            clip_on=False, label=cloud.name)  # fmt: skip


def _bars(ax: Axes, bars: Bars) -> None:
    drawn = ax.barh(bars.y, [value or 0.0 for value in bars.x], color=[COLOURS[c] for c in bars.colors], height=0.6)
    ax.bar_label(drawn, bars.shown(), fontsize=TEXT, padding=3, color=COLOURS["soft"])
    ax.set_xlim(right=1.18 * max(value or 0.0 for value in bars.x) or 1.0)


# ----------------------------------------------------------------------------------------------------------------------
# Labels beside points

Box = tuple[float, float, float, float]  # left, bottom, right, top


def _label(figure: Figure, ax: Axes, chart: Chart) -> None:
    """Write the labels of points beside them if there is room; a pointer shows them in any case."""
    every = [mark for mark in chart.marks if isinstance(mark, Points)]
    taken: list[Box] = []
    wanted: list[tuple[float, float, float, str]] = []
    for points in every:
        for index, (x, y) in enumerate(places(ax, points.x, points.y)):
            r = points.radius(index)
            taken.append((x - r, y - r, x + r, y + r))
            if points.labels:
                wanted.append((x, y, r, points.labels[index]))
    edges = places(ax, ax.get_xlim(), ax.get_ylim())
    inside = (edges[0][0], edges[0][1] - 4, edges[1][0] + RIGHT, edges[1][1] + 11)
    for x, y, r, label in wanted:
        box = _free(x, y, r, LETTER * len(label), taken, inside)
        if box is not None:
            taken.append(box)
            _write(figure, (box[0] + box[2]) / 2, box[1] + 1, label, ha="center")


def _free(x: float, y: float, r: float, width: float, taken: Sequence[Box], inside: Box) -> Box | None:
    """A box for a label beside a point, overlapping nothing; None if there is none."""
    height = 11
    right, left, above, below = x + r, x - r - width, y + r - 2, y - r - height + 2
    for at, bottom in ((right, above), (right, below), (left, above), (left, below), (x - width / 2, y + r + 1)):
        box = (at, bottom, at + width, bottom + height)
        fits = inside[0] <= box[0] and inside[1] <= box[1] and box[2] <= inside[2] and box[3] <= inside[3]
        if fits and not any(a[0] < box[2] and box[0] < a[2] and a[1] < box[3] and box[1] < a[3] for a in taken):
            return box
    return None


def places(ax: Axes, x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    """Where values are drawn, in points from the figure's lower left corner."""
    if not len(x):
        return []
    pixels = ax.transData.transform(np.column_stack([x, y]))
    return [(float(across), float(up)) for across, up in pixels * 72 / ax.figure.dpi]
