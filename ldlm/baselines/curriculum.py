"""Duo's curriculum: uniform-state diffusion seen through Gaussian noise on one-hot vectors (Sahoo et al., 2025).

With γ in place of the time, w = α̃·onehot(x) + σ̃·ε, where α̃² = sigmoid(−γ), σ̃² = sigmoid(γ) and ε ~ N(0, I_K). Then
z = argmax w is a uniform-state process with α = α(γ), and the network is fed softmax(w/T)·E in place of E[z]: z with a
little of the runners-up. There are three ways to draw that input and z:

- `Full`, as first published, draws w, K numbers for each position.
- `TopK`, from the second paper (Deschenaux et al., 2026), draws only the largest entries, by order statistics.
- `Discrete` is T → 0: a token is drawn, and nothing is soft. At the published T of 1e-3 most positions are like this.

Shape letters: CONTRIBUTING.md. K of the paper is V; k entries besides the true one are kept, J = k + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ldlm import noise
from ldlm.baselines import times
from ldlm.baselines.argmax import gamma_range, keep_at_gamma
from ldlm.baselines.interface import Normal
from ldlm.config import DuoCurriculumConfig
from ldlm.errors import InputError

TINY = 1e-12  # least distance of α, computed by quadrature, from 0 and 1 for a finite loss


class Relaxed(NamedTuple):
    """Noisy tokens, and the network's input, which is a softer form of them."""

    z_BL: Tensor  # the token whose entry is the largest
    e_BLW: Tensor  # the network's input


class Relaxation(Protocol):
    """A way to draw z and the network's input for given γ."""

    def draw(
        self, seed: int, step: int, rows_B: Tensor, seq_len: int, normal: Normal = noise.normal
    ) -> tuple[Tensor, ...]:
        """The random numbers of a step."""

    def relax(self, embedding: Tensor, x_BL: Tensor, gamma_B: Tensor, numbers: Any) -> Relaxed:
        """z and the network's input."""


class CurriculumDraws(NamedTuple):
    """The randomness of a training step in the curriculum."""

    time_B: Tensor  # float64: the position of γ between its ends
    gamma_B: Tensor  # float64
    numbers: tuple[Tensor, ...]  # of the relaxation


@dataclass(frozen=True)
class Curriculum:
    """The first `steps` steps of Duo's training, with γ from γ_min to γ_max."""

    relaxation: Relaxation
    vocab: int
    steps: int
    gamma_min: float
    gamma_max: float

    @classmethod
    def of(cls, config: DuoCurriculumConfig, vocab: int, steps: int) -> Curriculum | None:
        """The curriculum of a run of `steps` steps; None if the configuration has none.

        If it names no γ, the ends are where α(γ) is 0.95 and 0.05, which depends on the size of the vocabulary.
        """
        if config.kind == "none":
            return None
        if config.kind == "top-k" and config.top_k >= vocab:
            raise InputError(f"top_k={config.top_k} must be less than the {vocab} tokens of the vocabulary")
        relaxations: dict[str, Relaxation] = {
            "top-k": TopK(vocab, config.temperature, config.top_k),
            "full": Full(vocab, config.temperature),
            "discrete": Discrete(vocab),
        }
        low, high = gamma_range(vocab)
        low = low if config.gamma_min is None else config.gamma_min
        high = high if config.gamma_max is None else config.gamma_max
        if low >= high:
            raise InputError(f"gamma_min={low:g} must be less than gamma_max={high:g}")
        most, least = keep_at_gamma(torch.tensor([low, high], dtype=torch.float64), vocab)[0].tolist()
        if not (most <= 1 - TINY and least >= TINY):
            raise InputError(
                f"gamma_min={low:g} and gamma_max={high:g} keep all tokens or none: α goes from {most:.6g} to "
                f"{least:.6g}; choose them near {' and '.join(f'{gamma:.3g}' for gamma in gamma_range(vocab))}, where "
                f"it goes from 0.95 to 0.05"
            )
        return cls(relaxations[config.kind], vocab, config.steps_of(steps), low, high)

    def draw(
        self, *, seed: int, step: int, rows_B: Tensor, batch: int, seq_len: int, normal: Normal = noise.normal
    ) -> CurriculumDraws:
        """γ, one in each stratum of the global batch, and the relaxation's numbers."""
        t_B = times.above(times.T_MIN, times.stratified(seed=seed, step=step, rows_B=rows_B, batch=batch))
        gamma_B = self.gamma_min + t_B * (self.gamma_max - self.gamma_min)
        return CurriculumDraws(t_B, gamma_B, self.relaxation.draw(seed, step, rows_B, seq_len, normal))

    def alpha_slope(self, gamma_B: Tensor) -> tuple[Tensor, Tensor]:
        """α and −dα/dt (B,) at these γ."""
        alpha_B, slope_B = keep_at_gamma(gamma_B, self.vocab)
        return alpha_B, -slope_B * (self.gamma_max - self.gamma_min)


