"""Solvers of the reverse process, independent of any network (Section 4.3, SPEC 8).

Every solver here is linear in the state, the estimates and the noise, so it is a table: for a schedule and a grid of
times it gives a row of four coefficients for each evaluation of the denoiser, with which

    ẑ ← denoise(z, t, ẑ_prev),    z ← a·z + b·ẑ + c·ẑ_prev + d·ε.

ẑ_prev is the estimate of the previous row, zeros at first, and ε is standard normal noise. Rows are fast: a step is the
same few operations for every solver, and `generation.ReverseProcess` takes it without leaving the device. `solve` takes
the same steps one by one with any denoiser, a closed form or a network; traces are drawn with it. A solver that is not
linear, or that chooses its times as it goes, would be a function like `solve`.

Euler–Maruyama is the paper's. The others start from the exact solution of the probability-flow ODE from s down to t,

    z_t = (σ_t/σ_s) z_s + (α_t − α_s σ_t/σ_s) ẑ̄,

where ẑ̄ is the mean of ẑ_0 over the interval, weighted by the growth of α/σ (Lu et al., 2022, Eq. 3.4 in x_0-form).
They differ in how they estimate ẑ̄. At s = 1, where α = 0 and σ = 1, everything is finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldlm.config import SamplerConfig
from ldlm.errors import InputError
from ldlm.model.diffusion import Schedule, ode_step, score
from ldlm.model.timesteps import TimestepSampler

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # z (B, …), t (a scalar) and ẑ_prev (B, …) → ẑ (B, …)
Noise = Callable[[int], Tensor]  # number of the row → ε of z's shape, a function of the text's seed
InverseCDF = Callable[[Tensor], Tensor]  # F⁻¹: [0, 1] → t, both float64 (N,)

# λ(1) = −∞, so a grid in log-SNR begins where α is 1 % of σ, at t = 0.98 of the paper's schedule.
LOG_SNR_START = -9.21


class Recurrence(NamedTuple):
    """A solver on a grid: float64 tensors (E,), a row for each evaluation of the denoiser."""

    times: Tensor  # of the evaluations
    z: Tensor  # a, the coefficient of the state
    z_hat: Tensor  # b, of the estimate
    z_hat_prev: Tensor  # c, of the estimate of the previous row
    eps: Tensor  # d, of the noise; 0 in the last row, so that the result is the mean

    @property
    def coefficients(self) -> Tensor:
        """The four coefficients of each row, (E, 4)."""
        return torch.stack(self[1:], dim=-1)


Solver = Callable[[Schedule, Tensor], Recurrence]  # of a decreasing grid t_0 … t_N (N+1,), float64


class End(NamedTuple):
    """Both results of a solver, of z's shape; `SamplerConfig.final` chooses one."""

    mean: Tensor  # the state, without the noise of the last step
    x0: Tensor  # the last estimate ẑ


def solve(recurrence: Recurrence, denoise: Denoise, z: Tensor, noise: Noise) -> End:
    """Run a recurrence from z, the state at the first of its times, with any denoiser."""
    z_hat = torch.zeros_like(z)
    for row, (t, *coefficients) in enumerate(zip(*recurrence, strict=True)):
        z_hat_prev, z_hat = z_hat, denoise(z, t, z_hat)
        z = advance(coefficients, z, z_hat, z_hat_prev, noise(row) if recurrence.eps[row] else None)
    return End(z, z_hat)


def advance(coefficients: Iterable[Tensor], z: Tensor, z_hat: Tensor, z_hat_prev: Tensor, eps: Tensor | None) -> Tensor:
    """The next state, from the four coefficients of a row; `eps` is None if the solver draws no noise."""
    a, b, c, d = coefficients
    z = a * z + b * z_hat + c * z_hat_prev
    return z if eps is None else z + d * eps


# ----------------------------------------------------------------------------------------------------------------------
# Grids


def grid_of(config: SamplerConfig, schedule: Schedule, timesteps: TimestepSampler) -> Tensor:
    """`time_grid` with the F(t) of a run, and with the grid that is taken there if none is named."""
    return time_grid(settled(config, timesteps), schedule, timesteps.quantile)


