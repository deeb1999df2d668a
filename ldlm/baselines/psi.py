"""Ψ-samplers: ancestral steps mixed with predictor–corrector steps (Deschenaux et al., 2026, arXiv 2602.21185).

From t to s a Ψ-sampler draws with probability κ from the posterior q(z_s | z_t, x_θ). Otherwise it draws a clean token
from q(z_0 | z_t, x_θ) and adds the noise of time s to it. Both use the same estimate x_θ, and the marginals are
preserved. κ = 1 is ancestral sampling. With absorbing states and κ = 1 − σ/(1 − α_s) it is ReMDM, as long as
σ ≤ 1 − α_s: ReMDM may mask more, up to (1 − α_s)/α_t, whereas a Ψ-sampler stops at κ = 0.

Shape letters: CONTRIBUTING.md. K of the paper is V.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from ldlm.baselines.chain import ChainState
from ldlm.baselines.drawing import Mixture
from ldlm.baselines.duo import uniform_posterior
from ldlm.baselines.estimate import Estimate
from ldlm.baselines.schedule import LogLinear, Loop, alphas, check_order, grid
from ldlm.config import PsiConfig, PsiMode
from ldlm.errors import InputError


@dataclass(frozen=True)
class PsiProcess:
    """A Ψ-sampler for a trained Duo."""

    vocab: int
    config: PsiConfig
    absorbing: bool = False
    schedule: LogLinear = LogLinear()

    def __post_init__(self) -> None:
        """`InputError` for a middle or a loop that would end before it begins, and for a loop in which α is too low."""
        config = self.config
        if "t_on" not in config.idle:
            check_order(config.t_on, config.t_off)
        if config.profile == "loop" and config.alpha_on <= self.schedule.eps:
            raise InputError(
                f"alpha_on={config.alpha_on:g} must be more than {self.schedule.eps:g}, where α begins: it rises while "
                f"a text is drawn"
            )

    @property
    def rows(self) -> int:
        """Steps, and the last row, which is ancestral."""
        return self.config.steps + 1

    @cached_property
    def alphas(self) -> list[tuple[float, float]]:
        """(α_t, α_s) of each row; in the loop of profile `loop` both are α_on."""
        return alphas(self.schedule, self.config.steps, self._loop)

    @cached_property
    def kappas(self) -> list[float]:
        """κ of each row, by the mode of its part of the grid; 1 in the last."""
        pairs = zip(grid(self.config.steps).tolist(), self.alphas[:-1], strict=False)
        return [kappa(self._mode(t), self.config.eta, *alpha) for t, alpha in pairs] + [1.0]

    def condition(self, row: int) -> float | None:
        """−log α_t, which Duo's network is told."""
        return -math.log(self.alphas[row][0])

    def mixture(self, row: int, state: ChainState, x_theta: Estimate) -> Mixture:
        """The law of a row: κ times the posterior, 1 − κ times clean tokens with noise."""
        (alpha_t, alpha_s), k = self.alphas[row], self.kappas[row]
        x_z_BL = x_theta.of(state.z_BL)
        posterior = uniform_posterior(x_z_BL, alpha_t, alpha_s, self.vocab)
        if k == 1:
            return posterior
        clean = uniform_posterior(x_z_BL, alpha_t, 1.0, self.vocab)
        stay_BL = k * posterior.stay_BL + (1 - k) * alpha_s * clean.stay_BL
        token_BL = k * posterior.token_BL + (1 - k) * alpha_s * clean.token_BL
        return Mixture(stay_BL, token_BL, k * posterior.noise_BL + (1 - k) * (1 - alpha_s))

    def _mode(self, t: float) -> PsiMode:
        """The mode of a row that begins at this time of the grid."""
        config = self.config
        if config.t_on >= t > config.t_off:
            return config.mode
        own = config.mode_high if t > config.t_on else config.mode_low
        return own or (config.mode if config.profile == "linear" else "ancestral")

    @cached_property
    def _loop(self) -> Loop | None:
        config = self.config
        if config.profile == "linear":
            return None
        return Loop.of(config.t_on, config.t_off, self.schedule.time(config.alpha_on))


def kappa(mode: PsiMode, eta: float, alpha_t: float, alpha_s: float) -> float:
    """κ = 1 − σ/(1 − α_s), at least 0, with σ set by the mode; in mode `kappa` it is η itself."""
    if mode == "ancestral":
        return 1.0
    if mode == "kappa":
        return eta
    most = (1 - alpha_s) / alpha_t if alpha_t > 0 else math.inf
    sigma = {
        "constant": eta,
        "cap": min(eta, most),
        "rescale": eta * min(1.0, most),
        # As in Duo's code, where η enters twice; the published rows were made with it.
        "rescale-duo": eta * min(eta, most),
    }[mode]
    return min(max(1 - sigma / (1 - alpha_s), 0.0), 1.0)
