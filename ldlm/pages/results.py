"""Charts of generated texts: a sweep's frontier, interpolation, and sets of texts side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from ldlm.evaluation.frontier import is_papers
from ldlm.pages.chart import (
    BLUE,
    GOLD,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SERIES,
    Axis,
    Bars,
    Chart,
    Cloud,
    Line,
    Mark,
    Points,
    number,
    star,
)

LARGEST = 9.0  # radius of the slowest marker of the frontier, in points

Row = Mapping[str, Any]
T = TypeVar("T", bound=Row)

_NUMBERED = "Numbers are evaluations of the denoiser, areas seconds per text."
PPL_LOG = Axis("generative perplexity, log scale", log=True)
# Figures of a set of texts: key, title, axis.
FIGURE_CHARTS = (
    ("gen_ppl", "Perplexity", "generative perplexity"),
    ("entropy", "Entropy", "entropy, nats"),
    ("diversity", "Diversity", "distinct n-grams, Π over n = 2 to 4"),
)
# Those of texts whose distribution is known.
VALIDITY_CHARTS = (
    ("sentences_valid", "Valid sentences", "share of the whole sentences"),
    ("stories_valid", "Valid stories", "share of the whole stories"),
    ("coverage", "Choices that occur", "share of the source's"),
    ("entropy", "Entropy", "entropy, nats"),
)


def scored(rows: Sequence[T]) -> list[T]:
    """Rows that have a perplexity; texts with nothing to score have none."""
    return [row for row in rows if row["gen_ppl"] is not None]


def diversity_texts(row: Row) -> int | None:
    """Number of texts on which a row's diversity is computed; None if an earlier version did not record it."""
    return row.get("diversity_texts", row.get("num_texts"))


# ----------------------------------------------------------------------------------------------------------------------
# A sweep


def frontier_lines(finalists: Sequence[Row]) -> dict[str, list[Row]]:
    """The finalists of a sweep as two lines, by name: the paper's sampler, and the best at each budget.

    Finalists without a perplexity are left out.
    """
    finalists = scored(finalists)
    own = [row for row in finalists if is_papers(row)]
    # Sweeps of earlier versions mark none as best.
    best = [row for row in finalists if row.get("best", row not in own)]
    return {"the paper's sampler": own, "best at each budget": best}


def frontier(sweep: Row) -> list[Chart]:
    """Perplexity against entropy (Figure 1) and evaluations (Tables 8 and 9), and the finalists more closely."""
    closer = (_closely(sweep, key, label) for key, label in (("entropy", "entropy, nats"), ("diversity", "diversity")))
    return [_plane(sweep), _budgets(sweep), *closer]


def _plane(sweep: Row) -> Chart:
    marks = [*_finalists(sweep, "entropy"), *_externals(sweep, "entropy", sweep["externals"]), *of_real(sweep["real"])]
    marks = [mark for mark in marks if len(mark.x)]
    screened = scored(sweep["screened"])
    near, far = _around(screened, marks)
    cloud = Cloud("screened", GREY, [row["entropy"] for row in near], [row["gen_ppl"] for row in near])
    note = _NUMBERED + (f" {far:,} of {len(screened):,} that were screened lie outside." if far else "")
    return Chart("Perplexity and entropy", Axis("entropy, nats"), PPL_LOG, [cloud, *marks], note)


def of_real(real: Row | None) -> list[Points]:
    """The star of real text; none without a perplexity of it."""
    if real is None or real["gen_ppl"] is None:
        return []
    return [star("real text", real["entropy"], real["gen_ppl"])]


def _budgets(sweep: Row) -> Chart:
    marks: list[Mark] = []
    ends = [row["budget"] for row in sweep["finalists"]]
    if sweep["real"] is not None and sweep["real"]["gen_ppl"] is not None:
        marks.append(Line("real text", GOLD, [min(ends), max(ends)], [sweep["real"]["gen_ppl"]] * 2, dashed=True))
    for (name, rows), color in zip(frontier_lines(sweep["finalists"]).items(), (ORANGE, BLUE), strict=True):
        x, y = [row["budget"] for row in rows], [row["gen_ppl"] for row in rows]
        marks += [Points(name, color, x, y, list(map(_title, rows)), joined=True)] if rows else []
    x_axis = Axis("evaluations per text, log scale", log=True, short=lambda value: f"{value:,g}")
    return Chart("Perplexity and evaluations", x_axis, PPL_LOG, marks)


