"""The pictures of the paper's figures, from our measurements, in the style of the pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from ldlm import config as configs
from ldlm import files
from ldlm.config import LDLM
from ldlm.pages import drawing
from ldlm.pages.chart import GREY, PURPLE, SERIES, Axis, Chart, Line, Points, number, percent, star
from ldlm.pages.curves import STEP, centres, of_kind, over_steps
from ldlm.pages.results import PPL_LOG
from ldlm.paper import findings
from ldlm.paper.plan import RowPlan
from ldlm.paper.results import Result
from ldlm.paper.rows import Row

LEAST, LARGEST = 3.0, 9.0  # radii of the fastest and the slowest marker, in points
SHAPES = ("disc", "square", "triangle", "diamond")
GAMMA_POINTS = 101


def draw(result: Result, folder: Path) -> None:
    """Draw the picture of a figure beside its table; nothing for a table, or if nothing was measured."""
    if result.exhibit.picture is not None:
        charts, columns = PICTURES[result.exhibit.picture](result, folder)
        path = folder / f"{result.exhibit.name}-{result.plan.size.scale}.png"
        if any(chart.has_values for chart in charts):
            drawing.png(path, charts, columns=columns, shared_legend=result.exhibit.picture == "frontier")


def _frontier(result: Result, folder: Path) -> tuple[list[Chart], int]:
    """Figure 1: perplexity against entropy, areas by seconds per text, real text as a star."""
    charts = []
    for group in result.exhibit.at(result.plan.size.scale):
        rows = sorted((row for row in group.rows if row.key in result.plan.chosen), key=lambda row: row.method != LDLM)
        seconds = {(m.row.key, b): s for m in result.plan.rows for b, s in findings.seconds_per_text(folder, m).items()}
        marks = [
            _of_method(result, row, place, seconds) for place, row in enumerate(row for row in rows if not row.real)
        ]
        marks += [_star(result, row) for row in rows if row.real]
        note = "Numbers are evaluations, areas seconds per text. A low perplexity below real text's entropy is no win."
        entropy = Axis("entropy, nats")
        charts.append(Chart(group.title, entropy, PPL_LOG, [mark for mark in marks if mark is not None], note))
    return charts, 2


def _of_method(result: Result, row: Row, place: int, seconds: Mapping[tuple[str, int | None], float]) -> Points | None:
    budgets = [
        budget for budget in result.exhibit.budgets_at(result.plan.size.scale) if _mean(result, row, "gen_ppl", budget)
    ]
    if not budgets:
        return None
    x = [_known(result, row, "entropy", budget) for budget in budgets]
    y = [_known(result, row, "gen_ppl", budget) for budget in budgets]
    most = max(seconds.values(), default=0.0)
    radii = [max(LEAST, LARGEST * (seconds.get((row.key, b), 0.0) / most) ** 0.5 if most else 0.0) for b in budgets]
    titles = [
        f"{row.name}, {b} evaluations: perplexity {number(p)}, entropy {number(e)}"
        for b, p, e in zip(budgets, y, x, strict=True)
    ]
    color, shape, labels = SERIES[place % len(SERIES)], SHAPES[place // len(SERIES)], [f"{b:,}" for b in budgets]
    return Points(row.name, color, x, y, titles, labels, radii, shape, joined=True)


def _star(result: Result, row: Row) -> Points | None:
    if _mean(result, row, "gen_ppl") is None:
        return None
    return star(row.name, _known(result, row, "entropy"), _known(result, row, "gen_ppl"))


def _mean(result: Result, row: Row, quantity: str, budget: int | None = None) -> float | None:
    cell = result.cells.get((row.key, quantity, budget))
    return None if cell is None else cell.mean


def _known(result: Result, row: Row, quantity: str, budget: int | None = None) -> float:
    found = _mean(result, row, quantity, budget)
    assert found is not None
    return found


def _dynamics(result: Result, folder: Path) -> tuple[list[Chart], int]:
    """Figure 3: perplexity along paths between latents; losses over training with the first seed."""
    path = Axis("a, place between two latents", low=0, high=1)
    steps = [
        Chart("Diffusion loss by S_wu", STEP, Axis("L_diff, log scale", log=True), _losses(result, folder, "l_diff")),
        Chart("Decoder loss by S_wu", STEP, Axis("L_w, nats per token", low=0), _losses(result, folder, "l_w")),
    ]
    return [Chart("Paths between latents", path, PPL_LOG, _paths(result, folder)), *steps], 3


def _paths(result: Result, folder: Path) -> list[Line]:
    """Perplexity at each point of each row's paths, averaged over training seeds."""
    found: dict[str, list[Any]] = {}
    for planned in result.plan.rows:
        record = None if planned.paths is None else folder / planned.paths / "interpolation.json"
        if record is not None and record.exists():
            found.setdefault(planned.row.name, []).append(files.read_json(record)["points"])
    lines = []
    for (name, seeds), color in zip(found.items(), cycle(SERIES), strict=False):
        ppl = [_average([point["gen_ppl"] for point in points]) for points in zip(*seeds, strict=True)]
        lines.append(Line(name, color, [point["a"] for point in seeds[0]], ppl, dots=True))
    return lines


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _losses(result: Result, folder: Path, key: str) -> list[Line]:
    rows = [m for m in result.plan.rows if m.seed == 0 and m.paths is None and _finished(folder, m)]
    return [
        over_steps(of_kind(findings.metrics(folder, planned), "train"), planned.row.name, key, color, noisy=True)
        for planned, color in zip(rows, cycle(SERIES), strict=False)
    ]


