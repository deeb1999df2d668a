"""Width of Gaussian data after every solver, on every grid and at both ends: exact, without drawing anything.

The data are N(0, s²) and the denoiser is exact, ẑ_0 = α s² z / (α² s² + σ²), so the result is a linear combination of
the initial noise and the noise of the steps, whose coefficients are computed here. The learned grid is that of the
exact loss.
"""

from __future__ import annotations

import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldlm import config
from ldlm.config import SamplerConfig, TimestepConfig
from ldlm.model.diffusion import Schedule
from ldlm.model.timesteps import TimestepSampler, bin_probabilities
from ldlm.sampling import solvers

STDS = (0.3, 1.0, 3.8)
STEPS = (8, 32, 128)
SCHEDULE = Schedule()


def run(folder: Path) -> list[dict[str, Any]]:
    """A row for each solver, grid and end: ratio of standard deviations to the data's, minus 1, by steps and data."""
    choices: dict[str, SamplerConfig] = {"the paper's": SamplerConfig(**config.SAMPLERS["paper"])}
    for solver in typing.get_args(config.Solver):
        choices |= {f"`{solver}`, `{grid}`": SamplerConfig(solver=solver, grid=grid) for grid in _GRIDS}
    choices |= {f"`ddim`, η = 1, `{grid}`": SamplerConfig(solver="ddim", eta=1.0, grid=grid) for grid in _GRIDS}
    rows = []
    for name, sampler in choices.items():
        found = {steps: [widths(replace(sampler, steps=steps), std) for std in STDS] for steps in STEPS}
        for end, final in enumerate(typing.get_args(config.Final)):
            wide = {
                steps: [pair[end] / std - 1 for pair, std in zip(found[steps], STDS, strict=True)] for steps in STEPS
            }
            offered = solvers.is_offered(replace(sampler, final=final))
            rows.append({"sampler": name, "t_min": sampler.t_min, "final": final, "offered": offered, "wide": wide})
    return rows


_GRIDS = typing.get_args(config.Grid)


def widths(sampler: SamplerConfig, std: float) -> tuple[float, float]:
    """Standard deviations of the last mean and of the last ẑ_0, for data of standard deviation `std`."""
    times = solvers.time_grid(sampler, SCHEDULE, learned(std).quantile)
    rows = solvers.solver(sampler)(SCHEDULE, times)
    unit = torch.eye(1 + len(rows.times), dtype=torch.float64)

    def denoise(z: Tensor, t: Tensor, last: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.alpha_sigma(t)
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * z

    end = solvers.solve(rows, denoise, unit[0], lambda row: unit[1 + row])
    return end.mean.norm().item(), end.x0.norm().item()


def learned(std: float) -> TimestepSampler:
    """Adaptive timesteps as training makes them from the exact loss, s² σ² / (α² s² + σ²)."""
    settings = TimestepConfig()
    alpha, sigma = SCHEDULE.alpha_sigma(torch.linspace(0, 1, settings.bins + 1, dtype=torch.float64))
    losses: np.ndarray = (std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)).numpy()
    found = TimestepSampler(settings, config.DiffusionConfig().t_min)
    found.p = bin_probabilities(losses, settings.floor)
    return found


def report(rows: list[dict[str, Any]]) -> str:
    """Markdown: per cent too wide, for data of each standard deviation."""
    stds = ", ".join(f"{std:g}" for std in STDS)
    head = f"Per cent by which data of standard deviation {stds} come out too wide, by the number of steps."
    lines = [f"| sampler | t_min | end | {' | '.join(f'{steps} steps' for steps in STEPS)} | |", "|" + "---|" * 7]
    for row in rows:
        cells = [", ".join(f"{100 * wide:+.1f}" for wide in row["wide"][steps]) for steps in STEPS]
        offered = "" if row["offered"] else "refused"
        lines.append(f"| {row['sampler']} | {row['t_min']:g} | {row['final']} | {' | '.join(cells)} | {offered} |")
    return "\n".join([head, "", *lines])
