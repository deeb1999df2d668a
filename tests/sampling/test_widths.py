"""How wide Gaussian data come out of every solver, grid and end, against recursions that share no code with `ldlm`.

The data are N(0, s²), whose exact denoiser is ẑ_0 = c z with c = α s² / (α² s² + σ²). So the covariance of the state z
and the estimate before it follows a recursion, which is written here from what the papers publish, in plain floats.
"""

from __future__ import annotations

import itertools
import math
import re
import typing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from written_out import beta, gaussian_denoiser

from ldlm import config as configs
from ldlm.config import DiffusionConfig, SamplerConfig, TimestepConfig
from ldlm.errors import InputError
from ldlm.model.diffusion import Schedule
from ldlm.model.timesteps import TimestepSampler, bin_probabilities
from ldlm.sampling import solvers

STDS = (0.3, 1.0, 3.8)
SOLVERS, GRIDS, FINALS = map(typing.get_args, (configs.Solver, configs.Grid, configs.Final))
VARIANTS = [*((solver, 0.0) for solver in SOLVERS), ("ddim", 0.5), ("ddim", 1.0)]  # with η


# ----------------------------------------------------------------------------------------------------------------------
# The recursions


def alpha_sigma(t: float) -> tuple[float, float]:
    """Tangent schedule with d = 3 (SPEC 6)."""
    ratio = 3 * math.tan(math.pi * t / 2)
    return 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)


def log_ratio(t: float) -> float:
    """Lu et al.'s λ, ln α/σ; at t = 1 that of a double's π/2."""
    alpha, sigma = alpha_sigma(t)
    return math.log(alpha / sigma)


def exact_loss(t: float, std: float) -> float:
    """The mean squared error of the exact denoiser: the variance of z_0 given z_t."""
    alpha, sigma = alpha_sigma(t)
    return std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)


def inverse(xs: list[float], ys: list[float], y: float) -> float:
    """The x at which the line through the points (x, y), which rises, has this y."""
    i = next(i for i in range(1, len(ys)) if y <= ys[i] or i == len(ys) - 1)
    return xs[i - 1] + (xs[i] - xs[i - 1]) * (y - ys[i - 1]) / (ys[i] - ys[i - 1])


def grid_of(name: str, steps: int, t_min: float, std: float) -> list[float]:
    """Equal steps from 1 to t_min in t, in F(t) of the exact loss (Eq. 5), and in ln α²/σ² from −9.21."""
    shares = [1 - i / steps for i in range(steps + 1)]
    if name == "time":
        return [t_min + (1 - t_min) * share for share in shares]
    if name == "log-snr":
        low, high = -9.21 / 2, log_ratio(t_min)
        ratios = [math.exp(high + (low - high) * share) for share in shares]
        return [2 / math.pi * math.atan2(1, 3 * ratio) for ratio in ratios]
    edges = [i / 100 for i in range(101)]
    losses = [exact_loss(t, std) for t in edges]
    p = [max((b - a) / (losses[-1] - losses[0]), 1e-3 / 100) for a, b in itertools.pairwise(losses)]
    below = [0.0, *(total / sum(p) for total in itertools.accumulate(p))]
    start = inverse(below, edges, t_min)
    return [1.0, *(inverse(edges, below, start + (1 - start) * share) for share in shares[1:-1]), t_min]


class Step(NamedTuple):
    """z ← z · `z` + ẑ · `x` + ẑ' · `before` + `noise` · ε."""

    z: float
    x: float
    before: float = 0.0
    noise: float = 0.0


