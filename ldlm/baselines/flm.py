"""FLM: a flow on one-hot vectors (Lee et al., 2026, "One-step Language Modeling via Continuous Denoising").

x_t = (1 − t)ε + t·onehot(x) goes from noise to data. The network sees x_t·E, a sum of embeddings, and estimates the
clean token. Time is warped: τ(t), uniform in training, is how often the largest entry of x_t is that of x, beyond
chance.

Only x_t·E enters the network and the flow is linear in x_t, so training and sampler keep e = x_t·E, of width W, and
nothing of width V but the logits. Both are exact: `projection` says how.

Shape letters: CONTRIBUTING.md. K of the paper is V.
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
from ldlm.baselines.argmax import Unwarp
from ldlm.baselines.interface import Losses, Network, Normal, TrainedNetwork
from ldlm.baselines.projection import factor, numbers, projected
from ldlm.baselines.vocabulary import cross_entropy, loss_by_parts, parts
from ldlm.config import FLMConfig

FLOOR = 1e-5  # added to 1 − t in the velocity


class Draws(NamedTuple):
    """The randomness of a training step."""

    tau_B: Tensor  # float64
    t_B: Tensor  # float64: t(τ)
    zeta_BLR: Tensor  # standard normal

    @property
    def time_B(self) -> Tensor:
        """τ, whose values are uniform."""
        return self.tau_B


@dataclass(frozen=True)
class FLM:
    """FLM in training, with a network of width `width`."""

    bound: ClassVar[bool] = False
    schedule: ClassVar[None] = None  # its noise is Gaussian alone

    vocab: int
    width: int

    @property
    def embeddings(self) -> int:
        """Rows of the embedding: the vocabulary."""
        return self.vocab

    def draw(
        self, *, seed: int, step: int, rows_B: Tensor, batch: int, seq_len: int, normal: Normal = noise.normal
    ) -> Draws:
        """Warped times, one in each stratum of the global batch and shuffled, and the noise."""
        tau_B = times.stratified(seed=seed, step=step, rows_B=rows_B, batch=batch, shuffled=True)
        t_B = Unwarp.of(self.vocab, str(rows_B.device))(tau_B)
        shape = (seq_len, numbers(self.vocab, self.width))
        return Draws(tau_B, t_B, normal(seed, "flm", rows_B.new_full((), step), rows_B, shape))

    def corrupt(self, embedding_VW: Tensor, x_BL: Tensor, draws: Draws) -> Tensor:
        """x_t·E (B, L, W) = t·E[x] + (1 − t)·ε·E."""
        noise_BLW = projected(draws.zeta_BLR, factor(embedding_VW))
        t_B11 = draws.t_B.to(noise_BLW.dtype)[:, None, None]
        return t_B11 * F.embedding(x_BL, embedding_VW) + (1 - t_B11) * noise_BLW

    def losses(self, network: TrainedNetwork, x_BL: Tensor, draws: Draws) -> Losses:
        """Losses −log x_θ[x] at every position, unweighted; they do not bound the likelihood."""
        h_BLW = network.hidden(self.corrupt(network.embedding, x_BL, draws), draws.tau_B)
        return loss_by_parts(cross_entropy, network, h_BLW, self.vocab, x_BL)


# ----------------------------------------------------------------------------------------------------------------------
# The sampler


class FlowState(NamedTuple):
    """Texts in progress."""

    e_BLW: Tensor  # z·E
    token_BL: Tensor  # the most likely tokens of the last row; zeros before it


@dataclass(frozen=True)
class FLMSampler:
    """Euler steps on the flow, at equal steps in τ. Nothing is random after the start."""

    vocab: int
    seq_len: int
    config: FLMConfig

    @property
    def rows(self) -> int:
        """Steps of the grid."""
        return self.config.steps

    @cached_property
    def times(self) -> list[tuple[float, float]]:
        """(τ, t) of the grid, N + 1 of them from 0 to 1."""
        tau_N = torch.linspace(0, 1, self.rows + 1, dtype=torch.float64)
        return list(zip(tau_N.tolist(), Unwarp.of(self.vocab)(tau_N).tolist(), strict=True))

    def begin(self, network: Network, seeds_B: Tensor) -> FlowState:
        """z ~ N(0, I_V), as z·E."""
        c_RW = factor(network.embedding)
        zeta_BLR = noise.normal(seeds_B, "flm_start", 0, torch.zeros_like(seeds_B), (self.seq_len, len(c_RW)))
        return FlowState(projected(zeta_BLR, c_RW), seeds_B.new_zeros(len(seeds_B), self.seq_len))

    def step(self, network: Network, state: FlowState, row: int) -> FlowState:
        """A step; the last one is z = x_θ, the most likely tokens."""
        (tau, t), (_, t_next) = self.times[row : row + 2]
        e_BLW = state.e_BLW
        h_BLW = network.hidden(e_BLW.to(network.embedding.dtype), e_BLW.new_full((1,), tau))
        if row == self.rows - 1:
            return FlowState(e_BLW, most_likely(network, h_BLW, self.vocab))
        return FlowState(euler(e_BLW, mean_embedding(network, h_BLW, self.vocab), t, t_next), state.token_BL)

    def finish(self, state: FlowState) -> Tensor:
        """The tokens."""
        return state.token_BL


def euler(z: Tensor, x_theta: Tensor, t: float, t_next: float) -> Tensor:
    """z + (t′ − t)·v with v = (x_θ − z)/(1 − t + 1e-5): linear, so it also holds for z·E and x_θ·E."""
    return z + (t_next - t) / (1 - t + FLOOR) * (x_theta - z)


def mean_embedding(network: Network, h_BLW: Tensor, vocab: int) -> Tensor:
    """x_θ·E (B, L, W) in float32 or finer, from states h, a part of the positions at a time."""
    found = []
    for h_PW in parts(h_BLW.flatten(0, 1), vocab):
        p_PV = network.logits(h_PW).softmax(-1)
        found.append(p_PV @ network.embedding.to(p_PV.dtype))
    return torch.cat(found).view(h_BLW.shape)


def most_likely(network: Network, h_BLW: Tensor, vocab: int) -> Tensor:
    """argmax of x_θ (B, L), from states h, a part of the positions at a time."""
    found = [network.logits(h_PW).argmax(-1) for h_PW in parts(h_BLW.flatten(0, 1), vocab)]
    return torch.cat(found).view(h_BLW.shape[:2])
