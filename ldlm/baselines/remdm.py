"""ReMDM: samplers of a trained MDLM that mask tokens again (Wang et al., 2025, arXiv 2503.00307).

From t to s a token that was drawn becomes masked again with probability σ, and a masked position is drawn with the
probability that preserves every marginal. A token is never replaced directly by another. σ is at most
σ_max = min(1, (1 − α_s)/α_t).

Shape letters: CONTRIBUTING.md. The mask is number V.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ldlm.baselines.chain import ChainState
from ldlm.baselines.drawing import Mixture
from ldlm.baselines.estimate import Estimate
from ldlm.baselines.mdlm import absorbing_mixture
from ldlm.baselines.schedule import LogLinear, Loop, alphas, grid
from ldlm.config import PUBLISHED_ETA, ReMDMConfig


@dataclass(frozen=True)
class ReMDMProcess:
    """MDLM's reverse process with remasking, by one of the schedules of σ."""

    vocab: int
    config: ReMDMConfig
    absorbing: bool = True

    def __post_init__(self) -> None:
        """`InputError` for a loop that would end before it begins."""
        _ = self._loop

    @property
    def rows(self) -> int:
        """Steps, and the last row, which draws what is still masked."""
        return self.config.steps + 1

    @cached_property
    def alphas(self) -> list[tuple[float, float]]:
        """(α_t, α_s) of each row, with ε = 0; in the loop both are α_on."""
        return alphas(LogLinear(0.0), self.config.steps, self._loop)

    @cached_property
    def sigmas(self) -> list[float]:
        """σ of each row, 0 in the last; for `conf` it is σ_max, of which each position gets a share."""
        times = grid(self.config.steps)
        looping = self._loop.inside(times).tolist() if self._loop else [True] * self.rows
        pairs = zip(self.alphas[:-1], looping, strict=False)
        return [self._sigma(*alpha) if inside else 0.0 for alpha, inside in pairs] + [0.0]

    def condition(self, row: int) -> float | None:
        """None: the network is not told the time."""
        return None

    def mixture(self, row: int, state: ChainState, x_theta: Estimate) -> Mixture:
        """The law of a row: a masked position stays masked with probability (1 − α_s − σα_t)/(1 − α_t)."""
        (alpha_t, alpha_s), sigma = self.alphas[row], self.sigmas[row]
        masked_BL = state.z_BL == self.vocab
        if self.config.schedule == "conf":
            shares_BL = confidence_shares(state.confidence_BL, masked_BL)
            return absorbing_mixture(masked_BL, (1 - alpha_s) / (1 - alpha_t), sigma * shares_BL)
        return absorbing_mixture(masked_BL, (1 - alpha_s - sigma * alpha_t) / (1 - alpha_t), sigma)

    @cached_property
    def _loop(self) -> Loop | None:
        config = self.config
        return Loop.of(config.t_on, config.t_off, 1 - config.alpha_on) if config.schedule == "loop" else None

    def _sigma(self, alpha_t: float, alpha_s: float) -> float:
        """σ of a row by the schedule's formula."""
        most = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t > 0 else 1.0
        if self.config.schedule == "conf":
            return most
        eta = PUBLISHED_ETA[self.config.schedule] if self.config.eta is None else self.config.eta
        return eta * most if self.config.schedule == "rescale" else min(eta, most)


def confidence_shares(confidence_BL: Tensor, masked_BL: Tensor) -> Tensor:
    """Each token's share of σ: the softmax over a text's tokens of −confidence; 0 where masked."""
    shares_BL = confidence_BL.neg().masked_fill(masked_BL, -float("inf")).softmax(-1)
    return shares_BL.masked_fill(masked_BL, 0.0)  # if all are masked, the softmax is NaN
