"""Duo: uniform-state diffusion (Sahoo et al., 2025, "The Diffusion Duality", arXiv 2506.10892).

Forward process: a token is kept up to time t with probability α_t; otherwise it is any of the K tokens, perhaps the
same one again. So z does not show which positions are noise, and the network, which is told −log α_t, has to infer it.

The network's estimate x_θ at a position must be the law of the clean token given z at the *other* positions. That is
what minimises the loss and makes the sampler exact, though the network also sees z at this position. Neither its
confidence nor its argmax says anything about the token that z shows.

Shape letters: CONTRIBUTING.md. K of the paper is V.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ldlm import noise
from ldlm.baselines import times
from ldlm.baselines.chain import ChainState
from ldlm.baselines.curriculum import Curriculum, CurriculumDraws
from ldlm.baselines.drawing import Mixture
from ldlm.baselines.estimate import Estimate
from ldlm.baselines.interface import Losses, Normal, TrainedNetwork
from ldlm.baselines.schedule import LogLinear, alphas
from ldlm.baselines.vocabulary import loss_by_parts


class Draws(NamedTuple):
    """The randomness of a training step."""

    t_B: Tensor  # float64
    u_BL: Tensor  # uniform: which tokens are kept
    other_BL: Tensor  # int64: the tokens that replace the others

    @property
    def time_B(self) -> Tensor:
        """Times t of the rows."""
        return self.t_B


@dataclass(frozen=True)
class Duo:
    """Duo in training; losses on held-out rows are those without a curriculum."""

    bound: ClassVar[bool] = True

    vocab: int
    schedule: LogLinear = LogLinear()
    curriculum: Curriculum | None = None

    @property
    def embeddings(self) -> int:
        """Rows of the embedding: the vocabulary."""
        return self.vocab

    def draw(
        self, *, seed: int, step: int, rows_B: Tensor, batch: int, seq_len: int, normal: Normal = noise.normal
    ) -> Draws | CurriculumDraws:
        """Times in strata of the global batch, which tokens are kept, and the others; or the curriculum's draws."""
        if self.curriculum is not None and step < self.curriculum.steps:
            return self.curriculum.draw(
                seed=seed, step=step, rows_B=rows_B, batch=batch, seq_len=seq_len, normal=normal
            )
        u_B = times.stratified(seed=seed, step=step, rows_B=rows_B, batch=batch)
        keep_BL, other_BL = noise.uniform(seed, "uniform_state", step, rows_B, (2, seq_len)).unbind(1)
        return Draws(times.above(times.T_MIN, u_B), keep_BL, (other_BL * self.vocab).long())

    def corrupt(self, x_BL: Tensor, draws: Draws) -> Tensor:
        """z_t (B, L): each token is kept with probability α_t."""
        return torch.where(draws.u_BL < self.schedule.alpha(draws.t_B)[:, None], x_BL, draws.other_BL)

    def losses(self, network: TrainedNetwork, x_BL: Tensor, draws: Draws | CurriculumDraws) -> Losses:
        """Losses whose mean is the NELBO per token or, in the curriculum, the part of it between its ends."""
        if isinstance(draws, Draws):
            z_BL, alpha_B = self.corrupt(x_BL, draws), self.schedule.alpha(draws.t_B)
            slope_B = torch.full_like(alpha_B, self.schedule.slope)
            e_BLW = F.embedding(z_BL, network.embedding)
        else:
            assert self.curriculum is not None
            alpha_B, slope_B = self.curriculum.alpha_slope(draws.gamma_B)
            relax = self.curriculum.relaxation.relax
            z_BL, e_BLW = relax(network.embedding, x_BL, draws.gamma_B, draws.numbers)
        h_BLW = network.hidden(e_BLW, -alpha_B.log())
        return nelbo(network, h_BLW, x_BL, z_BL, alpha_B, slope_B)