def _finished(folder: Path, planned: RowPlan) -> bool:
    return planned.run is not None and (folder / planned.run / "manifest.json").exists()


def _noise(result: Result, folder: Path) -> tuple[list[Chart], int]:
    """Figure 4: what depends on σ_dec, averaged over training seeds."""
    rows = {row.stages["train"]["recipe"]["sigma_dec"]: row for row in result.exhibit.rows.values()}
    sigma = Axis("σ_dec, log scale", log=True)
    axes = {
        "l_diff": ("Diffusion loss", Axis("held-out L_diff", low=0)),
        "latent_std": ("Spread of the latents", Axis("standard deviation of a coordinate", low=0)),
        "l_h": ("Decoder loss", Axis("held-out L_h", low=0)),
        "token_accuracy": ("Tokens rebuilt", Axis("share of tokens", low=0, number=percent, short=percent)),
        "mean_ppl": ("Mean of two latents", PPL_LOG),
    }
    charts = []
    for (quantity, (title, axis)), color in zip(axes.items(), SERIES, strict=False):
        y = [_mean(result, row, quantity) for row in rows.values()]
        charts.append(Chart(title, sigma, axis, [Line(title, color, list(rows), y, dots=True)]))
    return charts, 3


def _warmup(result: Result, folder: Path) -> tuple[list[Chart], int]:
    """Figure 5: γ(s) over the warm-up, by Eq. 30."""
    from ldlm.model.objective import warmup_gamma

    (row,) = result.exhibit.rows.values()
    config = configs.from_dict(configs.TrainConfig, configs.preset(row.preset).overrides).recipe
    share = np.linspace(0, 1.2, GAMMA_POINTS).tolist()
    gamma = [warmup_gamma(round(s * config.warmup_steps), config) for s in share]
    x, y = Axis("step, as a share of S_wu", low=0), Axis("γ(s)", low=0, high=1.05)
    return [Chart("Warm-up of the diffusion gradient", x, y, [Line("γ(s)", PURPLE, share, gamma)])], 1


def _times(result: Result, folder: Path) -> tuple[list[Chart], int]:
    """Figure 6: held-out loss against the time in which each run trains, and the straight line between its ends."""
    charts: list[Chart] = []
    for key, row in result.exhibit.rows.items():
        seeds = [m for m in result.plan.rows if m.row.key == key and _finished(folder, m)]
        known = [profile for m in seeds if (profile := findings.profile(folder, m)) is not None]
        if known:
            loss = [_average(values) for values in zip(*known, strict=True)]
            at = centres(len(loss))
            line = Line("a straight line", GREY, [at[0], at[-1]], [loss[0], loss[-1]], dashed=True)
            x = Axis("time t" if findings.is_uniform(folder, seeds[0]) else "adapted time F(t)", low=0, high=1)
            color = SERIES[len(charts)]
            charts.append(
                Chart(row.name, x, Axis("held-out L_diff", low=0), [Line(row.name, color, at, loss, dots=True), line])
            )
    return charts, 2


PICTURES: dict[str, Callable[[Result, Path], tuple[list[Chart], int]]] = {
    "frontier": _frontier,
    "dynamics": _dynamics,
    "noise": _noise,
    "warmup": _warmup,
    "times": _times,
}
