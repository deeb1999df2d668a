"""Solvers of the reverse process: functions of (denoise, schedule, z, times, noise). They know no network.

`denoise(z, t)` is the estimate ẑ_0 of shape (B, …) at a scalar time t; wrap the network with `self_conditioned`.
`noise(step)` is standard normal noise of z's shape; keyed by the text's seed it makes a text independent of its batch.
`times` is a decreasing 1-D tensor: one interval per step, float64 so that coefficients near t = 1 keep their digits.
Each solver returns an `End`: the state at the end of the grid without its last noise, and the last ẑ_0.

Euler–Maruyama is the paper's (SPEC 8). The others start from the exact solution of the probability-flow ODE over an
interval from s down to t,

    z_t = (σ_t/σ_s) z_s + (α_t − α_s σ_t/σ_s) ẑ̄,

where ẑ̄ is the mean of ẑ_0 over the interval, weighted by the growth of α/σ (Lu et al., 2022, Eq. 3.4 in x_0-form).
They differ in how they estimate it. Nothing in it diverges at s = 1, where α = 0 and σ = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ldlm.config import SamplerConfig
from ldlm.diffusion import Schedule, score

Denoise = Callable[[Tensor, Tensor], Tensor]
Network = Callable[[Tensor, Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]
InverseCDF = Callable[[Tensor], Tensor]

# λ(1) = −∞, so a grid in log-SNR begins where α is 1 % of σ, at t = 0.98 of the paper's schedule.
LOG_SNR_START = -9.21


class End(NamedTuple):
    """Where a solver ends, both of z's shape; `SamplerConfig.final` chooses."""

    mean: Tensor  # the state, without the noise of the last step
    x0: Tensor  # the last estimate ẑ_0


class Solver(Protocol):
    """What every solver takes."""

    def __call__(self, denoise: Denoise, schedule: Schedule, z: Tensor, times: Tensor, noise: Noise) -> End: ...


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
        return schedule.time_of_log_snr(end + uniform * (LOG_SNR_START - end))
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
# The network as a denoiser


def self_conditioned(network: Network, guidance: float = 1.0) -> Denoise:
    """`network(z, t, previous)` as a `Denoise` that remembers its last estimate; zeros at first (SPEC 8).

    `guidance` w ≠ 1 takes a second evaluation without the estimate and extrapolates: ẑ = ẑ_∅ + w (ẑ_sc − ẑ_∅).
    Use a fresh one for each batch.
    """
    previous: Tensor | None = None

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        nonlocal previous
        if previous is None:
            previous = network(z, t, torch.zeros_like(z))
        elif guidance == 1:
            previous = network(z, t, previous)
        else:
            without = network(z, t, torch.zeros_like(z))
            previous = without + guidance * (network(z, t, previous) - without)
        return previous

    return denoise


# ----------------------------------------------------------------------------------------------------------------------
# Solvers


def euler_maruyama(
    denoise: Denoise,
    schedule: Schedule,
    z: Tensor,
    times: Tensor,
    noise: Noise,
    *,
    beta_clip: float = 0.95,
) -> End:
    """The paper's solver: Euler–Maruyama on the reverse SDE dz = (−½βz − β·score) dt + √β dw̄, backwards in time.

    β(t) diverges at t = 1, so t is clipped to `beta_clip` inside β, and nowhere else.
    """
    for step, (t, t_next) in enumerate(pairwise(times)):
        z_hat = denoise(z, t)
        beta, dt = schedule.beta(t.clamp(max=beta_clip)), t - t_next
        drift = -0.5 * beta * z - beta * score(schedule, z, z_hat, t)
        mean = z - drift * dt
        z = mean + (beta * dt).sqrt() * noise(step) if step < len(times) - 2 else mean
    return End(z, z_hat)


def ddim(
    denoise: Denoise,
    schedule: Schedule,
    z: Tensor,
    times: Tensor,
    noise: Noise,
    *,
    eta: float = 0.0,
) -> End:
    """DDIM (Song et al., 2021, Eq. 12): at η = 0 the ODE by Euler steps, at η = 1 ancestral sampling. First order."""
    for step, (s, t) in enumerate(pairwise(times)):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.alpha_sigma(s), schedule.alpha_sigma(t)
        z_hat = denoise(z, s)
        eps_hat = (z - alpha_s * z_hat) / sigma_s
        fresh = eta * (sigma_t / sigma_s) * (1 - (alpha_s / alpha_t) ** 2).sqrt()  # Eq. 16
        z = alpha_t * z_hat + (sigma_t**2 - fresh**2).sqrt() * eps_hat
        if eta and step < len(times) - 2:
            z = z + fresh * noise(step)
    return End(z, z_hat)


def heun(denoise: Denoise, schedule: Schedule, z: Tensor, times: Tensor, noise: Noise) -> End:
    """Heun's method on the ODE (Karras et al., 2022, Algorithm 1), in the exponential form above. Second order.

    Two evaluations a step: ẑ̄ is the mean of ẑ_0 at the beginning and at the end that this beginning leads to.
    """
    for s, t in pairwise(times):
        beginning = denoise(z, s)
        z_hat = denoise(_ode_step(schedule, z, beginning, s, t), t)
        z = _ode_step(schedule, z, (beginning + z_hat) / 2, s, t)
    return End(z, z_hat)


def dpm_solver_pp_2m(
    denoise: Denoise,
    schedule: Schedule,
    z: Tensor,
    times: Tensor,
    noise: Noise,
    *,
    stochastic: bool = False,
) -> End:
    """DPM-Solver++(2M) of Lu et al. (2022, Algorithm 2): ẑ_0 extrapolated from the last two evaluations. Second order.

    `stochastic` solves the reverse SDE instead of the ODE (their SDE-DPM-Solver++(2M), Eq. B.7 in midpoint form).
    """
    last: tuple[Tensor, Tensor] | None = None
    for step, (s, t) in enumerate(pairwise(times)):
        z_hat = denoise(z, s)
        h = (schedule.log_snr(t) - schedule.log_snr(s)) / 2
        # The estimate in the middle of the interval, on the line through the last two.
        middle = z_hat if last is None else z_hat + (z_hat - last[0]) * (h / last[1]) / 2
        z = _ode_step(schedule, z, middle, s, t) if not stochastic else _sde_mean(schedule, z, middle, s, t)
        if stochastic and step < len(times) - 2:
            z = z + schedule.alpha_sigma(t)[1] * (-torch.expm1(-2 * h)).sqrt() * noise(step)
        last = z_hat, h
    return End(z, z_hat)


def _ode_step(schedule: Schedule, z: Tensor, mean: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The exact solution over an interval in which ẑ_0 has this mean."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.alpha_sigma(s), schedule.alpha_sigma(t)
    shrink = sigma_t / sigma_s
    return shrink * z + (alpha_t - alpha_s * shrink) * mean


def _sde_mean(schedule: Schedule, z: Tensor, mean: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The mean of the exact solution of the SDE over an interval in which ẑ_0 has this mean."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.alpha_sigma(s), schedule.alpha_sigma(t)
    forgets = (alpha_s * sigma_t) / (alpha_t * sigma_s)  # e^(−h)
    return (sigma_t / sigma_s) * forgets * z + alpha_t * (1 - forgets**2) * mean


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


def evaluations_per_step(config: SamplerConfig) -> int:
    """Forward passes of the denoiser that a step takes (SPEC 12.8)."""
    return (2 if config.solver == "heun" else 1) * (2 if config.guidance != 1 else 1)
