"""The discrete process behind Gaussian noise on one-hot vectors: where the largest entry is.

In w = μ·onehot(x) + ε with ε ~ N(0, I_K), the largest entry is that of x with probability P(μ), and that of each other
token with probability (1 − P)/(K − 1). So the argmax is x with probability α and otherwise uniform over all K tokens,
with α = (K P − 1)/(K − 1). This is the uniform-state process of Duo (Sahoo et al., 2025), whose curriculum has
μ = e^(−γ/2), and α is the time warp τ of FLM, whose noise has μ = t/(1 − t) at time t.

Everything is computed in float64, by Gauss–Legendre quadrature, for any vocabulary size K ≥ 2 and on any device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

POINTS, REACH = 320, 9.0  # of the quadrature: nodes, and the half-width of the interval around μ
KNOTS = 4_096  # of a table of t(τ)
CERTAIN = 1 - 1e-12  # the tables treat α from here on as 1


def keep_probability(mu: Tensor, vocab: int) -> Tensor:
    """α(μ) = (K P − 1)/(K − 1) with P = ∫ φ(x−μ) Φ(x)^(K−1) dx, in [0, 1]; of μ's shape."""
    inside = _density_times_power(mu, vocab - 1)
    return (vocab * inside - 1) / (vocab - 1)


def keep_slope(mu: Tensor, vocab: int) -> Tensor:
    """dα/dμ = K ∫ φ(x−μ) φ(x) Φ(x)^(K−2) dx, which is positive; of μ's shape.

    Integrated by parts, it is K/(K−1) ∫ (x−μ) φ(x−μ) Φ(x)^(K−1) dx, in which large terms cancel.
    """
    return vocab * _density_times_power(mu, vocab - 2, with_density=True)


def keep_at_gamma(gamma: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """α(γ) and dα/dγ = −(μ/2) dα/dμ with μ = e^(−γ/2), the signal-to-noise ratio α̃/σ̃ at α̃² = sigmoid(−γ)."""
    mu = torch.exp(-gamma.double() / 2)
    return keep_probability(mu, vocab), -mu / 2 * keep_slope(mu, vocab)


def gamma_range(vocab: int) -> tuple[float, float]:
    """(γ_min, γ_max), where α(γ) is 0.95 and 0.05: the range of Duo's curriculum for a vocabulary of any size."""
    return _gamma_at(0.95, vocab), _gamma_at(0.05, vocab)


def _gamma_at(alpha: float, vocab: int) -> float:
    """γ with α(γ) = `alpha`, by bisection: α falls in γ."""
    low, high = -12.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        found = keep_at_gamma(torch.tensor(middle, dtype=torch.float64), vocab)[0].item()
        low, high = (middle, high) if found > alpha else (low, middle)
    return (low + high) / 2


def _density_times_power(mu: Tensor, power: int, *, with_density: bool = False) -> Tensor:
    """∫ φ(x−μ) Φ(x)^power dx, or ∫ φ(x−μ) φ(x) Φ(x)^power dx, over μ ± REACH; φ falls to 1e-18 there."""
    # Beyond μ = 40 nothing changes, and clamping makes infinity finite.
    mu = mu.double().clamp(max=40.0)
    nodes, weights = _rule(str(mu.device))
    x = mu[..., None] + nodes
    log_integrand = power * torch.special.log_ndtr(x) - nodes.square() / 2 - math.log(2 * math.pi) / 2
    if with_density:
        log_integrand = log_integrand - x.square() / 2 - math.log(2 * math.pi) / 2
    return log_integrand.exp() @ weights


@lru_cache
def _rule(device: str) -> tuple[Tensor, Tensor]:
    """Gauss–Legendre nodes and weights on [−REACH, REACH], cached per device, since copying there waits for it."""
    nodes, weights = np.polynomial.legendre.leggauss(POINTS)
    return torch.from_numpy(REACH * nodes).to(device), torch.from_numpy(REACH * weights).to(device)


# ----------------------------------------------------------------------------------------------------------------------
# FLM's time warp


def warped(t: Tensor, vocab: int) -> Tensor:
    """τ(t) = α(μ = t/(1−t)) for t in [0, 1], float64: how often the largest entry of x_t is x, beyond chance."""
    t = t.double()
    return keep_probability(t / (1 - t), vocab)


@dataclass(frozen=True, eq=False)
class Unwarp:
    """t(τ), the inverse of `warped`, from a table: cubic Hermite interpolation, monotone, with exact slopes.

    The error in τ(t(τ)) is below 1e-9. It runs on the table's device, without synchronising with the host.
    """

    tau_N: Tensor  # knots, increasing from 0 to 1, float64
    t_N: Tensor  # their times, from 0 to 1
    slope_N: Tensor  # dt/dτ at the knots

    @classmethod
    @lru_cache
    def of(cls, vocab: int, device: str = "cpu") -> Unwarp:
        """The table of a vocabulary, computed once: α integrated at knots with equal steps in μ."""
        mu = torch.linspace(0, 20, KNOTS, dtype=torch.float64)
        tau = keep_probability(mu, vocab)
        tau[0] = 0.0  # as it already is, but for rounding
        inside = tau < CERTAIN
        mu, tau = mu[inside], tau[inside]
        # t = μ/(1+μ), so dt/dμ = 1/(1+μ)²
        slope = 1 / ((1 + mu).square() * keep_slope(mu, vocab))
        end = torch.ones(1, dtype=torch.float64)
        # The last knot is far from the previous one in t but next to it in τ; the chord's slopes make that a line.
        chord = (1 - mu[-1] / (1 + mu[-1])) / (1 - tau[-1])
        knots = torch.cat([tau, end]), torch.cat([mu / (1 + mu), end]), torch.cat([slope, chord[None]])
        return cls(*(knot.to(device) for knot in knots))

    def __call__(self, tau: Tensor) -> Tensor:
        """t (…) float64 at warped times τ (…) in [0, 1]; 0 and 1 are exact."""
        tau = tau.double()
        right = torch.searchsorted(self.tau_N, tau, right=True).clamp(1, len(self.tau_N) - 1)
        left = right - 1
        width = self.tau_N[right] - self.tau_N[left]
        rise = self.t_N[right] - self.t_N[left]
        share = (tau - self.tau_N[left]) / width

        # The Hermite cubic on [0, 1]; slopes above three times the chord's would let it overshoot.
        at_left = torch.minimum(self.slope_N[left] * width, 3 * rise)
        at_right = torch.minimum(self.slope_N[right] * width, 3 * rise)
        bend = share * (1 - share) * ((1 - share) * (at_left - rise) - share * (at_right - rise))
        return self.t_N[left] + share * rise + bend