def _closely(sweep: Row, key: str, label: str) -> Chart:
    """The finalists and other models' texts; for diversity, only other sets with the same number of texts."""
    numbers = set(map(diversity_texts, sweep["finalists"]))
    alike = [row for row in sweep["externals"] if key != "diversity" or {diversity_texts(row)} == numbers]
    marks = [*_finalists(sweep, key), *_externals(sweep, key, alike)]
    return Chart(f"The finalists, by {key}", Axis(label), PPL_LOG, [mark for mark in marks if len(mark.x)], _NUMBERED)


def _finalists(sweep: Row, key: str) -> list[Points]:
    lines = zip(frontier_lines(sweep["finalists"]).items(), (ORANGE, BLUE), strict=True)
    return [
        _placed(sweep, name, color, rows, key, labels=[f"{row['budget']:,}" for row in rows], joined=True)
        for (name, rows), color in lines
    ]


def _externals(sweep: Row, key: str, rows: Sequence[Row]) -> list[Points]:
    return [_placed(sweep, row["name"], PURPLE, [row], key) for row in scored(rows)]


def _placed(sweep: Row, name: str, color: str, rows: Sequence[Row], key: str, **how: Any) -> Points:
    """Perplexity against another figure; areas are seconds per text."""
    slowest = max(row["seconds"] for row in [*sweep["finalists"], *sweep["externals"]])
    radii = [max(2.5, LARGEST * (row["seconds"] / slowest) ** 0.5) for row in rows]
    x, y = [row[key] for row in rows], [row["gen_ppl"] for row in rows]
    return Points(name, color, x, y, list(map(_title, rows)), radii=radii, **how)


def _title(row: Row) -> str:
    name = row["name"] if "name" in row else f"{row['solver']}, grid {row['grid']}, w = {row['guidance']:g}"
    evaluations = row["nfe"] if "name" in row else row["budget"]
    return (
        f"{name}\n{evaluations:,} evaluations, {number(row['seconds'])} s per text\n"
        f"perplexity {number(row['gen_ppl'])}, entropy {number(row['entropy'])}, diversity {number(row['diversity'])}"
    )


def _around(screened: Sequence[Row], marks: Sequence[Points]) -> tuple[list[Row], int]:
    """Screened rows near the marks, and the number of others: a few collapsed ones would take all the room."""
    x, y = [v for mark in marks for v in mark.x], [v for mark in marks for v in mark.y]
    if not x:
        return list(screened), 0
    room = max(0.1, max(x) - min(x))
    near = [
        row
        for row in screened
        if min(x) - room <= row["entropy"] <= max(x) + room and min(y) / 4 <= row["gen_ppl"] <= 4 * max(y)
    ]
    return near, len(screened) - len(near)


# ----------------------------------------------------------------------------------------------------------------------
# Interpolation


def real_is_alike(result: Row) -> bool:
    """Whether an interpolation's diversity is that of equally many real and decoded texts."""
    return diversity_texts(result["real"]) == diversity_texts(result["mean"]) is not None


def along(results: Mapping[str, Row]) -> list[Chart]:
    """Figures along the path between two latents (Figure 3, left), of one or more runs, by name.

    Perplexity, entropy, diversity, and the number of tokens that change from point to point, with their intervals.
    """
    kinds = sorted({result["path"] for result in results.values()})
    a = Axis(f"a, {' and '.join(kinds)} path", low=0, high=1)
    points = {name: result["points"] for name, result in results.items()}
    between = {
        name: [{**here, "a": (before["a"] + here["a"]) / 2} for before, here in pairwise(rows)]
        for name, rows in points.items()
    }
    charts = []
    for key, title, label in FIGURE_CHARTS:
        marks: list[Mark] = [*_path_lines(points, key), *_real_lines(results, key, [0, 1])]
        if key == "gen_ppl":
            marks += _nothing_to_score([(row["a"], row) for rows in points.values() for row in rows])
        charts.append(Chart(f"{title} along the way", a, Axis(label, low=0), marks))
    edits = Axis("tokens", low=0)
    return [*charts, Chart("Edits from point to point", a, edits, _path_lines(between, "edits"))]


def _path_lines(points: Mapping[str, Sequence[Row]], key: str) -> list[Line]:
    lines = []
    for index, (name, rows) in enumerate(points.items()):
        x, y = [row["a"] for row in rows], [row[key] for row in rows]
        band = [low for low, _ in _intervals(rows, key)], [high for _, high in _intervals(rows, key)]
        lines.append(Line(name, SERIES[index % len(SERIES)], x, y, dots=True, band=band))
    return lines


