"""Timestep sampling: uniform, or adaptive to the denoising loss (Section 5.3; Dieleman et al., 2022).

The adaptive sampler draws t with density ∝ dL/dt, so that the loss grows linearly in its cumulative distribution F(t).
It keeps an average of L at the edges of N equal bins of [0, 1] and turns their increments into bin probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldlm.config import TimestepConfig


def bin_probabilities(edge_losses: np.ndarray, floor: float) -> np.ndarray:
    """p_i = (L(u_{i+1}) − L(u_i)) / (L(u_N) − L(u_0)) from the losses at the N+1 edges, float64 (N,) (Eq. 5).

    L(u_i) is the denoising loss at the edge u_i of the N bins. The losses are first made monotone by isotonic
    regression. Before they are normalised, all p_i are raised to at least `floor`/N, so that every bin is drawn from;
    the paper has no floor. A flat curve gives the uniform distribution.
    """
    from scipy.optimize import isotonic_regression  # here: it takes half a second, and sampling does without

    bins = len(edge_losses) - 1
    increments = np.diff(isotonic_regression(edge_losses).x)
    total = increments.sum()
    if not total > 0:
        return np.full(bins, 1 / bins)
    p = np.maximum(increments / total, floor / bins)
    return p / p.sum()


class TimestepSampler:
    """Draws t in [t_min, 1]; `observe` feeds it the losses of a step.

    State, on the CPU: `edge_losses` (N+1,) float64, NaN at an edge that has not been nearest to any t; `unseen` (N+1,)
    int64, the steps since it last was; `p` (N,) float64.
    """

    def __init__(self, config: TimestepConfig, t_min: float) -> None:
        self.config, self.t_min = config, t_min
        self.edge_losses = np.full(config.bins + 1, np.nan)
        self.unseen = np.zeros(config.bins + 1, dtype=np.int64)
        self.p = np.full(config.bins, 1 / config.bins)

    def draw(self, uniform_B: Tensor) -> Tensor:
        """t = F⁻¹(uniform) ≥ t_min, float64 (B,): one number chooses a bin with probability p_i and a point in it."""
        return self.quantile(uniform_B).clamp(self.t_min, 1.0)

    def quantile(self, u_B: Tensor) -> Tensor:
        """F⁻¹(u), float64 (B,), the inverse of `cdf`; it goes down to 0."""
        edges = np.linspace(0, 1, self.config.bins + 1)
        cdf = np.concatenate([[0.0], np.cumsum(self.p)])
        return torch.from_numpy(np.interp(u_B.cpu().numpy(), cdf / cdf[-1], edges))

    def cdf(self, t_B: Tensor) -> Tensor:
        """F(t), the cumulative distribution of t, float64 (B,): the loss should grow linearly in it."""
        edges = np.linspace(0, 1, self.config.bins + 1)
        below = np.concatenate([[0.0], np.cumsum(self.p)])
        return torch.from_numpy(np.interp(t_B.cpu().numpy(), edges, below / below[-1]))

    @property
    def flat(self) -> bool:
        """Whether F(t) is t: with uniform timesteps, and before the first refresh."""
        return bool((self.p == self.p[0]).all())

    def density(self, t_B: Tensor) -> Tensor:
        """p(t), the density of `draw` at t, float64 (B,)."""
        index = np.clip(np.ceil(t_B.cpu().numpy() * self.config.bins).astype(int) - 1, 0, self.config.bins - 1)
        return torch.from_numpy(self.p[index] * self.config.bins)

    def observe(self, t_B: Tensor, loss_B: Tensor) -> None:
        """Average a step's losses (B,), each into the edge nearest to its t.

        An edge's average decays with every step, even one that drew no t near it. Otherwise an edge that is drawn once
        in a hundred steps would take a hundred times as long to follow a falling loss.
        """
        if self.config.kind == "uniform":
            return
        nearest = np.rint(t_B.cpu().numpy() * self.config.bins).astype(int)
        losses = loss_B.double().cpu().numpy()
        count = np.bincount(nearest, minlength=self.config.bins + 1)
        total = np.bincount(nearest, weights=losses, minlength=self.config.bins + 1)
        seen = count > 0
        mean = total[seen] / count[seen]
        old = self.edge_losses[seen]
        decay = self.config.ema_decay ** (1 + self.unseen[seen])
        self.edge_losses[seen] = np.where(np.isnan(old), mean, decay * old + (1 - decay) * mean)
        self.unseen = np.where(seen, 0, self.unseen + 1)

    def refresh_if_due(self, step: int) -> None:
        """Refresh p after step `step`, counted from 1, if it is a multiple of `refresh_steps`."""
        if self.refreshes_after(step):
            self.refresh()

    def refreshes_after(self, step: int) -> bool:
        """Whether p is due to be refreshed after step `step`, counted from 1."""
        return self.config.kind == "adaptive" and step % self.config.refresh_steps == 0

    def refresh(self) -> None:
        """Recompute p from the averages; edges without one are interpolated linearly between their neighbours."""
        touched = np.flatnonzero(~np.isnan(self.edge_losses))
        if len(touched) >= 2:
            filled = np.interp(np.arange(len(self.edge_losses)), touched, self.edge_losses[touched])
            self.p = bin_probabilities(filled, self.config.floor)

    def state_dict(self) -> dict[str, list[Any]]:
        """The state as JSON; every float64 survives the round trip."""
        return {
            "edge_losses": [None if np.isnan(x) else float(x) for x in self.edge_losses],
            "unseen": self.unseen.tolist(),
            "p": [float(x) for x in self.p],
        }

    def load_state_dict(self, state: Mapping[str, list[Any]]) -> None:
        """Restore what `state_dict` returned; if an earlier version recorded no `unseen`, it counts from here."""
        self.edge_losses = np.array([np.nan if x is None else x for x in state["edge_losses"]])
        self.unseen = np.array(state.get("unseen", [0] * len(self.edge_losses)), dtype=np.int64)
        self.p = np.array(state["p"])
