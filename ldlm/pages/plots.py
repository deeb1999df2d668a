"""The pictures that commands leave: the charts of `curves`, `results` and `fronts` as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldlm.pages import curves, drawing, fronts, results

Row = Mapping[str, Any]


def of_run(run: Path, metrics: Sequence[Row]) -> None:
    """Write the pictures of a run to its `plots/`: `training.png`, `dynamics.png`, `timesteps.png`."""
    training(run, metrics)
    dynamics(run / "plots" / "dynamics.png", {run.name: metrics})
    timesteps(run / "plots" / "timesteps.png", metrics)


def training(run: Path, metrics: Sequence[Row]) -> None:
    """Write `plots/training.png`: losses, timesteps and latents, as in the run's report."""
    if {"train", "eval"} <= {line["kind"] for line in metrics}:
        charts = [*curves.losses(metrics), *curves.timesteps(metrics), *curves.latents(metrics)]
        drawing.png(run / "plots" / "training.png", charts)


def dynamics(path: Path, runs: Mapping[str, Sequence[Row]]) -> None:
    """Write the losses, warm-ups and latents of one run or several, by name (Figures 3 and 5)."""
    drawing.png(path, curves.dynamics(runs))


def timesteps(path: Path, metrics: Sequence[Row]) -> None:
    """Write held-out L_diff against time, and the density of t over the course of training (Figure 6)."""
    drawing.png(path, curves.timesteps(metrics))


def interpolation(path: Path, found: Mapping[str, Row]) -> None:
    """Write the figures along the path between two latents, of one run or several, by name (Figure 3, left)."""
    drawing.png(path, results.along(found))


def mean_of_two(path: Path, found: Mapping[str, Row]) -> None:
    """Write the figures of the decoded mean of two latents, of one run or several, by name (Figure 4, right)."""
    drawing.png(path, results.mean_of_two(found))


def sweep(path: Path, found: Row) -> None:
    """Write the frontier of a sweep (Figure 1).

    Of a run of LDLM it is perplexity against entropy, evaluations and diversity, of all and of the finalists. Of a
    rival's run, and of several runs, it is perplexity and entropy against evaluations, against seconds, and together.
    """
    if "points" in found:
        drawing.png(path, fronts.charts(found), columns=3, shared_legend=True)
    else:
        drawing.png(path, results.frontier(found))


def comparison(path: Path, rows: Sequence[Row]) -> None:
    """Write the figures of several sets of texts as bars."""
    drawing.png(path, results.comparison(rows))
