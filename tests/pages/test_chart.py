"""Charts: values stand where the axes say, nothing is lost in thinning, and every number is in the table."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from ldlm.pages import chart as charts
from ldlm.pages import drawing, svg
from ldlm.pages.chart import BLUE, GREY, MOST, Axis, Bars, Chart, Cloud, Line, Points
from ldlm.pages.drawing import PLACES, ticks
from ldlm.pages.page import render

STEP = Axis("step", low=0)


class Drawing(HTMLParser):
    """The elements of a drawing with their attributes, and its texts by place."""

    def __init__(self, markup):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(markup)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open.append((tag, dict(attributes)))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attributes = self.open[-1]
        assert tag == "text"
        self.words.append((float(attributes["x"]), float(attributes["y"]), data))

    def lines(self, color):
        """Points of the lines of a colour, a list for each unbroken piece of more than a point."""
        found = [
            a["d"]
            for tag, a in self.elements
            if tag == "path" and f"fill: none; stroke: var(--{color})" in a.get("style", "")
        ]
        pieces = [
            [tuple(map(float, point)) for point in re.findall(r"([\d.-]+) ([\d.-]+)", piece)]
            for d in found
            for piece in d.split("M")[1:]
        ]
        return [piece for piece in pieces if len(piece) > 1]

    def dots(self, color):
        """Places of the dots of a colour."""
        uses = [a for tag, a in self.elements if tag == "use" and f"fill: var(--{color})" in a["style"]]
        return [(float(a["x"]), float(a["y"])) for a in uses]

    def axes(self):
        """Places of the numbers beside the axes, and the numbers: across and up."""
        numbers = [
            (x, y, float(w.replace(",", "").replace("k", "e3"))) for x, y, w in self.words if re.match(r"[\d.]", w)
        ]
        bottom = max(y for _, y, _ in numbers)
        across = [(x, value) for x, y, value in numbers if y == bottom]
        up = [(y - 4.3, value) for x, y, value in numbers if y < bottom]  # letters stand a little below their line
        return across, up


def drawn(*arguments, **more):
    return Drawing(svg.draw(Chart(*arguments, **more)).svg)


def shown(*made):
    """The page of the charts alone."""
    values = {"report": {"name": "run"}, "state": "begun", "reason": "", "what": "", "figures": []}
    section = {"id": "a", "title": "A", "lead": "", "blocks": [{"kind": "charts", "charts": made}]}
    return render("report.html", **values, sections=[section], draw=svg.draw, area=svg.AREA)


# ----------------------------------------------------------------------------------------------------------------------
# Drawings


def test_a_line_stands_where_the_numbers_of_the_axes_say():
    x, y = np.linspace(0, 400, 41), np.linspace(3, 87, 41) ** 1.2
    found = drawn("A", STEP, Axis("y", low=0), [Line("a", BLUE, x.tolist(), y.tolist())])
    (points,) = found.lines("blue")
    across, up = found.axes()
    to_x, to_y = (np.polyfit(*np.array(numbers).T, 1) for numbers in (across, up))
    # Points in a row are drawn as one line.
    at_x, at_y = (np.polyval(line, [p[i] for p in points]) for i, line in enumerate((to_x, to_y)))
    assert (at_x[0], at_x[-1]) == pytest.approx((0, 400), abs=0.5)
    assert at_y == pytest.approx(np.interp(at_x, x, y), abs=0.8)


def test_and_so_it_does_on_axes_of_logarithms():
    x, y = np.geomspace(8, 1024, 8), np.geomspace(2000, 20, 8)
    log = Axis("n", log=True)
    made = svg.draw(Chart("A", log, log, [Points("a", BLUE, x.tolist(), y.tolist(), [""] * 8)]))
    for numbers, key, values in zip(Drawing(made.svg).axes(), ("x", "y"), (x, y), strict=True):
        places, values_there = np.array(numbers).T
        line = np.polyfit(places, np.log(values_there), 1)
        assert np.exp(np.polyval(line, [getattr(s, key) for s in made.spots])) == pytest.approx(values, rel=0.02)


@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
def test_ticks_are_few_round_and_within_the_axis(log):
    draw = np.random.default_rng(0)
    for _ in range(500):
        low = 10 ** draw.uniform(-6, 6)
        high = low + low * 10 ** draw.uniform(-2, 4)
        found = ticks(Axis("", log=log), low, high, 5)
        assert 2 <= len(found) <= 5, (low, high, found)
        assert low * (1 - 1e-6) <= found[0] < found[-1] <= high * (1 + 1e-6)
        steps = np.diff(found)
        if not np.allclose(steps, steps[0]):  # then it is powers of ten, with 2 and 5, or 3, between them
            assert all(f"{tick:.0e}"[0] in "1235" for tick in found)


def test_what_is_missing_is_a_gap_and_a_lone_value_a_dot():
    y = [1.0, 2.0, None, 3.0, float("nan"), 4.0, 5.0, 7.0]
    found = drawn("A", STEP, Axis("y"), [Line("a", BLUE, list(range(8)), y)])
    assert [len(piece) for piece in found.lines("blue")] == [2, 3]
    assert len(found.dots("blue")) == 1
    assert not drawn("A", STEP, Axis("y"), [Line("a", BLUE, [0, 1], [1, 2])]).dots("blue")


def test_where_nothing_can_be_drawn_a_chart_has_no_values():
    for y in ([], [None], [float("nan")]):
        assert not Chart("A", STEP, Axis("y"), [Line("a", BLUE, list(range(len(y))), y)]).has_values
    assert not Chart("A", STEP, Axis("y", log=True), [Line("a", BLUE, [0, 1], [0.0, -1.0])]).has_values
    assert not Chart("A", STEP, Axis("y"), []).has_values
    assert Chart("A", STEP, Axis("y"), [Line("a", BLUE, [0, 1], [None, -1.0])]).has_values


@pytest.mark.parametrize("y", [[5.0], [0.0, 0.0], [-3.0, -3.0], [1e-30, 1e-30], [7.0, 7.0, 7.0]], ids=str)
@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
def test_one_value_alone_has_an_axis_too(y, log):
    if log and min(y) <= 0:
        return
    found = drawn("A", STEP, Axis("y", log=log), [Line("a", BLUE, list(range(len(y))), y, dots=True)])
    (_, height), *_ = found.dots("blue")
    assert drawing.TOP < height < drawing.HEIGHT - drawing.BOTTOM


def test_a_pointer_is_told_the_values_at_its_place():
    x = list(range(0, 1010, 10))
    lines = [
        Line("loss", BLUE, x, [1000.0 - v for v in x]),
        Line("held out", GREY, [250, 1000], [0.125, 0.25], dots=True),
        Line("behind", GREY, x, x, faint=True),
    ]
    found = svg.draw(Chart("A", STEP, Axis("y", low=0), lines)).strips
    assert len(found) == PLACES
    told = {strip.words.split("\n")[0]: strip.words.split("\n")[1:] for strip in found}
    assert told["step 0"] == ["loss: 1,000"]
    assert told["step 1,000"] == ["loss: 0", "held out: 0.25"]
    assert sum("held out: 0.125" in lines for lines in told.values()) == 1
    ends = np.array([[strip.left, strip.left + strip.width] for strip in found])
    assert ends[1:, 0] == pytest.approx(ends[:-1, 1], abs=0.11)


def test_labels_stand_beside_their_points_and_never_on_each_other():
    x, y = [1.0, 1.001, 1.002, 5.0], [1.0, 1.001, 1.0, 5.0]
    labels = ["1,024", "512", "256", "8"]
    points = Points("a", BLUE, x, y, labels, labels=labels, radii=[9.0] * 4)
    made = svg.draw(Chart("A", Axis("x"), Axis("y"), [points]))
    boxes = {}
    for across, bottom, word in Drawing(made.svg).words:
        if word in labels:
            half = drawing.LETTER * len(word) / 2
            boxes[word] = (across - half, bottom - 9, across + half, bottom)
    assert len(boxes) >= 3
    for word, (left, top, right, bottom) in boxes.items():
        others = [box for other, box in boxes.items() if other != word]
        assert not any(left < b[2] and b[0] < right and top < b[3] and b[1] < bottom for b in others)
        spot = made.spots[labels.index(word)]
        assert np.hypot((left + right) / 2 - spot.x, (top + bottom) / 2 - spot.y) < 40


def test_the_same_chart_is_the_same_bytes_and_has_no_name_of_another():
    def made(title):
        marks = [Line("a", BLUE, [0, 1], [1, 2], dots=True), Line("b", GREY, [0, 1], [1, 2], band=([0, 1], [2, 3]))]
        return svg.draw(Chart(title, STEP, Axis("y"), marks)).svg

    assert made("A") == made("A")
    names = [set(re.findall(r' id="([^"]*)"', made(title))) for title in ("A", "B")]
    assert names[0]
    assert not names[0] & names[1]
    assert "<style" not in made("A")  # it would hold for the whole page
    assert "fill-opacity: 0.14" in made("A")  # only places are rounded


def test_the_colours_of_pictures_are_those_of_the_page_in_light():
    folder = Path(drawing.__file__).parent / "templates"
    light = "".join((folder / name).read_text().partition("@media")[0] for name in ("page.css", "chart.css"))
    for name, value in drawing.COLOURS.items():
        assert f"--{name}: {value};" in light


def test_a_picture_has_the_charts_side_by_side(tmp_path):
    one = Chart("A", STEP, Axis("y"), [Line("$a$_{b", BLUE, [0, 1], [1, 2]), Line("b", GREY, [0, 1], [2, 1])])
    bars = Chart("Bars", Axis("x", low=0), Axis("", names=["a", "b"]), [Bars([1.0, None], [0, 1], [BLUE, GREY])])
    empty = Chart("Empty", STEP, Axis("y"), [])
    drawing.png(tmp_path / "one.png", [one])
    drawing.png(tmp_path / "two.png", [one, empty, bars])
    drawing.png(tmp_path / "empty.png", [empty])
    drawing.png(tmp_path / "none.png", [])
    with Image.open(tmp_path / "one.png") as first, Image.open(tmp_path / "two.png") as second:
        assert second.width > 1.9 * first.width
        assert second.height == pytest.approx(first.height, abs=20)
        assert first.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
    assert (tmp_path / "empty.png").exists()
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("shared_legend", [False, True])
def test_a_picture_is_cut_as_matplotlib_cuts_it_to_what_it_shows(tmp_path, monkeypatch, shared_legend):
    """With letters left of the charts, below them, and a legend beside them: its length hangs on the resolution."""
    line = Line("a line that has a rather long name", BLUE, [1, 2, 3], [0.1, 3e4, 5.0])
    noted = Chart("Noted", STEP, Axis("y", log=True), [line], note="a note " * 30)
    bars = Chart("Bars", Axis("x", low=0), Axis("", names=["a long name", "b"]), [Bars([1, 2], [0, 1], [BLUE, GREY])])
    drawing.png(tmp_path / "ours.png", [noted, bars], shared_legend=shared_legend)
    save = Figure.savefig
    monkeypatch.setattr(drawing, "_extent", lambda figure: Bbox.unit())
    tight = {"bbox_inches": "tight", "pad_inches": 0.2}
    monkeypatch.setattr(Figure, "savefig", lambda figure, place, **how: save(figure, place, **{**how, **tight}))
    drawing.png(tmp_path / "theirs.png", [noted, bars], shared_legend=shared_legend)
    assert (tmp_path / "ours.png").read_bytes() == (tmp_path / "theirs.png").read_bytes()


@pytest.mark.parametrize("many", [False, True])
def test_a_long_legend_stands_below_its_chart_and_its_note(tmp_path, monkeypatch, many):
    lines = [Line(f"line {i}", BLUE, [1, 2, 3], [i, i, i]) for i in range(drawing.WITHIN + many)]
    noted = Chart("Noted", STEP, Axis("y"), lines, note="a note " * 30)
    below = Chart("The chart of the next row", STEP, Axis("y"), lines[:1])
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *place, **how: (drawn.append(figure), save(figure, *place, **how))
    )
    drawing.png(tmp_path / "one.png", [noted, below], columns=1)
    (figure,) = drawn
    legend = figure.axes[0].get_legend().get_window_extent()
    (note,) = (text.get_window_extent() for text in figure.texts if text.get_text().startswith("a note"))
    (title,) = (text.get_window_extent() for text in figure.texts if text.get_text() == below.title)
    assert (legend.y1 < figure.axes[0].get_window_extent().y0) == many
    assert (legend.y1 <= note.y0) == many
    assert legend.y0 > title.y1


# ----------------------------------------------------------------------------------------------------------------------
# Numbers


def test_a_long_line_is_thinned_and_keeps_its_extremes_and_gaps():
    x, y = list(range(20_000)), np.random.default_rng(0).normal(size=20_000)
    y[7_000], y[13_111], y[15_000:16_000] = 90, -90, np.nan
    kept_x, (kept_y,) = charts.thinned(x, y.tolist())
    assert len(kept_x) == len(kept_y) <= MOST
    assert (kept_x[0], kept_x[-1]) == pytest.approx((0, 20_000), abs=200)
    assert kept_x == sorted(kept_x)
    assert {90.0, -90.0} <= set(kept_y)
    assert all(y[at] == value for at, value in zip(kept_x, kept_y, strict=True) if value == value)
    assert any(value != value for at, value in zip(kept_x, kept_y, strict=True) if 15_000 <= at < 16_000)
    line = Line("a", BLUE, x, y.tolist(), noisy=True, band=(y.tolist(), y.tolist()))
    assert len(svg.draw(Chart("A", STEP, Axis("y"), [line])).svg) < 40_000
    assert charts.thinned([1, 2], [3, 4], [5, 6]) == ([1, 2], [[3, 4], [5, 6]])


def test_a_thinned_line_with_a_band_keeps_the_extremes_of_its_ends():
    x, y = list(range(4_000)), np.zeros(4_000)
    for spike in range(0, 4_000, 37):
        low, high = np.full(4_000, -1.0), np.full(4_000, 2.0)
        low[spike], high[spike] = -9, 50
        kept_x, (_, kept_low, kept_high) = charts.thinned(x, y.tolist(), low.tolist(), high.tolist())
        assert len(kept_x) <= MOST
        assert (min(kept_low), max(kept_high)) == (-9, 50)


def test_smoothing_averages_noise_away_and_lags_behind_nothing():
    ramp = np.linspace(0, 10, 2_000)
    noisy = ramp + np.random.default_rng(0).normal(size=2_000)
    smooth = np.array(charts.smoothed(noisy.tolist()))
    inner = slice(100, -100)
    assert abs((smooth - ramp)[inner]).mean() < 0.15
    assert charts.smoothed(ramp.tolist())[100:-100] == pytest.approx(ramp[inner])
    assert charts.smoothed(noisy[::-1].tolist()) == pytest.approx(smooth[::-1])
    assert charts.smoothed([2.0, None, 2.0, float("nan")]) == [pytest.approx(2), None, pytest.approx(2), None]


def test_lines_make_a_table_by_x_and_places_one_by_mark():
    lines = [
        Line("a", BLUE, [0, 1, 2], [3.0, None, 1.5], band=([2.0, None, 1.0], [4.0, None, 2.0])),
        Line("b", GREY, [1], [0.1234567]),
    ]
    assert Chart("A", STEP, Axis("y"), lines).table() == (
        ["step", "a", "a, lower end", "a, upper end", "b"],
        [["0", "3", "2", "4", ""], ["1", "", "", "", "0.123457"], ["2", "1.5", "1", "2", ""]],
    )
    points = Points("p", GREY, [1], [2], ["title"], labels=["8"])
    marks = [points, Cloud("cloud", GREY, [1, 2], [2, 3]), lines[1]]
    assert Chart("A", STEP, Axis("y"), marks).table() == (
        ["", "step", "y"],
        [["p, 8", "1", "2"], ["cloud", "1", "2"], ["cloud", "2", "3"], ["b", "1", "0.123457"]],
    )
    bars = Chart("A", Axis("x"), Axis("", names=["one", "two"]), [Bars([5.0, None], [0, 1], [BLUE, GREY])])
    assert bars.table()[1] == [["one", "5", "0"], ["two", "", "1"]]


def test_numbers_read_well():
    assert [charts.number(v) for v in (0, 5, 0.20010027, 1234.5, 1e-8, 62.25)] == [
        "0", "5", "0.2001", "1,234", "1e-08", "62.25",
    ]  # fmt: skip
    assert [charts.short(v) for v in (0, 0.25, 5000, 20_000, 1e6, 2.5e6, 1e-5, 3e9)] == [
        "0", "0.25", "5,000", "20k", "1M", "2.5M", "1e-5", "3G",
    ]  # fmt: skip
    assert charts.percent(0.62170) == "62.2 %"


# ----------------------------------------------------------------------------------------------------------------------
# Charts in a page


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the words of each kind of element."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.said, self.inside = [], {}, ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        self.said.setdefault(self.inside, []).append(data)


def test_a_chart_says_in_words_what_it_shows_and_markup_in_names_is_none():
    evil = "</text><script>1</script>&\"'$x$"
    marks = [
        Line(evil, BLUE, [0, 1, 2], [3.0, None, 1.5]),
        Points(evil + "2", GREY, [1], [2], [evil], labels=["</svg>"], shape="star"),
        Cloud("cloud", GREY, [1, 2], [2, 2]),
    ]
    found = Elements(shown(Chart(evil, Axis(evil), Axis("y"), marks, note=evil)))
    (image,) = (a for tag, a in found.tags if tag == "svg")
    assert image["role"] == "img"
    assert image["aria-label"] == f"{evil}. y against {evil}. {evil}: from 3 to 1.5; {evil}2: 2; cloud: 2 points."
    assert "script" not in [tag for tag, _ in found.tags]
    assert {evil, "</svg>"} <= set(found.said["text"])
    assert evil in found.said["title"]
    assert evil in found.said["figcaption"]
    assert f"{evil}2, </svg>" in found.said["th"]
    assert not any(name.startswith("on") or name == "src" for _, a in found.tags for name in a)
