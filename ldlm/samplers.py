"""Solvers of the reverse process: functions of (denoise, schedule, z, times, noise). They know no network.

`denoise(z, t)` is the estimate ẑ_0 of shape (B, …) at a scalar time t; wrap the network with `self_conditioned`.
`noise(step)` is standard normal noise of z's shape; keyed by the text's seed it makes a text independent of its batch.
`times` is a decreasing 1-D tensor: one interval per step, float64 so that coefficients near t = 1 keep their digits.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ldlm.config import SamplerConfig
from ldlm.diffusion import Schedule, score

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]


def time_grid(config: SamplerConfig) -> Tensor:
    """t_0 = 1 > t_1 > … > t_N = t_min in equal steps (N+1,), float64; N intervals are N evaluations."""
    return torch.linspace(1.0, config.t_min, config.steps + 1, dtype=torch.float64)


def self_conditioned(network: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Denoise:
    """`network(z, t_B, previous)` as a `Denoise` that remembers its last estimate; zeros at first (SPEC 8).

    Use a fresh one for each batch.
    """
    previous: Tensor | None = None

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        nonlocal previous
        condition = torch.zeros_like(z) if previous is None else previous
        previous = network(z, t.to(z.device, torch.float32).expand(z.shape[0]), condition)
        return previous

    return denoise


def euler_maruyama(
    denoise: Denoise,
    schedule: Schedule,
    z: Tensor,
    times: Tensor,
    noise: Noise,
    *,
    beta_clip: float = 0.95,
    final: str = "mean",
) -> Tensor:
    """The paper's solver: Euler–Maruyama on the reverse SDE dz = (−½βz − β·score) dt + √β dw̄, backwards in time.

    β(t) diverges at t = 1, so t is clipped to `beta_clip` inside β, and nowhere else. Returns the last step's
    noise-free mean (`final="mean"`) or the last estimate of z_0 (`final="x0"`).
    """
    for step, (t, t_next) in enumerate(pairwise(times)):
        z_hat = denoise(z, t)
        beta, dt = schedule.beta(t.clamp(max=beta_clip)), t - t_next
        drift = -0.5 * beta * z - beta * score(schedule, z, z_hat, t)
        mean = z - drift * dt
        z = mean + (beta * dt).sqrt() * noise(step) if step < len(times) - 2 else mean
    return z_hat if final == "x0" else z