def published(solver: str, eta: float, times: list[float]) -> list[Step]:
    """The step from each time to the next, for all solvers but Heun, whose step takes two estimates."""
    found = []
    for i, (s, t) in enumerate(itertools.pairwise(times)):
        (a_s, sigma_s), (a_t, sigma_t), h = alpha_sigma(s), alpha_sigma(t), log_ratio(t) - log_ratio(s)
        if solver == "euler-maruyama":  # SPEC 8; β with its clip
            b, dt = beta(min(s, 0.95)), s - t
            found.append(Step(1 + b * dt / 2 - b * dt / sigma_s**2, b * dt * a_s / sigma_s**2, 0, math.sqrt(b * dt)))
        elif solver == "ddim":  # Song et al. (2021), Eq. 12, with the σ of Eq. 16
            noise = eta * sigma_t / sigma_s * math.sqrt(1 - a_s**2 / a_t**2)
            towards = math.sqrt(sigma_t**2 - noise**2)
            found.append(Step(towards / sigma_s, a_t - towards * a_s / sigma_s, 0, noise))
        else:  # Lu et al. (2022), Algorithm 2 and Eq. B.7; the first step is of first order
            half = 0.0 if i == 0 else h / (log_ratio(s) - log_ratio(times[i - 1])) / 2  # 1/(2r)
            keep, gain, noise = sigma_t / sigma_s, a_t * (1 - math.exp(-h)), 0.0
            if solver == "dpm++2m-sde":
                keep, gain = keep * math.exp(-h), a_t * (1 - math.exp(-2 * h))
                noise = sigma_t * math.sqrt(1 - math.exp(-2 * h))
            found.append(Step(keep, gain * (1 + half), -gain * half, noise))
    return found


def recursion(config: SamplerConfig, std: float) -> tuple[float, float]:
    """Standard deviations of the last mean and of the last ẑ_0."""
    times = grid_of(config.grid, config.steps, config.t_min, std)

    def c(t: float) -> float:
        alpha, sigma = alpha_sigma(t)
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2)

    if config.solver == "heun":  # Karras et al. (2022), Algorithm 1, of z/σ over α/σ, where the slope is ẑ_0
        z = x = 1.0
        for s, t in itertools.pairwise(times):
            (a_s, sigma_s), (a_t, sigma_t) = alpha_sigma(s), alpha_sigma(t)
            growth, first = a_t / sigma_t - a_s / sigma_s, c(s) * z
            x = c(t) * sigma_t * (z / sigma_s + growth * first)
            z = sigma_t * (z / sigma_s + growth * (first + x) / 2)
        return abs(z), abs(x)

    # Var z, Cov(z, ẑ') and Var ẑ', of which the recursion makes the next.
    zz, zb, bb, x = 1.0, 0.0, 0.0, 0.0
    steps = published(config.solver, config.eta, times)
    for i, (s, step) in enumerate(zip(times, steps, strict=False)):
        a, b = step.z + step.x * c(s), step.before  # the next z is a z + b ẑ' + noise
        zz, zb, bb = a * a * zz + 2 * a * b * zb + b * b * bb, c(s) * (a * zz + b * zb), c(s) ** 2 * zz
        x = bb
        if i < len(steps) - 1:
            zz += step.noise**2
    return math.sqrt(zz), math.sqrt(x)


# ----------------------------------------------------------------------------------------------------------------------
# The product


def drawn(
    config: SamplerConfig, std: float, schedule: Schedule | None = None, learned: TimestepConfig | None = None
) -> tuple[float, float]:
    """The same two by `ldlm`, which is linear in the noises: fed with unit vectors, it returns their coefficients."""
    schedule, learned = schedule or Schedule(), learned or TimestepConfig()
    alpha, sigma = schedule.alpha_sigma(torch.linspace(0, 1, learned.bins + 1, dtype=torch.float64))
    losses = std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)
    timesteps = TimestepSampler(learned, DiffusionConfig().t_min)
    if learned.kind == "adaptive":
        timesteps.p = bin_probabilities(losses.numpy(), learned.floor)
    rows = solvers.solver(config)(schedule, solvers.grid_of(config, schedule, timesteps))
    unit = torch.eye(1 + len(rows.times), dtype=torch.float64)
    end = solvers.solve(rows, gaussian_denoiser(std, schedule), unit[0], lambda row: unit[1 + row])
    return end.mean.norm().item(), end.x0.norm().item()


@pytest.mark.parametrize("t_min", [0.005, 0.05])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("solver", "eta"), VARIANTS)
def test_every_solver_grid_and_end_has_the_width_of_its_published_recursion(solver, eta, grid, t_min):
    """Also those that are not offered: models that were exported with them draw on."""
    for std, steps in itertools.product(STDS, (1, 2, 8, 32, 128)):
        config = SamplerConfig(solver=solver, grid=grid, steps=steps, eta=eta, t_min=t_min)
        assert drawn(config, std) == pytest.approx(recursion(config, std), rel=1e-10), (std, steps)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("final", FINALS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("solver", "eta"), VARIANTS)
