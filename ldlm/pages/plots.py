"""The pictures: training curves, interpolation paths, comparisons. PNG files through matplotlib, without a display.

They look the same everywhere: `MPLBACKEND`, as a notebook sets it, and a user's matplotlibrc have no say in them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ldlm import files
from ldlm.evaluation.frontier import is_papers

T = TypeVar("T", bound=Mapping[str, Any])

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = "#2f6db3", "#d9822b", "#3d8f5f", "#b8433a", "#8a8f98"
SERIES = (BLUE, ORANGE, GREEN, RED, "#7a5ba8", "#3a9aa8", GREY)


def library() -> Any:
    """matplotlib, imported without the user's choice of a backend, which need not be installed here.

    Nothing is drawn through pyplot, so none is needed; the choice stands for what else uses matplotlib.
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
def house_look() -> Iterator[None]:
    """matplotlib's own settings within the block, in place of the user's."""
    matplotlib = library()
    own = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    with matplotlib.rc_context(own):
        yield


def figure(columns: int, *, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with a row of panels in the house look."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(4.2 * columns, 3.1 * rows), dpi=110, layout="constrained")
    axes = list(np.atleast_1d(made.subplots(rows, columns)).ravel())
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, color="#e7e9ec", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=8)
    return made, axes


def save(made: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with files.replacing(path) as temporary:
        made.savefig(temporary, format="png", dpi="figure")


def smooth(values: Sequence[float], weight: float = 0.8) -> np.ndarray:
    """Exponential smoothing, unbiased at the start; a missing value (NaN) leaves the average as it is."""
    result, average, total = [], 0.0, 0.0
    for value in values:
        if np.isfinite(value):
            average, total = weight * average + (1 - weight) * value, weight * total + 1 - weight
        result.append(average / total if total else np.nan)
    return np.array(result)


def curve(ax: Axes, x: Sequence[float], y: Sequence[float], label: str, color: str) -> None:
    """A noisy series: its values faintly, its smoothed course on top."""
    values = np.array(y, dtype=float)  # a figure that was not finite is null in the file, and a gap here
    ax.plot(x, values, color=color, alpha=0.25, linewidth=0.8)
    ax.plot(x, smooth(values.tolist()), color=color, linewidth=1.6, label=label)


def finish(ax: Axes, title: str, xlabel: str, ylabel: str = "", *, legend: bool = True, where: Any = "best") -> None:
    """Labels in one place."""
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_xlabel(xlabel, fontsize=8)
    ax.set_ylabel(ylabel, fontsize=8)
    if legend:
        ax.legend(fontsize=7.5, frameon=False, loc=where)


@house_look()
def training(run: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """`plots/training.png`: losses, reconstruction, latent spread with the warm-up, loss and density against t."""
    train = [line for line in metrics if line["kind"] == "train"]
    evals = [line for line in metrics if line["kind"] == "eval"]
    if not train or not evals:
        return
    made, (losses, tokens, latents, times) = figure(4)
    steps = [line["step"] for line in train]

    rebuilt = [("l_h", "L_h", ORANGE)] * any(line["l_h"] for line in train)  # 0 where the latents are h itself
    for name, label, color in (("l_diff", "L_diff", BLUE), *rebuilt):
        curve(losses, steps, [line[name] for line in train], label, color)
    eval_steps = [line["step"] for line in evals]
    losses.plot(eval_steps, [line["l_diff_mean"] for line in evals], "--", color=GREY, label="predicting the mean")
    losses.set_yscale("log")
    finish(losses, "Losses", "step", "mean squared error")

    curve(tokens, steps, [line["token_accuracy"] for line in train], "training, with decoder noise", BLUE)
    if "token_accuracy_clean" in evals[-1]:
        tokens.plot(
            eval_steps, [e["token_accuracy_clean"] for e in evals], "o-", ms=3, color=GREEN, label="held out, clean"
        )
    tokens.set_ylim(0, 1)
    finish(tokens, "Token reconstruction", "step", "accuracy")

    curve(latents, steps, [line["latent_std"] for line in train], "latent std", BLUE)
    latents.set_ylim(bottom=0)
    gamma = latents.twinx()
    gamma.plot(steps, [line["gamma"] for line in train], color=ORANGE, linewidth=1.2)
    gamma.set_ylim(0, 1.05)
    gamma.set_ylabel("γ, share of L_diff's gradient that reaches E_z", fontsize=7, color=ORANGE)
    gamma.tick_params(labelsize=7, colors=ORANGE)
    finish(latents, "Latents and warm-up", "step", "per-coordinate std", where="center right")

    by_t = np.array([np.nan if x is None else x for x in evals[-1]["l_diff_by_t"]])
    centres = (np.arange(len(by_t)) + 0.5) / len(by_t)
    times.plot(centres, by_t, "o-", ms=3, color=BLUE, label="held-out L_diff")
    density = times.twinx()
    p = np.array(evals[-1]["timestep_p"])
    density.stairs(p * len(p), np.linspace(0, 1, len(p) + 1), color=ORANGE)
    density.set_ylim(bottom=0)
    density.set_ylabel("density of t in training", fontsize=7, color=ORANGE)
    density.tick_params(labelsize=7, colors=ORANGE)
    finish(times, "Loss against timestep", "t", "L_diff", legend=False)
    save(made, run / "plots" / "training.png")


@house_look()
def dynamics(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Training loss dynamics of one run or several, by name (Figure 3, middle and right), their warm-ups (Figure 5) and
    the spread of their latents."""
    made, (diffusion, decoder, warmup, latents) = figure(4)
    for number, (name, metrics) in enumerate(runs.items()):
        train = [line for line in metrics if line["kind"] == "train"]
        steps, color = [line["step"] for line in train], SERIES[number % len(SERIES)]
        for ax, key in ((diffusion, "l_diff"), (decoder, "l_w"), (latents, "latent_std")):
            curve(ax, steps, [line[key] for line in train], name, color)
        warmup.plot(steps, [line["gamma"] for line in train], color=color, label=name)
    diffusion.set_yscale("log")
    latents.set_ylim(bottom=0)
    finish(diffusion, "Diffusion loss (Fig. 3, middle)", "step", "L_diff")
    finish(decoder, "Decoder loss (Fig. 3, right)", "step", "L_w")
    finish(warmup, "Warm-up (Fig. 5)", "step", "γ(s)")
    finish(latents, "Latents", "step", "per-coordinate std")
    save(made, path)


@house_look()
def timesteps(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Held-out L_diff against t and against F(t) (Figure 6), and the density of t over the course of training."""
    evals = [line for line in metrics if line["kind"] == "eval"]
    if not evals:
        return
    made, (profile, density) = figure(2)
    for key, label, color in (("l_diff_by_t", "time t", ORANGE), ("l_diff_by_u", "adapted time F(t)", BLUE)):
        values = np.array([np.nan if x is None else x for x in evals[-1][key]])
        centres = (np.arange(len(values)) + 0.5) / len(values)
        there = np.isfinite(values)
        profile.plot(centres[there], values[there], "o-", ms=3, color=color, label=label)
    finish(profile, f"Loss against time (Fig. 6), step {evals[-1]['step']:,}", "time", "L_diff")

    p = np.array([line["timestep_p"] for line in evals])
    # An evaluation stands for the steps since the one before, which need not be equally many.
    edges = [0, *(line["step"] for line in evals)]
    shown = density.pcolormesh(edges, np.linspace(0, 1, p.shape[1] + 1), (p * p.shape[1]).T, cmap="Blues", vmin=0)
    density.grid(False)
    made.colorbar(shown, ax=density, pad=0.02).ax.tick_params(labelsize=7)
    finish(density, "Density of t in training", "step", "t", legend=False)
    save(made, path)


@house_look()
def interpolation(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Along the path between two latents, of one run or several, by name: perplexity (Figure 3, left) and entropy with
    their intervals, diversity, real text as reference, and how many tokens change from point to point."""
    made, (ppl, entropy, diversity, edits) = figure(4)
    for number, (name, result) in enumerate(results.items()):
        points, color = result["points"], SERIES[number % len(SERIES)]
        a = [point["a"] for point in points]
        for ax, key in ((ppl, "gen_ppl"), (entropy, "entropy")):
            ax.plot(a, [_value(point, key) for point in points], "o-", ms=4, color=color, label=name)
            low, high = zip(*(_interval(point, key) for point in points), strict=True)
            ax.fill_between(a, low, high, color=color, alpha=0.18, linewidth=0)
        _nothing_to_score(ppl, a, points)
        diversity.plot(a, [point["diversity"] for point in points], "o-", ms=4, color=color, label=name)
        between = (np.array(a[1:]) + np.array(a[:-1])) / 2
        edits.plot(between, [point["edits"] for point in points[1:]], "o-", ms=4, color=color, label=name)
        low, high = zip(*(point["intervals"]["edits"] for point in points[1:]), strict=True)
        edits.fill_between(between, low, high, color=color, alpha=0.18, linewidth=0)
    kinds = sorted({result["path"] for result in results.values()})
    for ax, key, title in (
        (ppl, "gen_ppl", "Generative perplexity (Fig. 3, left)"),
        (entropy, "entropy", "Entropy (nats)"),
        (diversity, "diversity", "Diversity"),
    ):
        real_text(ax, results, key)
        ax.set_ylim(bottom=0)
        finish(ax, title, f"a, {' and '.join(kinds)} path")
    edits.set_ylim(bottom=0)
    finish(edits, "Edits from point to point", "a", "tokens", legend=False)
    save(made, path)


@house_look()
def frontier(path: Path, summary: Mapping[str, Any]) -> None:
    """Perplexity against entropy as the evaluations grow, marker areas as seconds per text, real text a star (Fig. 1).

    One line joins the paper's sampler at its budgets, one the best at each; all that was screened stands behind them.
    Beside it the finalists alone, numbered, against entropy and against diversity.
    """
    made, (everything, entropy, diversity) = figure(3)
    screened = scored(summary["screened"])
    everything.scatter(
        [row["entropy"] for row in screened],
        [row["gen_ppl"] for row in screened],
        s=6, color=GREY, alpha=0.35, linewidths=0, label=f"screened with {summary['screen_texts']:,} texts",
    )  # fmt: skip
    if summary["real"] is not None and summary["real"]["gen_ppl"] is not None:
        at = (summary["real"]["entropy"], summary["real"]["gen_ppl"])
        everything.scatter(*at, s=160, marker="*", color="#e3b505", edgecolors="black", linewidths=0.6,
                           label="real text", zorder=5)  # fmt: skip
    if everything.has_data():
        everything.set_yscale("log")
    for ax, key in ((everything, "entropy"), (entropy, "entropy"), (diversity, "diversity")):
        _finalists(ax, key, summary)
        ax.margins(0.1)
    what = "generative perplexity"
    without = len(summary["screened"]) - len(screened)
    absent = f"; {without:,} of {len(summary['screened']):,} without a perplexity" if without else ""
    finish(everything, f"Perplexity × entropy (Fig. 1){absent}", "entropy (nats)", what)
    finish(entropy, "The finalists; areas are seconds per text", "entropy (nats)", what, legend=False)
    finish(diversity, "Numbers are evaluations of the denoiser", "diversity", legend=False)
    made.draw_without_rendering()  # from here on everything has its place
    for ax, key in ((entropy, "entropy"), (diversity, "diversity")):
        _number(ax, key, summary)
    save(made, path)


def _finalists(ax: Axes, key: str, summary: Mapping[str, Any]) -> None:
    """The two lines of finalists, and others' samples; their diversity where it is of as many texts."""
    slowest = max(row["seconds"] for row in [*summary["finalists"], *summary["externals"]])
    numbers = set(map(diversity_texts, summary["finalists"]))
    for (label, rows), color in zip(frontier_lines(summary["finalists"]).items(), (ORANGE, BLUE), strict=True):
        x, y = [row[key] for row in rows], [row["gen_ppl"] for row in rows]
        ax.plot(x, y, color=color, linewidth=1, alpha=0.6)
        areas = [12 + 90 * row["seconds"] / slowest for row in rows]
        ax.scatter(x, y, s=areas, color=color, alpha=0.8, linewidths=0, label=label)
    for one, color in zip(summary["externals"], SERIES[2:] * len(summary["externals"]), strict=False):
        area = 12 + 90 * one["seconds"] / slowest
        if one["gen_ppl"] is None or (key == "diversity" and {diversity_texts(one)} != numbers):
            continue
        ax.scatter(one[key], one["gen_ppl"], s=area, color=color, marker="D", label=one["name"])


def _number(ax: Axes, key: str, summary: Mapping[str, Any]) -> None:
    """Write its evaluations beside every finalist, where nothing else stands, with a line to it where that is far."""
    finalists = scored(summary["finalists"])
    if not finalists:
        return
    where = ax.transData.transform([(row[key], row["gen_ppl"]) for row in finalists])
    point = ax.figure.dpi / 72  # in pixels
    taken, inside = [tuple(at) for at in where], ax.bbox.padded(-8 * point)
    papers = frontier_lines(summary["finalists"])["the paper's sampler"]
    for row, (x, y) in zip(finalists, where, strict=True):
        places = [
            (x + distance * point * np.cos(angle), y + distance * point * np.sin(angle))
            for distance in range(10, 60, 4)
            for angle in np.linspace(0.5, 0.5 + 2 * np.pi, 12, endpoint=False)
        ]
        # A number is wider than high.
        free = (at for at in places if all(abs(at[0] - u) > 15 * point or abs(at[1] - v) > 8 * point for u, v in taken))
        place = next((at for at in free if inside.contains(*at)), places[0])
        taken.append(place)
        ax.annotate(
            f"{row['budget']:,}", (x, y), place, xycoords="figure pixels", textcoords="figure pixels", fontsize=7,
            color=ORANGE if row in papers else BLUE,
            ha="center", va="center", arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": GREY, "shrinkA": 4},
        )  # fmt: skip


def scored(rows: Sequence[T]) -> list[T]:
    """Rows that have a perplexity; texts with nothing to score have none."""
    return [row for row in rows if row["gen_ppl"] is not None]


def diversity_texts(row: Mapping[str, Any]) -> int | None:
    """Number of texts that a row's diversity is of; None where an earlier version has not said."""
    return row.get("diversity_texts", row.get("num_texts"))


def frontier_lines(finalists: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The finalists of a sweep as two lines, by name: the paper's sampler, and what was better at each budget.

    Those without a perplexity have no place on them.
    """
    finalists = scored(finalists)
    own = [row for row in finalists if is_papers(row)]
    # A table of an earlier version marks none.
    best = [row for row in finalists if row.get("best", row not in own)]
    return {"the paper's sampler": own, "best at each budget": best}


@house_look()
def mean_of_two(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Perplexity, entropy and diversity of the decoded mean of two latents (Figure 4, right), and of the two ends.

    Against σ_dec where the runs differ in it, and else by name.
    """
    made, axes = figure(3)
    sigmas = [result["sigma_dec"] for result in results.values()]
    by_sigma = None not in sigmas and len(set(sigmas)) == len(sigmas) > 1
    x = np.array(sigmas) if by_sigma else np.arange(len(results), dtype=float)
    order = np.argsort(x)
    found = [list(results.values())[i] for i in order]
    for ax, key, title in (
        (axes[0], "gen_ppl", "Perplexity of the mean of two (Fig. 4, right)"),
        (axes[1], "entropy", "Entropy of the mean of two (nats)"),
        (axes[2], "diversity", "Diversity of the mean of two"),
    ):
        ends = [(_value(result["points"][0], key) + _value(result["points"][-1], key)) / 2 for result in found]
        ax.plot(x[order], ends, "s" + "-" * by_sigma, ms=4, color=ORANGE, label="the two, reconstructed")
        means = np.array([_value(result["mean"], key) for result in found])
        # Diversity has no interval. A bootstrap interval need not hold the figure itself.
        low, high = np.array([_interval(result["mean"], key) for result in found]).T
        errors = np.nan_to_num(np.maximum(0, [means - low, high - means]))
        ax.errorbar(
            x[order], means, errors, fmt="o" + "-" * by_sigma, ms=5, capsize=3, color=BLUE, label="decoded mean"
        )
        if key == "gen_ppl":
            _nothing_to_score(ax, x[order], [result["mean"] for result in found])
        real_text(ax, results, key)
        ax.set_ylim(bottom=0)
        if not by_sigma:
            ax.set_xticks(x, list(results), rotation=20 if len(results) > 2 else 0)
            ax.margins(x=0.3)
        finish(ax, title, "σ_dec" if by_sigma else "")
    save(made, path)


def _value(figures: Mapping[str, Any], key: str) -> float:
    """A figure; NaN, which is not drawn, where texts have nothing to score."""
    return np.nan if figures[key] is None else figures[key]


def _interval(figures: Mapping[str, Any], key: str) -> tuple[float, float]:
    """Its interval, if it has one."""
    return figures["intervals"].get(key) or (np.nan, np.nan)


def _nothing_to_score(ax: Axes, x: Iterable[float], rows: Sequence[Mapping[str, Any]]) -> None:
    """Crosses at the foot of a panel, where texts have no perplexity."""
    places = [at for at, row in zip(x, rows, strict=True) if row["gen_ppl"] is None]
    if places:
        ax.plot(places, [0] * len(places), "x", color=RED, clip_on=False, zorder=5, label="nothing to score")


def real_is_alike(result: Mapping[str, Any]) -> bool:
    """Whether an interpolation has the diversity of as many real texts as decoded ones."""
    return diversity_texts(result["real"]) == diversity_texts(result["mean"]) is not None


def real_text(ax: Axes, results: Mapping[str, Mapping[str, Any]], key: str) -> None:
    """Dashed lines at what real text has: one where all results were measured on the same, else one of each.

    None for diversity in results of earlier versions, where real text is of twice as many texts as the others.
    """
    if key == "diversity" and not all(map(real_is_alike, results.values())):
        return
    values = [result["real"][key] for result in results.values() if result["real"][key] is not None]
    for number, value in enumerate(dict.fromkeys(values)):
        color = GREY if len(set(values)) == 1 else SERIES[values.index(value) % len(SERIES)]
        ax.axhline(value, linestyle="--", linewidth=1, color=color, label="real text" if number == 0 else None)


@house_look()
def comparison(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Perplexity, entropy and diversity of several sets of texts as bars; each row has these and a name."""
    made, (ppl, entropy, diversity) = figure(3)
    names = [row["name"] for row in rows]
    numbers = set(map(diversity_texts, rows))
    of = f" of {numbers.pop():,} texts each" if len({row["num_texts"] for row in rows} | numbers) > 1 else ""
    for ax, key, title in (
        (ppl, "gen_ppl", "Generative perplexity"),
        (entropy, "entropy", "Entropy (nats)"),
        (diversity, "diversity", f"Diversity{of}"),
    ):
        values = [row[key] or 0.0 for row in rows]
        shown = ["none" if row[key] is None else f"{row[key]:,.{2 if row[key] < 100 else 0}f}" for row in rows]
        bars = ax.barh(names, values, color=[GREY, BLUE, RED][: len(rows)], height=0.6)
        ax.bar_label(bars, shown, fontsize=8, padding=3)
        ax.invert_yaxis()
        ax.grid(False)
        ax.margins(x=0.18)
        finish(ax, title, "", legend=False)
    save(made, path)