def scales(gamma_B: Tensor) -> tuple[Tensor, Tensor]:
    """(α̃, σ̃) of the Gaussian, (B, 1) each."""
    return (-gamma_B).sigmoid().sqrt()[:, None], gamma_B.sigmoid().sqrt()[:, None]


# ----------------------------------------------------------------------------------------------------------------------
# Relaxations


@dataclass(frozen=True)
class Full:
    """softmax(w/T) over the whole vocabulary."""

    vocab: int
    temperature: float

    def draw(
        self, seed: int, step: int, rows_B: Tensor, seq_len: int, normal: Normal = noise.normal
    ) -> tuple[Tensor, ...]:
        """ε (B, L, V)."""
        return (normal(seed, "relaxed", rows_B.new_full((), step), rows_B, (seq_len, self.vocab)),)

    def relax(self, embedding: Tensor, x_BL: Tensor, gamma_B: Tensor, numbers: Any) -> Relaxed:
        """z and softmax(w/T)·E."""
        (eps_BLV,) = numbers
        alpha_B1, sigma_B1 = (scale[..., None].to(eps_BLV.dtype) for scale in scales(gamma_B))
        w_BLV = sigma_B1 * eps_BLV
        w_BLV.scatter_add_(-1, x_BL[..., None], alpha_B1.expand(*x_BL.shape, 1))
        return Relaxed(w_BLV.argmax(-1), (w_BLV / self.temperature).softmax(-1).to(embedding.dtype) @ embedding)


@dataclass(frozen=True)
class Discrete:
    """E[z] of a z drawn by α(γ)."""

    vocab: int

    def draw(
        self, seed: int, step: int, rows_B: Tensor, seq_len: int, normal: Normal = noise.normal
    ) -> tuple[Tensor, ...]:
        """Uniform numbers (B, L): which tokens are kept, and the tokens that replace the others."""
        keep_BL, other_BL = noise.uniform(seed, "uniform_state", step, rows_B, (2, seq_len)).unbind(1)
        return keep_BL, (other_BL * self.vocab).long()

    def relax(self, embedding: Tensor, x_BL: Tensor, gamma_B: Tensor, numbers: Any) -> Relaxed:
        """z and E[z]."""
        keep_BL, other_BL = numbers
        z_BL = torch.where(keep_BL < keep_at_gamma(gamma_B, self.vocab)[0][:, None], x_BL, other_BL)
        return Relaxed(z_BL, F.embedding(z_BL, embedding))