def settled(config: SamplerConfig, timesteps: TimestepSampler) -> SamplerConfig:
    """The settings with a grid: if none is named `learned`, or `log-snr` where F(t) is t.

    There, `learned` is `time`, on which the default solver makes narrow data 14 % too narrow (SPEC 13.4).
    """
    if config.grid is not None:
        return config
    return replace(config, grid="log-snr" if timesteps.flat else "learned")


def time_grid(config: SamplerConfig, schedule: Schedule | None = None, quantile: InverseCDF | None = None) -> Tensor:
    """t_0 > t_1 > … > t_N = t_min (N+1,), float64, for N = `config.steps` steps of the grid that is named.

    `grid="time"` has equal steps in t from 1, as in the paper. `learned` has equal steps in F(t), the time in which
    the loss grows linearly (Section 5.3); `quantile` is F⁻¹. `log-snr` has equal steps in ln(α²/σ²).
    """
    assert config.grid is not None
    uniform = torch.linspace(1.0, 0.0, config.steps + 1, dtype=torch.float64)
    if config.grid == "learned":
        assert quantile is not None
        return _above(quantile, config.t_min, uniform)
    if config.grid == "log-snr":
        assert schedule is not None
        end = schedule.log_snr(torch.tensor(config.t_min, dtype=torch.float64))
        times = schedule.time_of_log_snr(end + uniform * (LOG_SNR_START - end))
        times[-1] = config.t_min  # as it already is, but for rounding
        return times
    return config.t_min + (1 - config.t_min) * uniform


def _above(quantile: InverseCDF, t_min: float, uniform: Tensor) -> Tensor:
    """F⁻¹ at equal steps from 1 down to F(t_min).

    F(t_min) is found by bisection: `TimestepSampler.cdf` rounds it differently, which would change the last bits of the
    grid, and thereby texts that have already been drawn.
    """
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
    """Self-conditioning guidance (SPEC 8), in two evaluations: ẑ = ẑ_∅ + w (ẑ_sc − ẑ_∅).

    ẑ_sc is the estimate with ẑ_prev, ẑ_∅ that with zeros in its place, and w is `guidance`; at w = 1 it is ẑ_sc.
    """

    def extrapolated(z: Tensor, t: Tensor, z_hat_prev: Tensor) -> Tensor:
        without = denoise(z, t, torch.zeros_like(z_hat_prev))
        return without + guidance * (denoise(z, t, z_hat_prev) - without)

    return extrapolated


def prompted(with_prompt: Denoise, without: Denoise, guidance: float | Tensor) -> Denoise:
    """Classifier-free guidance by a prompt (Ho & Salimans, 2022), in two evaluations: ẑ = ẑ_0 + w (ẑ_k − ẑ_0).

    ẑ_k is the estimate that sees the prompt's k tokens, ẑ_0 the unconditional one, both with the same ẑ_prev; at w = 1
    it is ẑ_k. `guided` can be applied on top: then both of its estimates are guided by the prompt, in four evaluations.
    """

    def extrapolated(z: Tensor, t: Tensor, z_hat_prev: Tensor) -> Tensor:
        unconditional = without(z, t, z_hat_prev)
        return unconditional + guidance * (with_prompt(z, t, z_hat_prev) - unconditional)

    return extrapolated


# ----------------------------------------------------------------------------------------------------------------------
# Solvers. Each docstring gives the step from s to t = s − Δt as its source writes it, with ẑ = denoise(z, s, ẑ_prev)
# and λ = ln(α/σ); the coefficients in the code are those of z, ẑ, ẑ_prev and ε in that step.


