"""The log-linear schedule of discrete diffusions, and the times of their samplers' rows.

α_t = 1 − (1 − ε)t is the probability that a token is kept up to time t. A sampler's times go from 1 to 1e-5 in equal
steps, and a last row removes the remaining noise, as in the code of MDLM, ReMDM and Duo.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldlm.errors import InputError

EPS = 1e-3  # ε in training and in Duo's sampler; MDLM's and ReMDM's have ε = 0
T_END = 1e-5  # last time of a sampler's grid


@dataclass(frozen=True)
class LogLinear:
    """α_t = 1 − (1 − ε)t."""

    eps: float = EPS

    def alpha(self, t: Tensor) -> Tensor:
        """α_t at any times, in their dtype."""
        return 1 - (1 - self.eps) * t

    @property
    def slope(self) -> float:
        """−dα/dt, which is the same at all times."""
        return 1 - self.eps

    def time(self, alpha: float) -> float:
        """The t at which α_t has this value."""
        return (1 - alpha) / (1 - self.eps)


def grid(steps: int) -> Tensor:
    """Times t_0 = 1 > … > t_N = 1e-5, float64 (N+1,)."""
    assert steps >= 1
    return torch.linspace(1, T_END, steps + 1, dtype=torch.float64)


def check_order(t_on: float, t_off: float) -> None:
    """`InputError` for a part of the grid, from t_on down to t_off, that would end before it begins."""
    if t_off >= t_on:
        raise InputError(f"t_off={t_off} must be less than t_on={t_on}: times fall while a text is drawn")


@dataclass(frozen=True)
class Loop:
    """A grid that stands still in the middle (ReMDM's `loop`): α rises to α_on, stays there, and goes on to 1.

    The share of rows before the loop is 1 − t_on, that after it t_off.
    """

    t_on: float
    t_off: float
    still: float  # the time in the loop, at which α is α_on

    @classmethod
    def of(cls, t_on: float, t_off: float, still: float) -> Loop:
        """A loop from t_on down to t_off; `InputError` if it would end before it begins."""
        check_order(t_on, t_off)
        return cls(t_on, t_off, still)

    def times(self, t: Tensor) -> Tensor:
        """Times of the process at times of the grid: both go from 1 to 0."""
        before = 1 - (1 - t) * (1 - self.still) / (1 - self.t_on)
        after = t * self.still / self.t_off
        return torch.where(t > self.t_on, before, torch.minimum(after, torch.full_like(t, self.still)))

    def inside(self, t: Tensor) -> Tensor:
        """Whether a row that begins at this time of the grid is in the loop."""
        return (t <= self.t_on) & (t > self.t_off)


def alphas(schedule: LogLinear, steps: int, loop: Loop | None = None) -> list[tuple[float, float]]:
    """(α_t, α_s) of each row of a sampler: N steps, during which a loop may stand still, and a last row to α_s = 1."""
    times = grid(steps)
    alpha = schedule.alpha(loop.times(times) if loop else times).tolist()
    return list(zip(alpha, [*alpha[1:], 1.0], strict=True))