def test_what_is_offered_keeps_the_width_of_the_data_at_128_steps_and_what_is_not_does_not(
    solver, eta, grid, final, flat
):
    """Where F(t) is t, `learned` is judged by the times that it has."""
    config = SamplerConfig(solver=solver, grid=grid, final=final, eta=eta, steps=128)
    times = replace(config, grid="time") if flat and grid == "learned" else config
    widths = [recursion(times, std)[FINALS.index(final)] / std for std in STDS]
    assert solvers.is_offered(config, flat=flat) == (widths == pytest.approx([1, 1, 1], abs=0.03))


# The learned grids of the presets have other bins and another floor. The third is also that of a run without a refresh.
@pytest.mark.parametrize("timesteps", ["owt-1024", "tiny", "uniform"])
@pytest.mark.parametrize("kind", ["tangent", "cosine"])  # linear leaves more noise at t_min, of which x0 is rid
def test_the_default_keeps_the_width_of_the_data_with_its_steps(kind, timesteps):
    default, learned = SamplerConfig(), TimestepConfig(kind="uniform")
    if timesteps != "uniform":
        learned = configs.from_dict(configs.TrainConfig, configs.preset(timesteps).overrides).timesteps
    for std in STDS:
        width = drawn(default, std, Schedule(kind), learned)[FINALS.index(default.final)]
        assert width == pytest.approx(std, rel=0.03)
        quarter = drawn(replace(default, steps=8), std, Schedule(kind), learned)[FINALS.index(default.final)]
        assert quarter == pytest.approx(std, rel=0.125 if timesteps == "uniform" else 0.085)  # and was 29 % too wide


def test_the_papers_sampler_draws_data_that_are_as_wide_as_z_where_it_ends():
    """At t = 0.05 data of standard deviation 0.3 are 0.37 wide, and the last step leaves some noise out."""
    paper = SamplerConfig(**configs.SAMPLERS["paper"])
    alpha, sigma = alpha_sigma(0.05)
    for std in STDS:
        assert drawn(paper, std)[0] == pytest.approx(math.hypot(alpha * std, sigma), rel=0.035)


# ----------------------------------------------------------------------------------------------------------------------
# What is not offered


def refused() -> list[tuple[SamplerConfig, bool]]:
    everything = itertools.product(VARIANTS, GRIDS, FINALS)
    found = [SamplerConfig(solver=s, eta=eta, grid=grid, final=final) for (s, eta), grid, final in everything]
    return [(config, flat) for config in found for flat in (False, True) if not solvers.is_offered(config, flat=flat)]


@pytest.mark.parametrize(("config", "flat"), refused())
def test_a_refusal_is_one_line_whose_advice_works(config, flat):
    with pytest.raises(InputError) as caught:
        solvers.check(config, flat=flat)
    message = str(caught.value)
    assert "\n" not in message
    if flat and config.grid == "learned":
        assert f"solver {config.solver} on grid learned, which is time in this model" in message
    else:
        assert f"solver {config.solver} on grid {config.grid} with final {config.final}" in message
    for remedy in message.partition("; take ")[2].split(" or "):
        given = dict(re.findall(r"--(\w+) ([\w-]+)", remedy))
        assert given
        solvers.check(configs.from_dict(SamplerConfig, {**configs.to_dict(config), **given}), flat=flat)
    solvers.check(config, known=replace(config, steps=7, temperature=0.5), flat=flat)
    with pytest.raises(InputError):
        solvers.check(config, known=SamplerConfig(), flat=flat)


# ----------------------------------------------------------------------------------------------------------------------
# The table


def test_the_table_in_the_docs_is_what_the_benchmark_prints(tmp_path):
    from benchmarks import samplers as benchmark

    printed = benchmark.report(benchmark.run(tmp_path))
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 * (1 + len(GRIDS) * (len(SOLVERS) + 1))
    assert "\n".join(rows) in (Path(__file__).parent.parent.parent / "docs" / "sampling.md").read_text(encoding="utf-8")
