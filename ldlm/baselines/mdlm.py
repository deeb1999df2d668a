"""MDLM: masked diffusion of language (Sahoo et al., 2024, arXiv 2406.07524).

Forward process: a token is kept up to time t with probability α_t; otherwise it is the mask. The network has no output
for the mask, its output counts only at masked positions (the paper's SUBS), and it is not told the time.

Shape letters: CONTRIBUTING.md. The mask is number V, after the tokens, and the last row of the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ldlm import noise
from ldlm.baselines import times
from ldlm.baselines.chain import ChainState
from ldlm.baselines.drawing import Mixture
from ldlm.baselines.estimate import Estimate
from ldlm.baselines.interface import Losses, Normal, TrainedNetwork
from ldlm.baselines.schedule import LogLinear, alphas
from ldlm.baselines.vocabulary import loss_by_parts, weighted_cross_entropy


class Draws(NamedTuple):
    """The randomness of a training step."""

    t_B: Tensor  # float64
    u_BL: Tensor  # uniform: which tokens are masked

    @property
    def time_B(self) -> Tensor:
        """Times t of the rows."""
        return self.t_B


@dataclass(frozen=True)
class MDLM:
    """MDLM in training."""

    bound: ClassVar[bool] = True

    vocab: int
    schedule: LogLinear = LogLinear()

    @property
    def embeddings(self) -> int:
        """Rows of the embedding: the vocabulary and the mask."""
        return self.vocab + 1

    def draw(
        self, *, seed: int, step: int, rows_B: Tensor, batch: int, seq_len: int, normal: Normal = noise.normal
    ) -> Draws:
        """Times, one in each stratum of the global batch, and which tokens are masked."""
        u_B = times.stratified(seed=seed, step=step, rows_B=rows_B, batch=batch)
        return Draws(times.above(times.T_MIN, u_B), noise.uniform(seed, "mask", step, rows_B, (seq_len,)))

    def corrupt(self, x_BL: Tensor, draws: Draws) -> Tensor:
        """z_t (B, L): each token is the mask with probability 1 − α_t."""
        return x_BL.masked_fill(draws.u_BL >= self.schedule.alpha(draws.t_B)[:, None], self.vocab)

    def losses(self, network: TrainedNetwork, x_BL: Tensor, draws: Draws) -> Losses:
        """Losses −log x_θ[x] / t where z is masked, else 0; their mean is the NELBO per token.

        The weight is −α′/(1 − α), which for a log-linear schedule is 1/t whatever its ε.
        """
        z_BL = self.corrupt(x_BL, draws)
        h_BLW = network.hidden(F.embedding(z_BL, network.embedding), None)
        weight_BL = (z_BL == self.vocab) / draws.t_B[:, None]
        return loss_by_parts(weighted_cross_entropy, network, h_BLW, self.vocab, x_BL, weight_BL)


@dataclass(frozen=True)
class MDLMProcess:
    """MDLM's ancestral sampler: masked tokens are drawn once, and stay (Sahoo et al., 2024).

    From t to s a masked position stays masked with probability (1 − α_s)/(1 − α_t), and is otherwise drawn from x_θ. As
    in their code the sampler has ε = 0, for which that is s/t; with another ε it is the same.
    """

    vocab: int
    steps: int
    absorbing: bool = True

    @property
    def rows(self) -> int:
        """Steps, and the last row, which draws what is still masked."""
        return self.steps + 1

    @cached_property
    def alphas(self) -> list[tuple[float, float]]:
        """(α_t, α_s) of each row."""
        return alphas(LogLinear(0.0), self.steps)

    def condition(self, row: int) -> float | None:
        """None: the network is not told the time."""
        return None

    def mixture(self, row: int, state: ChainState, x_theta: Estimate) -> Mixture:
        """The law of a row."""
        alpha_t, alpha_s = self.alphas[row]
        return absorbing_mixture(state.z_BL == self.vocab, masked=(1 - alpha_s) / (1 - alpha_t))


def absorbing_mixture(masked_BL: Tensor, masked: float | Tensor, remasked: float | Tensor = 0.0) -> Mixture:
    """The law of a row with absorbing states, from two probabilities.

    `masked` is that of a masked position staying masked, `remasked` that of another becoming so; both may be (B, L).
    """
    like_BL = torch.zeros(masked_BL.shape, dtype=torch.float64, device=masked_BL.device)
    masked_to_mask_BL, token_to_mask_BL = like_BL + masked, like_BL + remasked
    return Mixture(
        stay_BL=torch.where(masked_BL, masked_to_mask_BL, 1 - token_to_mask_BL),
        token_BL=torch.where(masked_BL, 1 - masked_to_mask_BL, 0.0),
        noise_BL=torch.where(masked_BL, 0.0, token_to_mask_BL),
    )
