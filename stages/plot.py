"""Plots of runs, from their metrics alone: of one run, even while it trains, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldlm import artifact
from ldlm import config as configs
from ldlm.config import AnyTrainConfig
from ldlm.errors import InputError
from ldlm.location import folder_names
from ldlm.pages import plots
from ldlm.pages.curves import Course
from ldlm.training.log import MetricsFile


def run(runs: Sequence[Path], out: Path | None) -> list[Path]:
    """Redraw each run's `plots/`; given `out`, also `dynamics.png` there, with all runs. Returns the files drawn."""
    names, courses = folder_names(runs), {path: _course(path) for path in runs}
    if len(runs) > 1 and out is None:
        raise InputError("several runs go into one picture; say where with --output DIR")
    for path in runs:
        plots.of_run(path, courses[path])
    drawn = [picture for path in runs for picture in sorted((path / "plots").glob("*.png"))]
    if out is not None:
        plots.dynamics(out / "dynamics.png", dict(zip(names, courses.values(), strict=True)))
        drawn.append(out / "dynamics.png")
    return drawn


def _course(path: Path) -> Course[AnyTrainConfig]:
    """What was measured during the training of a run, and its settings."""
    found = artifact.open_artifact(path, "run", complete=False)
    metrics = MetricsFile(path / "metrics.jsonl").read()
    if not metrics:
        raise InputError(f"{path} has no metrics yet; let `ldlm train` take some steps first")
    return Course(configs.stored_training(found.config), metrics)