@dataclass(frozen=True)
class TopK:
    """softmax(w/T) of the true entry and the k largest others; the weight of the rest is taken in the mean."""

    vocab: int
    temperature: float
    k: int

    def draw(
        self, seed: int, step: int, rows_B: Tensor, seq_len: int, normal: Normal = noise.normal
    ) -> tuple[Tensor, ...]:
        """The true entry's ε (B, L), and uniform numbers (B, L, k) for values and tokens of the largest others."""
        true_BL = normal(seed, "relaxed", rows_B.new_full((), step), rows_B, (seq_len,))
        u_B2Lk = noise.uniform_fine(seed, "largest", step, rows_B, (2, seq_len, self.k))
        return true_BL, *u_B2Lk.unbind(1)

    def relax(self, embedding: Tensor, x_BL: Tensor, gamma_B: Tensor, numbers: Any) -> Relaxed:
        """z and the weighted sum of the entries' embeddings."""
        true_BL, of_value_BLk, of_id_BLk = numbers
        alpha_B1, sigma_B1 = scales(gamma_B)
        w_BL1 = (alpha_B1 + sigma_B1 * true_BL.double())[..., None]
        largest_BLk = largest_normals(of_value_BLk, self.vocab - 1)
        w_BLJ = torch.cat([w_BL1, sigma_B1[..., None] * largest_BLk], dim=-1)
        ids_BLJ = torch.cat([x_BL[..., None], distinct(of_id_BLk, x_BL, self.vocab)], dim=-1)

        # Weights; the entries below the k-th count in the normalisation but not in the input.
        log_rest_BL1 = math.log(max(self.vocab - 1 - self.k, 1e-300)) + log_mean_below(
            largest_BLk[..., -1:], sigma_B1[..., None] / self.temperature
        )
        log_sum_BL1 = torch.cat([w_BLJ / self.temperature, log_rest_BL1], dim=-1).logsumexp(-1, keepdim=True)
        p_BLJ = (w_BLJ / self.temperature - log_sum_BL1).exp().to(embedding.dtype)

        z_BL = torch.where(w_BLJ[..., 0] > w_BLJ[..., 1], x_BL, ids_BLJ[..., 1])
        e_PW = F.embedding_bag(ids_BLJ.flatten(0, 1), embedding, per_sample_weights=p_BLJ.flatten(0, 1), mode="sum")
        return Relaxed(z_BL, e_PW.unflatten(0, x_BL.shape))


def largest_normals(u_BLk: Tensor, count: int) -> Tensor:
    """The k largest of `count` standard normal numbers, in descending order, from k uniform numbers (…, k), float64.

    The largest of n uniform numbers is u^(1/n), and given it the others are n − 1 uniform numbers below it.
    """
    left_k = count - torch.arange(u_BLk.shape[-1], device=u_BLk.device, dtype=torch.float64)
    log_cdf_BLk = (u_BLk.log() / left_k).cumsum(-1)
    return -torch.special.ndtri(-torch.expm1(log_cdf_BLk))


def log_mean_below(bound: Tensor, slope: Tensor) -> Tensor:
    """log E[e^(a n) | n < c] of a standard normal n, with c = `bound` and a = `slope`, without overflow.

    It is the log of e^(a²/2) Φ(c − a)/Φ(c), where Φ(c − a) is written with the scaled erfc, so that a² cancels.
    """
    scaled = torch.special.erfcx((slope - bound) / math.sqrt(2)) / 2
    return slope * bound - bound.square() / 2 + scaled.log() - torch.special.log_ndtr(bound)


def distinct(u_BLk: Tensor, x_BL: Tensor, vocab: int) -> Tensor:
    """k distinct tokens (B, L, k) other than x, all ordered sets equally likely, from k uniform numbers (B, L, k).

    A token is drawn by its rank among those that are left, and moved up past those already taken.
    """
    taken_BLk = x_BL[..., None]
    found = []
    for j, u_BL in enumerate(u_BLk.unbind(-1)):
        token_BL = (u_BL * (vocab - 1 - j)).long()
        for other_BL in taken_BLk.sort(-1).values.unbind(-1):
            token_BL = token_BL + (token_BL >= other_BL)
        found.append(token_BL)
        taken_BLk = torch.cat([taken_BLk, token_BL[..., None]], dim=-1)
    return torch.stack(found, dim=-1)