def nelbo(
    network: TrainedNetwork, h_BLW: Tensor, x_BL: Tensor, z_BL: Tensor, alpha_B: Tensor, slope_B: Tensor
) -> Losses:
    """The NELBO's rate at these α and −dα/dt, from the network's states h."""
    vocab, like_BL = len(network.embedding), torch.ones_like(x_BL, dtype=alpha_B.dtype)
    of_BL = x_BL, z_BL, alpha_B[:, None] * like_BL, slope_B[:, None] * like_BL
    return loss_by_parts(position_losses, network, h_BLW, vocab, *of_BL)


def position_losses(logits_PV: Tensor, x_P: Tensor, z_P: Tensor, alpha_P: Tensor, slope_P: Tensor) -> Tensor:
    """The Rao–Blackwellised loss (P,) in continuous time (Sahoo et al., 2025), in one pass over the vocabulary.

        ℓ = −α′/(Kα) Σ_{y≠z} [r_y log(r_y/r̂_y) − r_y + r̂_y],   r_y = x̄_y/x̄_z,   x̄ = Kα x + 1 − α,

    with r̂ from x_θ in place of x. Divided by 1 − α, and with w = Kα/(1 − α), x̄ is a = 1 + w·onehot(x) and x̄^θ is
    b = 1 + w x_θ, and both sum to K + w. Then the only sum over the whole vocabulary is Σ log b:

        ℓ = −α′/(Kα) {Σ r log r − [Σ log b + w log b_x − (K + w) log b_z]/a_z − (K + w)/a_z + (K + w)/b_z}.
    """
    vocab = logits_PV.shape[-1]
    w_P = vocab * alpha_P / (1 - alpha_P)
    p_PV = logits_PV.softmax(-1)
    sum_log_b_P = (w_P.to(p_PV.dtype)[:, None] * p_PV).log1p().sum(-1).double()
    p_x_P, p_z_P = (p_PV.gather(-1, of_P[:, None]).squeeze(-1).double() for of_P in (x_P, z_P))
    log_b_x_P, log_b_z_P = (w_P * p_x_P).log1p(), (w_P * p_z_P).log1p()

    # Σ r log r: if z = x, all other entries are 1/(1 + w); else the entry at x is 1 + w and the others are 1.
    same_P = x_P == z_P
    a_z_P = torch.where(same_P, 1 + w_P, 1.0)
    entropy_P = torch.where(same_P, -(vocab - 1) / (1 + w_P), 1 + w_P) * w_P.log1p()

    cross_P = (sum_log_b_P + w_P * log_b_x_P - (vocab + w_P) * log_b_z_P) / a_z_P
    inside_P = entropy_P - cross_P + (vocab + w_P) * (1 / (1 + w_P * p_z_P) - 1 / a_z_P)
    return (slope_P / (vocab * alpha_P) * inside_P).to(logits_PV.dtype)


@dataclass(frozen=True)
class DuoProcess:
    """Duo's ancestral sampler: rows of the posterior, the last one at α_s = 1."""

    vocab: int
    steps: int
    absorbing: bool = False
    schedule: LogLinear = LogLinear()

    @property
    def rows(self) -> int:
        """Steps, and the last row."""
        return self.steps + 1

    @cached_property
    def alphas(self) -> list[tuple[float, float]]:
        """(α_t, α_s) of each row."""
        return alphas(self.schedule, self.steps)

    def condition(self, row: int) -> float | None:
        """−log α_t."""
        return -math.log(self.alphas[row][0])

    def mixture(self, row: int, state: ChainState, x_theta: Estimate) -> Mixture:
        """The law of a row."""
        return uniform_posterior(x_theta.of(state.z_BL), *self.alphas[row], self.vocab)


def uniform_posterior(x_z_BL: Tensor, alpha_t: float, alpha_s: float, vocab: int) -> Mixture:
    """q(z_s | z_t, x_θ) as a mixture (Sahoo et al., 2025), from x_θ (B, L) at the tokens of z_t."""
    weight_BL, kept = alpha_t * vocab * x_z_BL, alpha_t / alpha_s
    total_BL = weight_BL + 1 - alpha_t
    return Mixture(
        stay_BL=(weight_BL + kept - alpha_t) / total_BL,
        token_BL=(alpha_s - alpha_t) / total_BL,
        noise_BL=(1 - kept) * (1 - alpha_s) / total_BL,
    )
