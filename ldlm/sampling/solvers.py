"""Solvers of the reverse process. They know no network.

Every solver here is linear in what it has seen, so a solver is a table. Of a schedule and a grid of times it makes one
row of four coefficients for each evaluation of the denoiser, with which

    ẑ ← denoise(z, t, ẑ_prev),    z ← state · z + estimate · ẑ + last · ẑ_prev + noise · ε,

where ẑ_prev is the self-conditioning estimate, the ẑ of the row before (zeros at first), and ε standard normal noise.
`solve` follows such a `Recurrence` for any denoiser; `generation.ReverseProcess` does so for a network, a row at a time
on the device.

Euler–Maruyama is the paper's (SPEC 8). The others start from the exact solution of the probability-flow ODE over an
interval from s down to t,

    z_t = (σ_t/σ_s) z_s + (α_t − α_s σ_t/σ_s) ẑ̄,

where ẑ̄ is the mean of ẑ_0 over the interval, weighted by the growth of α/σ (Lu et al., 2022, Eq. 3.4 in x_0-form).
They differ in how they estimate it. Nothing in it diverges at s = 1, where α = 0 and σ = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldlm.config import SamplerConfig
from ldlm.errors import InputError
from ldlm.model.diffusion import Schedule, score

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # z (B, …), t (a scalar), ẑ_prev → ẑ_0 (B, …)
Noise = Callable[[int], Tensor]  # number of the row → ε of z's shape; keyed by the text's seed it is the text's own
InverseCDF = Callable[[Tensor], Tensor]

# λ(1) = −∞, so a grid in log-SNR begins where α is 1 % of σ, at t = 0.98 of the paper's schedule.
LOG_SNR_START = -9.21


class Recurrence(NamedTuple):
    """A solver on a grid: float64 tensors (E,), a row for each evaluation of the denoiser."""

    times: Tensor  # of the evaluations
    state: Tensor
    estimate: Tensor
    last: Tensor
    noise: Tensor  # 0 in the last row: what comes out is the mean

    @property
    def coefficients(self) -> Tensor:
        """(E, 4): of z, ẑ, ẑ_prev and ε."""
        return torch.stack(self[1:], dim=-1)


Solver = Callable[[Schedule, Tensor], Recurrence]  # of a decreasing grid t_0 … t_N (N+1,), float64


class End(NamedTuple):
    """Where a solver ends, both of z's shape; `SamplerConfig.final` chooses."""

    mean: Tensor  # the state, without the noise of the last step
    x0: Tensor  # the last estimate ẑ_0


def solve(recurrence: Recurrence, denoise: Denoise, z: Tensor, noise: Noise) -> End:
    """Follow a recurrence from z, which is at the first of its times, with any denoiser: one in closed form, say."""
    z_hat = torch.zeros_like(z)
    for row, (t, *coefficients) in enumerate(zip(*recurrence, strict=True)):
        z_hat_prev, z_hat = z_hat, denoise(z, t, z_hat)
        z = advance(coefficients, z, z_hat, z_hat_prev, noise(row) if recurrence.noise[row] else None)
    return End(z, z_hat)


def advance(coefficients: Iterable[Tensor], z: Tensor, z_hat: Tensor, z_hat_prev: Tensor, eps: Tensor | None) -> Tensor:
    """The next z, by the four coefficients of a row; of a solver without noise `eps` is None."""
    state, estimate, of_last, of_noise = coefficients
    z = state * z + estimate * z_hat + of_last * z_hat_prev
    return z if eps is None else z + of_noise * eps


# ----------------------------------------------------------------------------------------------------------------------
# Grids


def time_grid(config: SamplerConfig, schedule: Schedule | None = None, quantile: InverseCDF | None = None) -> Tensor:
    """t_0 > t_1 > … > t_N = t_min (N+1,), float64, for N = `config.steps` steps.

    `grid="time"` has equal steps in t from 1, as in the paper. `learned` has equal steps in F(t), the time in which
    the loss grows linearly (Section 5.3); `quantile` is F⁻¹ on [0, 1]. `log-snr` has equal steps in ln(α²/σ²).
    """
    uniform = torch.linspace(1.0, 0.0, config.steps + 1, dtype=torch.float64)
    if config.grid == "learned":
        assert quantile is not None
        # The part of F⁻¹ above t_min, found by stretching: F(t_min) itself is not needed.
        return _above(quantile, config.t_min, uniform)
    if config.grid == "log-snr":
        assert schedule is not None
        end = schedule.log_snr(torch.tensor(config.t_min, dtype=torch.float64))
        times = schedule.time_of_log_snr(end + uniform * (LOG_SNR_START - end))
        times[-1] = config.t_min  # but for rounding it is
        return times
    return config.t_min + (1 - config.t_min) * uniform