def _intervals(rows: Sequence[Row], key: str) -> list[tuple[float | None, float | None]]:
    return [row["intervals"].get(key) or (None, None) for row in rows]


def _real_lines(results: Mapping[str, Row], key: str, ends: Sequence[float]) -> list[Line]:
    """The figure of real text: one line if it is the same for all results, else one for each.

    None for diversity in results of earlier versions, which have twice as many real texts as others: diversity falls
    with the number of texts.
    """
    if key == "diversity" and not all(map(real_is_alike, results.values())):
        return []
    values = {name: result["real"][key] for name, result in results.items() if result["real"][key] is not None}
    if len(set(values.values())) == 1:
        return [Line("real text", GOLD, ends, [next(iter(values.values()))] * 2, dashed=True)]
    return [
        Line(f"real text of {name}", SERIES[list(results).index(name) % len(SERIES)], ends, [value] * 2, dashed=True)
        for name, value in values.items()
    ]


def _nothing_to_score(rows: Sequence[tuple[float, Row]]) -> list[Points]:
    """Crosses at the foot of a chart where texts have no perplexity."""
    at = [x for x, row in rows if row["gen_ppl"] is None]
    return [Points("nothing to score", RED, at, [0] * len(at), ["nothing to score"] * len(at), shape="cross")] * bool(
        at
    )


def mean_of_two(results: Mapping[str, Row]) -> list[Chart]:
    """Figures of the decoded mean of two latents (Figure 4, right), and of the two ends.

    Against σ_dec if every run has a different one, else by name.
    """
    sigmas = [result["sigma_dec"] for result in results.values()]
    by_sigma = None not in sigmas and len(set(sigmas)) == len(sigmas) > 1
    places = dict(zip(results, sigmas if by_sigma else range(len(results)), strict=True))
    found = sorted(((places[name], result) for name, result in results.items()), key=lambda pair: pair[0])
    x = Axis("σ_dec") if by_sigma else Axis("", names=list(results), low=-0.5, high=len(results) - 0.5)
    return [
        Chart(f"{title} of the mean of two", x, Axis(label, low=0), _means(results, found, key, joined=by_sigma))
        for key, title, label in FIGURE_CHARTS
    ]


def _means(results: Mapping[str, Row], found: Sequence[tuple[float, Row]], key: str, *, joined: bool) -> list[Mark]:
    x, means = [at for at, _ in found], [result["mean"] for _, result in found]
    ends = [_mean_of(result["points"][0][key], result["points"][-1][key]) for _, result in found]
    lows, highs = zip(*_intervals(means, key), strict=True)
    edges = [x[0], x[-1]] if joined else [-0.5, len(found) - 0.5]
    marks: list[Mark] = [
        Line("the two, reconstructed", ORANGE, x, ends, dots=True, joined=joined),
        Line("decoded mean", BLUE, x, [mean[key] for mean in means], dots=True, joined=joined, band=(lows, highs)),
        *_real_lines(results, key, edges),
    ]
    return marks + (_nothing_to_score(list(zip(x, means, strict=True))) if key == "gen_ppl" else [])


def _mean_of(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else (a + b) / 2


# ----------------------------------------------------------------------------------------------------------------------
# Sets of texts


def comparison(rows: Sequence[Row]) -> list[Chart]:
    """Perplexity, entropy and diversity of several sets of texts as bars; each row has these and a name."""
    return _bars(rows, FIGURE_CHARTS)


def validity(rows: Sequence[Row]) -> list[Chart]:
    """Validity, coverage and entropy of sets of texts under their source as bars; each row has these and a name."""
    return _bars(rows, VALIDITY_CHARTS)


def _bars(rows: Sequence[Row], figures: Sequence[tuple[str, str, str]]) -> list[Chart]:
    numbers = set(map(diversity_texts, rows))
    of = f" of {numbers.pop():,} texts each" if len({row["num_texts"] for row in rows} | numbers) > 1 else ""
    names, colors = [row["name"] for row in rows], [(GREY, BLUE, RED)[index % 3] for index in range(len(rows))]
    return [
        Chart(
            title + of * (key == "diversity"),
            Axis(label, low=0),
            Axis("", names=names),
            [Bars([row[key] for row in rows], list(range(len(rows))), colors)],
        )
        for key, title, label in figures
    ]
