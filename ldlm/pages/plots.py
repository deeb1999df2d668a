"""The pictures of runs and sweeps: the charts of `kinds`, `results` and `fronts` as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldlm.config import AnyTrainConfig
from ldlm.location import folder_name
from ldlm.pages import drawing, fronts, kinds, results
from ldlm.pages.chart import SERIES, Chart
from ldlm.pages.curves import Course
from ldlm.pages.kinds import Kind

if TYPE_CHECKING:  # pages never import torch, and this does
    from ldlm.training.journal import Journal

Row = Mapping[str, Any]


def of_run(run: Path, course: Course[AnyTrainConfig]) -> None:
    """Write the pictures of a run to its `plots/`: `training.png`, `dynamics.png`, `timesteps.png`."""
    training(run, course)
    dynamics(run / "plots" / "dynamics.png", {folder_name(run): course})
    timesteps(run / "plots" / "timesteps.png", course)


def at_the_end(journal: Journal, config: AnyTrainConfig) -> None:
    """Write the pictures of a training that has ended, unless its `plots` is off.

    A failure is only noted, since the run is complete without them.
    """
    if not config.plots:
        return
    try:
        of_run(journal.out, Course(config, journal.metrics.read()))
    except Exception as error:
        journal.progress.note(f"no plots ({type(error).__name__}: {error}); `ldlm plot {journal.out}` draws them")


def training(run: Path, course: Course[AnyTrainConfig]) -> None:
    """Write `plots/training.png`: the charts of the training in the run's report, except speed."""
    if {"train", "eval"} <= {line["kind"] for line in course.metrics}:
        drawing.png(run / "plots" / "training.png", kinds.of(course.config).training(course))


def dynamics(path: Path, runs: Mapping[str, Course[AnyTrainConfig]]) -> None:
    """Write the losses, warm-ups and latents (Figures 3 and 5) of one or more runs, by name; for rivals, the losses."""
    colors = dict(zip(runs, cycle(SERIES), strict=False))
    by_kind: dict[Kind, dict[str, Sequence[Row]]] = {}
    for name, course in runs.items():
        by_kind.setdefault(kinds.of(course.config), {})[name] = course.metrics
    charts = [chart for kind, metrics in by_kind.items() for chart in kind.dynamics(metrics, colors)]
    drawing.png(path, [_of_one(chart) if len(runs) > 1 else chart for chart in charts])


def _of_one(chart: Chart) -> Chart:
    """The chart, with a note that names its line if there is only one: such a chart has no legend."""
    return replace(chart, note=f"Of {chart.marks[0].name} alone.") if len(chart.marks) == 1 else chart


def timesteps(path: Path, course: Course[AnyTrainConfig]) -> None:
    """Write held-out losses against time and, for LDLM, the density of t over the course of training (Figure 6)."""
    drawing.png(path, kinds.of(course.config).timesteps(course))


def sweep(path: Path, found: Row) -> None:
    """Write the frontier of a sweep (Figure 1).

    For a run of LDLM, it is perplexity against entropy, evaluations and diversity, of all variants and of the
    finalists. For a rival's run, or several runs, it is perplexity and entropy against evaluations, against seconds,
    and against each other.
    """
    if "points" in found:
        drawing.png(path, fronts.charts(found), columns=3, shared_legend=True)
    else:
        drawing.png(path, results.frontier(found))