def _above(quantile: InverseCDF, t_min: float, uniform: Tensor) -> Tensor:
    """F⁻¹ at equal steps from 1 down to F(t_min), which bisection finds."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        below = quantile(torch.tensor([middle], dtype=torch.float64)).item() < t_min
        low, high = (middle, high) if below else (low, middle)
    times = quantile(high + (1 - high) * uniform)
    times[0], times[-1] = 1.0, t_min
    return times


# ----------------------------------------------------------------------------------------------------------------------
# Guidance


def guided(denoise: Denoise, guidance: float | Tensor) -> Denoise:
    """Self-conditioning guidance (SPEC 8), of two evaluations: ẑ = ẑ_∅ + w (ẑ_sc − ẑ_∅). At w = 1 it is ẑ_sc."""

    def extrapolated(z: Tensor, t: Tensor, z_hat_prev: Tensor) -> Tensor:
        without = denoise(z, t, torch.zeros_like(z_hat_prev))
        return without + guidance * (denoise(z, t, z_hat_prev) - without)

    return extrapolated


# ----------------------------------------------------------------------------------------------------------------------
# Solvers


def euler_maruyama(schedule: Schedule, times: Tensor, *, beta_clip: float = 0.95) -> Recurrence:
    """The paper's solver: Euler–Maruyama on the reverse SDE dz = (−½βz − β·score) dt + √β dw̄, backwards in time.

    β(t) diverges at t = 1, so t is clipped to `beta_clip` inside β, and nowhere else.
    """
    t, t_next = times[:-1], times[1:]
    growth = schedule.beta(t.clamp(max=beta_clip)) * (t - t_next)  # β dt
    one, none = torch.ones_like(t), torch.zeros_like(t)
    # The score is linear in z and ẑ_0: what a 1 of each adds to it.
    state = 1 + growth * (0.5 + score(schedule, one, none, t))
    return Recurrence(t, state, growth * score(schedule, none, one, t), none, _but_the_last(growth.sqrt()))


def ddim(schedule: Schedule, times: Tensor, *, eta: float = 0.0) -> Recurrence:
    """DDIM (Song et al., 2021, Eq. 12): at η = 0 the ODE by Euler steps, at η = 1 ancestral sampling. First order."""
    s, t = times[:-1], times[1:]
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.alpha_sigma(s), schedule.alpha_sigma(t)
    fresh = eta * (sigma_t / sigma_s) * (1 - (alpha_s / alpha_t) ** 2).sqrt()  # Eq. 16
    kept = (sigma_t**2 - fresh**2).sqrt() / sigma_s  # of ε̂ = (z − α ẑ_0)/σ
    return Recurrence(s, kept, alpha_t - alpha_s * kept, torch.zeros_like(s), _but_the_last(fresh))


def heun(schedule: Schedule, times: Tensor) -> Recurrence:
    """Heun's method on the ODE (Karras et al., 2022, Algorithm 1), in the exponential form above. Second order.

    Two evaluations a step: ẑ̄ is the mean of ẑ_0 at the beginning and at the end that this beginning leads to. The
    second row replaces one by the other in half of what the first has added.
    """
    shrink, gain = _ode(schedule, times)
    one, none = torch.ones_like(gain), torch.zeros_like(gain)
    rows = (times[:-1], times[1:]), (shrink, one), (gain, gain / 2), (none, -gain / 2), (none, none)
    return Recurrence(*(torch.stack(column, dim=-1).flatten() for column in rows))


def dpm_solver_pp_2m(schedule: Schedule, times: Tensor, *, stochastic: bool = False) -> Recurrence:
    """DPM-Solver++(2M) of Lu et al. (2022, Algorithm 2): ẑ_0 extrapolated from the last two evaluations. Second order.

    `stochastic` solves the reverse SDE instead of the ODE (their SDE-DPM-Solver++(2M), Eq. B.7 in midpoint form).
    """
    h = schedule.log_snr(times).diff() / 2
    shrink, gain = (_sde if stochastic else _ode)(schedule, times)
    # ẑ̄ is in the middle of the interval, on the line through the last two; of the first there is one alone.
    ahead = torch.cat([torch.zeros(1, dtype=h.dtype), h[1:] / h[:-1] / 2])
    noise = torch.zeros_like(h)
    if stochastic:
        noise = _but_the_last(schedule.alpha_sigma(times[1:])[1] * (-torch.expm1(-2 * h)).sqrt())
    return Recurrence(times[:-1], shrink, gain * (1 + ahead), -gain * ahead, noise)


def _ode(schedule: Schedule, times: Tensor) -> tuple[Tensor, Tensor]:
    """What the exact solution of the ODE over each interval makes of z, and of the mean of ẑ_0 in it."""
    alpha, sigma = schedule.alpha_sigma(times)
    shrink = sigma[1:] / sigma[:-1]
    return shrink, alpha[1:] - alpha[:-1] * shrink


def _sde(schedule: Schedule, times: Tensor) -> tuple[Tensor, Tensor]:
    """What the mean of the exact solution of the SDE over each interval makes of z, and of the mean of ẑ_0 in it."""
    alpha, sigma = schedule.alpha_sigma(times)
    shrink = sigma[1:] / sigma[:-1]
    forgets = shrink * alpha[:-1] / alpha[1:]  # e^(−h)
    return shrink * forgets, alpha[1:] * (1 - forgets**2)


def _but_the_last(noise: Tensor) -> Tensor:
    return torch.cat([noise[:-1], torch.zeros(1, dtype=noise.dtype)])


# ----------------------------------------------------------------------------------------------------------------------
# By name


def solver(config: SamplerConfig) -> Solver:
    """The solver that a configuration names, with its settings."""
    solvers: dict[str, Solver] = {
        "euler-maruyama": partial(euler_maruyama, beta_clip=config.beta_clip),
        "ddim": partial(ddim, eta=config.eta),
        "heun": heun,
        "dpm++2m": dpm_solver_pp_2m,
        "dpm++2m-sde": partial(dpm_solver_pp_2m, stochastic=True),
    }
    return solvers[config.solver]


# Why a solver is not offered on a grid and with an end, and what to take instead: at 128 steps Gaussian data come out
# more than 3 % too wide or too narrow (`python -m benchmarks samplers`, docs/sampling.md).
_DIVERGES = ("its first steps are so long there that it diverges", "--grid log-snr or --grid time")
_NARROWS = ("so few of its steps are near t = 0 that the data come out too narrow", "--grid learned")
_WIDENS = ("its last step extrapolates so far that the data come out too wide", "--grid log-snr, or --final x0")
_FORGETS = ("so much noise in so long steps makes the data too narrow", "--eta 0, or --grid learned")
_REFUSED = {
    ("euler-maruyama", "learned", "mean"): _DIVERGES,
    ("euler-maruyama", "learned", "x0"): _DIVERGES,
    ("ddim", "time", "mean"): _NARROWS,
    ("ddim", "time", "x0"): _NARROWS,
    ("dpm++2m-sde", "time", "mean"): _WIDENS,
    ("dpm++2m-sde", "learned", "mean"): _WIDENS,
}
_MOST_ETA = 0.5  # of ddim on the log-snr grid


def is_offered(config: SamplerConfig) -> bool:
    """Whether the solver keeps the width of Gaussian data on this grid and with this end."""
    return _objection(config) is None


def check(config: SamplerConfig, known: SamplerConfig | None = None) -> None:
    """`InputError` for a solver, grid and end that are not offered, unless `known` has the same.

    `known` are the settings of an exported model: it goes on to draw as it was exported.
    """
    objection = _objection(config)
    if objection is None or (known is not None and _way(config) == _way(known)):
        return
    reason, remedy = objection
    asked = f"solver {config.solver} on grid {config.grid} with final {config.final}"
    raise InputError(f"{asked} is not offered: {reason}; take {remedy}")


def _objection(config: SamplerConfig) -> tuple[str, str] | None:
    if config.solver == "ddim" and config.grid == "log-snr" and config.eta > _MOST_ETA:
        return _FORGETS
    return _REFUSED.get((config.solver, config.grid, config.final))


def _way(config: SamplerConfig) -> tuple[Any, ...]:
    return config.solver, config.grid, config.final, config.eta


def evaluations_per_step(config: SamplerConfig) -> int:
    """Forward passes of the denoiser that a step takes (SPEC 12.8)."""
    return (2 if config.solver == "heun" else 1) * (2 if config.guidance != 1 else 1)
