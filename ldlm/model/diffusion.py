"""The forward process: noise schedules, z_t, the score and the ELBO's weight, without any network (Section 3, A.1).

Variance preserving throughout: α_t² + σ_t² = 1. Times are tensors in [0, 1]; float64 times give float64 results.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldlm.config import DiffusionConfig


@dataclass(frozen=True)
class Schedule:
    """A noise schedule: `kind` is tangent (with shape d, as in COSMOS), cosine, or linear in ᾱ."""

    kind: str = "tangent"
    d: float = 3.0

    @classmethod
    def of(cls, config: DiffusionConfig) -> Schedule:
        """The schedule of a configuration."""
        return cls(config.schedule, config.d)

    def alpha_bar(self, t: Tensor) -> Tensor:
        """ᾱ_t = α_t², from 1 at t = 0 to 0 at t = 1; tangent: 1/(1 + d² tan²(πt/2)) (SPEC 6)."""
        if self.kind == "tangent":
            return 1 / (1 + (self.d * torch.tan(math.pi * t / 2)) ** 2)
        if self.kind == "cosine":
            return torch.cos(math.pi * t / 2) ** 2
        return 1 - t

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(α_t, σ_t)."""
        alpha_bar = self.alpha_bar(t)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def beta(self, t: Tensor) -> Tensor:
        """β(t) = −d ln ᾱ/dt, the rate of the forward SDE dz = −½βz dt + √β dw (SPEC 8). Infinite at t = 1."""
        if self.kind == "tangent":
            tan = torch.tan(math.pi * t / 2)
            return math.pi * self.d**2 * tan * (1 + tan**2) / (1 + self.d**2 * tan**2)
        if self.kind == "cosine":
            return math.pi * torch.tan(math.pi * t / 2)
        return 1 / (1 - t)

    def log_snr(self, t: Tensor) -> Tensor:
        """λ(t) = ln(α_t²/σ_t²), the log signal-to-noise ratio (Eq. 20)."""
        return torch.logit(self.alpha_bar(t))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """t at which λ(t) has this value, the inverse of `log_snr`."""
        ratio = torch.exp(-log_snr / 2)  # σ/α
        if self.kind == "tangent":
            return torch.atan(ratio / self.d) * 2 / math.pi
        if self.kind == "cosine":
            return torch.atan(ratio) * 2 / math.pi
        return torch.sigmoid(-log_snr)

    def time_of_noise(self, tau: float) -> float:
        """t* at which σ/α = τ: z_t there is z_0 + τ ε, scaled by α."""
        return self.time_of_log_snr(torch.tensor(-2 * math.log(tau), dtype=torch.float64)).item()

    def noise_of_time(self, t: float) -> float:
        """τ = σ/α at t, the inverse of `time_of_noise`."""
        return math.exp(-self.log_snr(torch.tensor(t, dtype=torch.float64)).item() / 2)

    def elbo_weight(self, t: Tensor) -> Tensor:
        """ω_ELBO(t) = −½ λ'(t) e^λ(t), the weight of the squared error in the ELBO (Eq. 22). Diverges at t = 0."""
        # λ' = −β/σ², so ω = ½ β ᾱ/σ⁴.
        alpha_bar = self.alpha_bar(t)
        return 0.5 * self.beta(t) * alpha_bar / (1 - alpha_bar) ** 2


def per_row(coefficient_B: Tensor, z: Tensor) -> Tensor:
    """A coefficient per row (B,), shaped to multiply z (B, …) and in its dtype."""
    return coefficient_B.reshape(-1, *[1] * (z.ndim - 1)).to(z.dtype)


def noised(schedule: Schedule, z_0: Tensor, t_B: Tensor, eps: Tensor) -> Tensor:
    """z_t = α_t z_0 + σ_t ε (Eq. 19); the coefficients are computed in the dtype of t."""
    alpha_B, sigma_B = schedule.alpha_sigma(t_B)
    return per_row(alpha_B, z_0) * z_0 + per_row(sigma_B, eps) * eps


def score(schedule: Schedule, z_t: Tensor, z_hat: Tensor, t: Tensor) -> Tensor:
    """∇ log p(z_t) ≈ −(z_t − α_t ẑ_0)/σ_t² at a scalar time t, or at times of z's shape."""
    alpha, sigma = schedule.alpha_sigma(t)
    return -(z_t - alpha * z_hat) / sigma**2


def ode_step(schedule: Schedule, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """σ_t/σ_s and α_t − α_s σ_t/σ_s: coefficients of z_s and of ẑ in z_t, by the ODE from s down to t at constant ẑ."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.alpha_sigma(s), schedule.alpha_sigma(t)
    shrink = sigma_t / sigma_s
    return shrink, alpha_t - alpha_s * shrink
