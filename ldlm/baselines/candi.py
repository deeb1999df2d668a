"""CANDI: masked tokens that show a noisy version of themselves (Pynadath et al., 2025, arXiv 2510.22510).

Forward process: a token is revealed up to time t with probability α_t, as in MDLM. Otherwise the network sees the mask
and, beside it, y = onehot(x) + σε. σ(t) is set by a rank: the expected share r of tokens whose entry of y is larger
than that of x itself, which grows linearly in 1 − α_t.

y enters the network only as y·Ē, where the rows of Ē are those of the embedding scaled to length 1. So training and
sampler draw W noise numbers instead of V, with the same law: `projection` says how.

The loss is not a bound on the likelihood, and even with an exact denoiser the sampler does not converge to the data.

Shape letters: CONTRIBUTING.md. R is the noise numbers at a position. The mask is the last row of the embedding.
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
from ldlm.baselines.drawing import invert, race
from ldlm.baselines.interface import Losses, Network, Normal, TrainedNetwork
from ldlm.baselines.projection import factor, numbers, projected
from ldlm.baselines.schedule import LogLinear
from ldlm.baselines.vocabulary import loss_by_parts, parts, weighted_cross_entropy
from ldlm.config import CANDIConfig, CANDINoiseConfig
from ldlm.errors import InputError
from ldlm.sampling.tokens import probabilities

T_START, T_END = 0.999, 1e-5  # of the sampler's grid


@dataclass(frozen=True)
class RankNoise:
    """σ as a function of the share of tokens that are not revealed, 1 − α.

    r = (d − 1)/d · Φ(−1/(σ√2)) for d tokens, so σ = −1/(√2 Φ⁻¹(r d/(d − 1))).
    """

    vocab: int
    low: float
    high: float

    @classmethod
    def of(cls, vocab: int, config: CANDINoiseConfig) -> RankNoise:
        """The noise for a vocabulary; `InputError` for ranks that no noise can give."""
        most = 0.5 * (vocab - 1) / vocab
        if not config.r_low <= config.r_high < most:
            raise InputError(
                f"r_low={config.r_low:g} and r_high={config.r_high:g} must rise, and stay below {most:g}, the rank "
                f"of pure noise among {vocab} tokens"
            )
        return cls(vocab, config.r_low, config.r_high)

    def sigma(self, hidden: Tensor) -> Tensor:
        """σ in float64, at 1 − α in [0, 1]."""
        r = self.low + hidden.double() * (self.high - self.low)
        return -1 / (math.sqrt(2) * torch.special.ndtri(r * self.vocab / (self.vocab - 1)))


def unit_rows(embedding: Tensor) -> Tensor:
    """Ē (V + 1, W): the rows of the embedding scaled to length 1, in float32 or finer."""
    return F.normalize(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), dim=-1)


def network_input(unit: Tensor, x_BL: Tensor, revealed_BL: Tensor, y_BLW: Tensor, sigma: Tensor | float) -> Tensor:
    """Inputs of the network (B, L, W): Ē[x] where a token is revealed, else ½ Ē[mask] + ½ y·Ē/√(1 + σ²)."""
    hidden_BLW = (unit[-1] + y_BLW / (1 + sigma**2) ** 0.5) / 2
    return torch.where(revealed_BL[..., None], F.embedding(x_BL, unit), hidden_BLW)


# ----------------------------------------------------------------------------------------------------------------------
# Training


class Draws(NamedTuple):
    """The randomness of a training step."""

    t_B: Tensor  # float64
    u_BL: Tensor  # uniform: which tokens are revealed
    zeta_BLR: Tensor  # standard normal

    @property
    def time_B(self) -> Tensor:
        """Times t of the rows."""
        return self.t_B


@dataclass(frozen=True)
class CANDI:
    """CANDI in training, with a network of width `width`."""

    bound: ClassVar[bool] = False

    vocab: int
    width: int
    ranks: RankNoise
    schedule: LogLinear = LogLinear()

    @property
    def embeddings(self) -> int:
        """Rows of the embedding: the vocabulary and the mask."""
        return self.vocab + 1

    def draw(
        self, *, seed: int, step: int, rows_B: Tensor, batch: int, seq_len: int, normal: Normal = noise.normal
    ) -> Draws:
        """Times, one in each stratum of the global batch; which tokens are revealed; and the noise."""
        u_B = times.stratified(seed=seed, step=step, rows_B=rows_B, batch=batch)
        shape = (seq_len, numbers(self.vocab, self.width))
        return Draws(
            times.above(times.T_MIN, u_B),
            noise.uniform(seed, "mask", step, rows_B, (seq_len,)),
            normal(seed, "candi", rows_B.new_full((), step), rows_B, shape),
        )

    def revealed(self, draws: Draws) -> Tensor:
        """Where tokens are revealed, bool (B, L), with probability α_t.

        The published code corrupts a token by drawing one among V + 1, which reveals 1/(V + 1) of them by chance.
        """
        return draws.u_BL < self.schedule.alpha(draws.t_B)[:, None]

    def corrupt(self, embedding: Tensor, x_BL: Tensor, draws: Draws) -> Tensor:
        """Inputs of the network (B, L, W) for x at time t."""
        unit = unit_rows(embedding)
        sigma_B11 = self.ranks.sigma(1 - self.schedule.alpha(draws.t_B)).to(unit.dtype)[:, None, None]
        y_BLW = F.embedding(x_BL, unit) + sigma_B11 * projected(draws.zeta_BLR, factor(unit[: self.vocab]))
        return network_input(unit, x_BL, self.revealed(draws), y_BLW, sigma_B11)

    def losses(self, network: TrainedNetwork, x_BL: Tensor, draws: Draws) -> Losses:
        """Losses −log x_θ[x] / t where x is not revealed, else 0; 1/t is −α′/(1 − α), as in MDLM."""
        e_BLW, condition_B = self.corrupt(network.embedding, x_BL, draws), -self.schedule.alpha(draws.t_B).log()
        h_BLW, weight_BL = network.hidden(e_BLW, condition_B), ~self.revealed(draws) / draws.t_B[:, None]
        return loss_by_parts(weighted_cross_entropy, network, h_BLW, self.vocab, x_BL, weight_BL)


# ----------------------------------------------------------------------------------------------------------------------
# The sampler


class HybridState(NamedTuple):
    """Texts in progress: at every position a token and y·Ē, of which the network sees one."""

    seeds_B: Tensor
    y_BLW: Tensor
    token_BL: Tensor
    clean_BL: Tensor  # bool: where the token is final
    unit: Tensor  # Ē


class Row(NamedTuple):
    """A row of the grid."""

    condition: float  # −log α_t
    sigma: float
    sigma_next: float
    cleans: float  # probability that a position becomes clean


@dataclass(frozen=True)
class CANDISampler:
    """The cached sampler of CANDI's code, with one evaluation per row; tokens are drawn wherever none is final."""

    vocab: int
    seq_len: int
    ranks: RankNoise
    config: CANDIConfig
    schedule: LogLinear = LogLinear()

    @property
    def rows(self) -> int:
        """Steps of the grid."""
        return self.config.steps

    @cached_property
    def grid(self) -> list[Row]:
        """The rows: equal steps in t from 0.999 to 1e-5; a position becomes clean with probability (1 − 1e-5)/(N t)."""
        t_N = torch.linspace(T_START, T_END, self.rows + 1, dtype=torch.float64)
        alpha_N = self.schedule.alpha(t_N)
        sigma_N = self.ranks.sigma(1 - alpha_N)
        cleans_N = ((1 - T_END) / self.rows / t_N).clamp(max=1)
        columns = (-alpha_N.log()[:-1], sigma_N[:-1], sigma_N[1:], cleans_N[:-1])
        return [Row(*row) for row in torch.stack(columns, dim=1).tolist()]

    def begin(self, network: Network, seeds_B: Tensor) -> HybridState:
        """y = σ(0.999)·ε, as y·Ē, and no clean position."""
        unit = unit_rows(network.embedding)
        c_RW = factor(unit[: self.vocab])
        zeta_BLR = noise.normal(seeds_B, "candi_start", 0, torch.zeros_like(seeds_B), (self.seq_len, len(c_RW)))
        token_BL = seeds_B.new_zeros(len(seeds_B), self.seq_len)
        y_BLW = self.grid[0].sigma * projected(zeta_BLR, c_RW)
        return HybridState(seeds_B, y_BLW, token_BL, torch.zeros_like(token_BL, dtype=torch.bool), unit)

    def step(self, network: Network, state: HybridState, row: int) -> HybridState:
        """Draw x̂_0 wherever no token is final, move y towards it, and make some positions clean."""
        seeds_B, y_BLW, token_BL, clean_BL, unit = state
        at = self.grid[row]

        # The network is told the next row's σ, as in the published code.
        e_BLW = network_input(unit, token_BL, clean_BL, y_BLW, at.sigma_next).to(network.embedding.dtype)
        h_BLW = network.hidden(e_BLW, e_BLW.new_full((1,), at.condition))

        draw = self._exact if self.config.drawing == "exact" else self._race
        token_BL = draw(network, h_BLW, state, row)

        y_BLW = y_BLW - self.pull(at) * (y_BLW - F.embedding(token_BL, unit))
        u_BL = noise.uniform(seeds_B, "candi_clean", row, torch.zeros_like(seeds_B), (self.seq_len,))
        return HybridState(seeds_B, y_BLW, token_BL, clean_BL | (u_BL < at.cleans), unit)

    def pull(self, at: Row) -> float:
        """The share of the way from y to x̂_0 that a row covers: η (σ − σ′)/σ′², or (σ − σ′)/σ′ on the flow."""
        power = 2 if self.config.update == "published" else 1
        return self.config.step_size * (at.sigma - at.sigma_next) / at.sigma_next**power

    def finish(self, state: HybridState) -> Tensor:
        """The tokens."""
        return state.token_BL

    def _exact(self, network: Network, h_BLW: Tensor, state: HybridState, row: int) -> Tensor:
        """Tokens (B, L), drawn by inversion in float64 where none is final."""
        u_BL = noise.uniform_fine(state.seeds_B, "candi_token", row, torch.zeros_like(state.seeds_B), (self.seq_len,))
        token_P, u_P, h_PW = state.token_BL.flatten().clone(), u_BL.flatten(), h_BLW.flatten(0, 1)
        for where_P in parts((~state.clean_BL).flatten().nonzero().squeeze(-1), self.vocab):
            token_P[where_P] = invert(self._law(network.logits(h_PW[where_P])), u_P[where_P])
        return token_P.view_as(state.token_BL)

    def _race(self, network: Network, h_BLW: Tensor, state: HybridState, row: int) -> Tensor:
        """Tokens (B, L), drawn by a race at all positions, as published; final ones stay."""
        drawn_BL = race(self._law(network.logits(h_BLW)), state.seeds_B, row)
        return torch.where(state.clean_BL, state.token_BL, drawn_BL)

    def _law(self, logits_V: Tensor) -> Tensor:
        """Probabilities (…, V) float64 of x̂_0."""
        return probabilities(logits_V.double(), self.config.temperature)