def euler_maruyama(schedule: Schedule, times: Tensor, *, beta_clip: float = 0.95) -> Recurrence:
    """The paper's solver: Euler–Maruyama on the reverse SDE dz = (−½βz − β·score) ds + √β dw̄ (SPEC 8).

        score = −(z − α_s ẑ) / σ_s²
        z ← z + (½β z + β score) Δt + √(β Δt) ε

    β(s) diverges at s = 1, so s is clipped to `beta_clip` inside β and nowhere else. First order.
    """
    s, t = times[:-1], times[1:]
    growth = schedule.beta(s.clamp(max=beta_clip)) * (s - t)  # β Δt
    one, none = torch.ones_like(s), torch.zeros_like(s)
    # The score is linear in z and ẑ: its coefficients are its values at (1, 0) and (0, 1).
    of_z, of_z_hat = score(schedule, one, none, s), score(schedule, none, one, s)
    return Recurrence(
        times=s,
        z=1 + growth * (0.5 + of_z),
        z_hat=growth * of_z_hat,
        z_hat_prev=none,
        eps=_none_at_the_end(growth.sqrt()),
    )


def ddim(schedule: Schedule, times: Tensor, *, eta: float = 0.0) -> Recurrence:
    """DDIM (Song et al., 2021, Eq. 12): at η = 0 Euler steps on the ODE, at η = 1 ancestral sampling. First order.

    ε̂ = (z − α_s ẑ) / σ_s
    ς = η (σ_t/σ_s) √(1 − α_s²/α_t²)                (their Eq. 16)
    z ← α_t ẑ + √(σ_t² − ς²) ε̂ + ς ε
    """
    s, t = times[:-1], times[1:]
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.alpha_sigma(s), schedule.alpha_sigma(t)
    fresh = eta * (sigma_t / sigma_s) * (1 - (alpha_s / alpha_t) ** 2).sqrt()  # ς
    kept = (sigma_t**2 - fresh**2).sqrt() / sigma_s
    return Recurrence(
        times=s,
        z=kept,
        z_hat=alpha_t - alpha_s * kept,
        z_hat_prev=torch.zeros_like(s),
        eps=_none_at_the_end(fresh),
    )


def heun(schedule: Schedule, times: Tensor) -> Recurrence:
    """Heun's method on the ODE (Karras et al., 2022, Algorithm 1), in the variables z/σ and α/σ. Second order.

        g = α_t − α_s σ_t/σ_s
        z* = (σ_t/σ_s) z + g ẑ,  ẑ* = denoise(z*, t, ẑ)                an Euler step
        z ← (σ_t/σ_s) z + g (ẑ + ẑ*)/2  =  z* + (g/2) ẑ* − (g/2) ẑ      the trapezoidal rule

    So a step is two rows of the table: the Euler step, and its correction, whose ẑ is ẑ* and whose ẑ_prev is ẑ above.
    """
    shrink, gain = _ode(schedule, times)
    one, none = torch.ones_like(gain), torch.zeros_like(gain)
    return Recurrence(
        times=_in_turn(times[:-1], times[1:]),
        z=_in_turn(shrink, one),
        z_hat=_in_turn(gain, gain / 2),
        z_hat_prev=_in_turn(none, -gain / 2),
        eps=_in_turn(none, none),
    )


def dpm_solver_pp_2m(schedule: Schedule, times: Tensor, *, stochastic: bool = False) -> Recurrence:
    """DPM-Solver++(2M) (Lu et al., 2022, Algorithm 2): extrapolates from the last two estimates. Second order.

        h = λ_t − λ_s,  r = (h of the previous step) / h
        D = (1 + 1/(2r)) ẑ − 1/(2r) ẑ_prev                                 in the first step D = ẑ
        z ← (σ_t/σ_s) z − α_t (e^(−h) − 1) D

    `stochastic` solves the reverse SDE instead of the ODE (their SDE-DPM-Solver++(2M), Eq. B.7 in midpoint form):

        z ← (σ_t/σ_s) e^(−h) z + α_t (1 − e^(−2h)) D + σ_t √(1 − e^(−2h)) ε
    """
    h = schedule.log_snr(times).diff() / 2
    shrink, gain = (_sde if stochastic else _ode)(schedule, times)
    ahead = torch.cat([torch.zeros(1, dtype=h.dtype), h[1:] / h[:-1] / 2])  # 1/(2r)
    noise = torch.zeros_like(h)
    if stochastic:
        noise = _none_at_the_end(schedule.alpha_sigma(times[1:])[1] * (-torch.expm1(-2 * h)).sqrt())
    return Recurrence(times=times[:-1], z=shrink, z_hat=gain * (1 + ahead), z_hat_prev=-gain * ahead, eps=noise)


