"""Charts: values stand where the axes say, nothing is lost in thinning, and what can't be drawn is left out."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from ldlm.pages import chart as charts
from ldlm.pages.chart import BLUE, GREY, MOST, PLACES, Axis, Cloud, Line, Points, Scale, chart

STEP = Axis("step", low=0)


class Drawing(HTMLParser):
    """The elements of a chart with their attributes, its texts by place, its titles."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.words, self.titles, self.open = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "title":
            self.titles.append("")
        self.open.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if tag == "text":
            self.words.append((float(attributes["x"]), float(attributes["y"]), data))
        elif tag == "title":
            self.titles[-1] += data

    def paths(self, kind):
        """Points of the paths of a class, a list for each unbroken piece."""
        found = [a["d"] for tag, a in self.elements if tag == "path" and kind in a.get("class", "").split()]
        return [
            [tuple(map(float, point.split())) for point in piece.replace("h0", "").removeprefix("L").split("L")[0:1]]
            + [tuple(map(float, p)) for p in re.findall(r"([\d.-]+) ([\d.-]+)", piece.partition("L")[2])]
            for d in found
            for piece in d.split("M")[1:]
        ]

    def axes(self):
        """What a place stands for, fitted to the numbers beside the axes: two functions."""
        numbers = [
            (x, y, float(w.replace(",", "").replace("k", "e3"))) for x, y, w in self.words if re.match(r"[\d.]", w)
        ]
        bottom = max(y for _, y, _ in numbers)
        across = [(x, value) for x, y, value in numbers if y == bottom]
        up = [(y - 4, value) for x, y, value in numbers if y < bottom]  # letters stand a little below their line
        return across, up


def drawn(*arguments, **more):
    return Drawing(chart(*arguments, **more))


def test_a_line_stands_where_the_numbers_of_the_axes_say():
    x, y = np.linspace(0, 400, 41), np.linspace(3, 87, 41) ** 1.2
    found = drawn("A", STEP, Axis("y", low=0), [Line("a", BLUE, x.tolist(), y.tolist())])
    (points,) = found.paths("line")
    across, up = found.axes()
    to_x, to_y = (np.polyfit(*np.array(ticks).T, 1) for ticks in (across, up))
    assert np.polyval(to_x, [p[0] for p in points]) == pytest.approx(x, abs=0.5)
    assert np.polyval(to_y, [p[1] for p in points]) == pytest.approx(y, abs=0.5)


def test_and_so_it_does_on_axes_of_logarithms():
    x, y = np.geomspace(8, 1024, 8), np.geomspace(2000, 20, 8)
    log = Axis("n", log=True)
    found = drawn("A", log, log, [Points("a", BLUE, x.tolist(), y.tolist(), [""] * 8)])
    circles = [a for tag, a in found.elements if tag == "circle"]
    for ticks, key, values in zip(found.axes(), ("cx", "cy"), (x, y), strict=True):
        places, numbers = np.array(ticks).T
        line = np.polyfit(places, np.log(numbers), 1)
        assert np.exp(np.polyval(line, [float(c[key]) for c in circles])) == pytest.approx(values, rel=0.02)


@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
def test_ticks_are_few_round_and_within_the_axis(log):
    draw = np.random.default_rng(0)
    for _ in range(500):
        low = 10 ** draw.uniform(-6, 6)
        high = low + low * 10 ** draw.uniform(-2, 4)
        ticks = Scale(Axis("", log=log), low, high, 0, 100).ticks(5)
        assert 2 <= len(ticks) <= 5, (low, high, ticks)
        assert low * (1 - 1e-6) <= ticks[0] < ticks[-1] <= high * (1 + 1e-6)
        steps = np.diff(ticks)
        if not np.allclose(steps, steps[0]):  # then it is powers of ten, with 2 and 5, or 3, between them
            assert all(f"{tick:.0e}"[0] in "1235" for tick in ticks)


def test_what_is_missing_is_a_gap_and_a_lone_value_a_dot():
    y = [1.0, 2.0, None, 3.0, float("nan"), 4.0, 5.0, 6.0]
    found = drawn("A", STEP, Axis("y"), [Line("a", BLUE, list(range(8)), y)])
    assert [len(piece) for piece in found.paths("line")] == [2, 1, 3]
    assert 'h0"' not in chart("A", STEP, Axis("y"), [Line("a", BLUE, [0, 1], [1, 2])])


def test_where_nothing_can_be_drawn_there_is_no_chart():
    for y in ([], [None], [float("nan")]):
        assert chart("A", STEP, Axis("y"), [Line("a", BLUE, list(range(len(y))), y)]) == ""
    assert chart("A", STEP, Axis("y", log=True), [Line("a", BLUE, [0, 1], [0.0, -1.0])]) == ""
    assert chart("A", STEP, Axis("y"), []) == ""


@pytest.mark.parametrize("y", [[5.0], [0.0, 0.0], [-3.0, -3.0], [1e-30, 1e-30], [7.0, 7.0, 7.0]], ids=str)
@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
def test_one_value_alone_has_an_axis_too(y, log):
    if log and min(y) <= 0:
        return
    found = drawn("A", STEP, Axis("y", log=log), [Line("a", BLUE, list(range(len(y))), y, dots=True)])
    ((_, height), *_) = found.paths("line")[0]
    assert charts.TOP < height < charts.HEIGHT - charts.BOTTOM


def test_a_long_line_is_thinned_and_keeps_its_extremes_and_gaps():
    x, y = list(range(20_000)), np.random.default_rng(0).normal(size=20_000)
    y[7_000], y[13_111], y[15_000:16_000] = 90, -90, np.nan
    kept_x, kept_y = charts.thinned(x, y.tolist())
    assert len(kept_x) == len(kept_y) <= MOST
    assert (kept_x[0], kept_x[-1]) == pytest.approx((0, 20_000), abs=200)
    assert kept_x == sorted(kept_x)
    assert {90.0, -90.0} <= set(kept_y)
    assert all(y[at] == value for at, value in zip(kept_x, kept_y, strict=True) if value == value)
    assert any(value != value for at, value in zip(kept_x, kept_y, strict=True) if 15_000 <= at < 16_000)
    page = chart("A", STEP, Axis("y"), [Line("a", BLUE, x, y.tolist(), noisy=True, band=(y.tolist(), y.tolist()))])
    assert len(page) < 40_000
    assert charts.thinned([1, 2], [3, 4]) == ([1, 2], [3, 4])


def test_smoothing_averages_noise_away_and_lags_behind_nothing():
    ramp = np.linspace(0, 10, 2_000)
    noisy = ramp + np.random.default_rng(0).normal(size=2_000)
    smooth = np.array(charts.smoothed(noisy.tolist()))
    inner = slice(100, -100)
    assert abs((smooth - ramp)[inner]).mean() < 0.15
    assert charts.smoothed(ramp.tolist())[100:-100] == pytest.approx(ramp[inner])
    assert charts.smoothed(noisy[::-1].tolist()) == pytest.approx(smooth[::-1])
    assert charts.smoothed([2.0, None, 2.0, float("nan")]) == [pytest.approx(2), None, pytest.approx(2), None]


def test_a_pointer_is_told_the_values_at_its_place():
    x = list(range(0, 1010, 10))
    lines = [
        Line("loss", BLUE, x, [1000.0 - v for v in x]),
        Line("held out", GREY, [250, 1000], [0.125, 0.25], dots=True),
    ]
    found = drawn("A", STEP, Axis("y", low=0), lines)
    assert len(found.titles) == PLACES
    told = {title.split("\n")[0]: title.split("\n")[1:] for title in found.titles}
    assert told["step 0"] == ["loss: 1,000"]
    assert told["step 1,000"] == ["loss: 0", "held out: 0.25"]
    assert sum("held out: 0.125" in lines for lines in told.values()) == 1
    strips = [a for tag, a in found.elements if tag == "rect"]
    ends = np.array([[float(s["x"]), float(s["x"]) + float(s["width"])] for s in strips])
    assert ends[1:, 0] == pytest.approx(ends[:-1, 1], abs=0.11)


def test_labels_stand_beside_their_points_and_never_on_each_other():
    x, y = [1.0, 1.001, 1.002, 5.0], [1.0, 1.001, 1.0, 5.0]
    labels = ["1,024", "512", "256", "8"]
    found = drawn("A", Axis("x"), Axis("y"), [Points("a", BLUE, x, y, labels, labels=labels, radii=[9.0] * 4)])
    boxes = {}
    for across, bottom, word in found.words:
        if word in labels:
            half = charts.LETTER * len(word) / 2
            boxes[word] = (across - half, bottom - 9, across + half, bottom)
    assert len(boxes) >= 3
    circles = [tuple(float(a[key]) for key in ("cx", "cy")) for tag, a in found.elements if tag == "circle"]
    for word, (left, top, right, bottom) in boxes.items():
        others = [box for other, box in boxes.items() if other != word]
        assert not any(left < b[2] and b[0] < right and top < b[3] and b[1] < bottom for b in others)
        at, height = circles[labels.index(word)]
        assert np.hypot((left + right) / 2 - at, (top + bottom) / 2 - height) < 40


def test_a_chart_says_in_words_what_it_shows_and_markup_in_names_is_none():
    evil = "</text><script>1</script>&\"'"
    marks = [
        Line(evil, BLUE, [0, 1, 2], [3.0, None, 1.5]),
        Points(evil + "2", GREY, [1], [2], [evil], labels=[evil], star=True),
        Cloud("cloud", GREY, [1, 2], [2, 2]),
    ]
    page = chart(evil, Axis(evil), Axis("y"), marks, note=evil)
    found = Drawing(page)
    (svg,) = (a for tag, a in found.elements if tag == "svg")
    assert svg["role"] == "img"
    assert svg["aria-label"] == f"{evil}. y against {evil}. {evil}: from 3 to 1.5; {evil}2: 2; cloud: 2 points."
    assert "script" not in [tag for tag, _ in found.elements]
    assert evil in [words for *_, words in found.words]
    assert evil in found.titles
    assert not any(name.startswith("on") or name in ("href", "src") for _, a in found.elements for name in a)


def test_numbers_read_well():
    assert [charts.number(v) for v in (0, 5, 0.20010027, 1234.5, 1e-8, 62.25)] == [
        "0", "5", "0.2001", "1,234", "1e-08", "62.25",
    ]  # fmt: skip
    assert [charts.short(v) for v in (0, 0.25, 5000, 20_000, 1e6, 2.5e6, 1e-5, 3e9)] == [
        "0", "0.25", "5,000", "20k", "1M", "2.5M", "1e-5", "3G",
    ]  # fmt: skip
    assert charts.percent(0.62170) == "62.2 %"