def _ode(schedule: Schedule, times: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of z and of ẑ̄ in the exact solution of the ODE over each interval."""
    return ode_step(schedule, times[:-1], times[1:])


def _sde(schedule: Schedule, times: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of z and of ẑ̄ in the mean of the SDE's exact solution: (σ_t/σ_s) e^(−h) and α_t (1 − e^(−2h))."""
    alpha, sigma = schedule.alpha_sigma(times)
    shrink = sigma[1:] / sigma[:-1]
    forgets = shrink * alpha[:-1] / alpha[1:]  # e^(−h)
    return shrink * forgets, alpha[1:] * (1 - forgets**2)


def _none_at_the_end(noise: Tensor) -> Tensor:
    """Coefficients of the noise, with 0 for the last step."""
    return torch.cat([noise[:-1], torch.zeros(1, dtype=noise.dtype)])


def _in_turn(first: Tensor, second: Tensor) -> Tensor:
    """Two rows for each step: (N,) and (N,) → (2N,)."""
    return torch.stack([first, second], dim=-1).flatten()


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


# Why a solver is not offered on a grid and with an end, and the remedy: at 128 steps it makes Gaussian data more than
# 3 % too wide or too narrow (`python -m benchmarks samplers`, docs/sampling.md).
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
_MOST_ETA = 0.5  # for ddim on the log-snr grid


def is_offered(config: SamplerConfig, known: SamplerConfig | None = None, *, flat: bool = False) -> bool:
    """Whether the solver keeps the width of Gaussian data on the grid that is named and with this end.

    With `flat`, F(t) is t, so that `learned` has the times of `time`. What `known` has is offered, as in `check`.
    """
    return _objection(config, flat) is None or _is_known(config, known)


def check(config: SamplerConfig, known: SamplerConfig | None = None, *, flat: bool = False) -> None:
    """`InputError` for a combination of solver, grid and end that is not offered, unless `known` has the same.

    `known` are the settings of an exported model, which keeps sampling as it was exported, or those that a student has
    learned. `flat` says that F(t) is t.
    """
    objection = _objection(config, flat)
    if objection is None or _is_known(config, known):
        return
    reason, remedy = objection
    grid = f"grid {config.grid}" + (", which is time in this model, whose F(t) is t," if _is_time(config, flat) else "")
    raise InputError(
        f"solver {config.solver} on {grid} with final {config.final} is not offered: {reason}; take {remedy}"
    )


def _objection(config: SamplerConfig, flat: bool) -> tuple[str, str] | None:
    grid = "time" if _is_time(config, flat) else config.grid or "learned"
    if config.solver == "ddim" and grid == "log-snr" and config.eta > _MOST_ETA:
        return _FORGETS if not flat else (_FORGETS[0], "--eta 0")
    found = _REFUSED.get((config.solver, grid, config.final))
    if found is _NARROWS and flat:
        return _NARROWS[0], "--grid log-snr" + (" with --eta 0" if config.eta > _MOST_ETA else "")
    return found


def _is_time(config: SamplerConfig, flat: bool) -> bool:
    return flat and config.grid == "learned"


def _is_known(config: SamplerConfig, known: SamplerConfig | None) -> bool:
    return known is not None and _combination(config) == _combination(known)


def _combination(config: SamplerConfig) -> tuple[Any, ...]:
    return config.solver, config.grid, config.final, config.eta


def evaluations_per_step(config: SamplerConfig) -> int:
    """Forward passes of the denoiser per step (SPEC 12.8)."""
    return (2 if config.solver == "heun" else 1) * (2 if config.guidance != 1 else 1)
