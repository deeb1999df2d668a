"""The rivals as their published code computes them, to be timed: vocabulary-wide tensors are held in full.

What `ldlm.baselines` already has is taken from there: the race in float64 of discrete chains and of CANDI, and the full
curriculum of Duo. Here is the rest: noise of V numbers for each position, FLM's state of V numbers, a nucleus that
sorts all tokens, and logits of all positions at once. The noise is torch's own, from one generator, like theirs.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from ldlm import noise
from ldlm.baselines import times
from ldlm.baselines.argmax import Unwarp
from ldlm.baselines.candi import CANDI, CANDISampler, HybridState, network_input, unit_rows
from ldlm.baselines.candi import Draws as CANDIDraws
from ldlm.baselines.curriculum import Full
from ldlm.baselines.flm import FLM, FLMSampler, euler
from ldlm.baselines.flm import Draws as FLMDraws
from ldlm.baselines.interface import Network, Normal
from ldlm.baselines.nucleus import Nucleus
from ldlm.model import token_loss


def logits_at_once(device: torch.device) -> AbstractContextManager[object]:
    """Context in which the logits of all positions are made at once."""
    return mock.patch.dict(token_loss.CHUNK, {device.type: 2**62})


class SortedNucleus(Nucleus):
    """The nucleus filter by sorting all tokens; of two equally likely ones it may keep the other."""

    def __call__(self, p_PV: Tensor) -> Tensor:
        """The distributions (P, V) with tokens outside the nucleus set to 0, renormalised."""
        sorted_PV, order_PV = p_PV.sort(dim=-1, descending=True)
        mass_PV = sorted_PV.cumsum(-1)
        kept_PV = (mass_PV if self.rule == "exclusive" else mass_PV - sorted_PV) <= self.top_p
        kept_PV[:, 0] = True
        filtered_PV = torch.zeros_like(p_PV).scatter_(-1, order_PV, sorted_PV * kept_PV)
        return filtered_PV / filtered_PV.sum(-1, keepdim=True)


# ----------------------------------------------------------------------------------------------------------------------
# Training


class WideFull(Full):
    """Duo's curriculum over the whole vocabulary."""

    def draw(
        self, seed: int, step: int, rows_B: Tensor, seq_len: int, normal: Normal = noise.normal
    ) -> tuple[Tensor, ...]:
        """ε (B, L, V)."""
        return (_normal(rows_B, seq_len, self.vocab),)


class WideFLM(FLM):
    """FLM in training, with x_t as wide as the vocabulary."""

    def draw(
        self, *, seed: int, step: int, rows_B: Tensor, batch: int, seq_len: int, normal: Normal = noise.normal
    ) -> FLMDraws:
        """Warped times, and ε (B, L, V)."""
        tau_B = times.stratified(seed=seed, step=step, rows_B=rows_B, batch=batch, shuffled=True)
        t_B = Unwarp.of(self.vocab, str(rows_B.device))(tau_B)
        return FLMDraws(tau_B, t_B, _normal(rows_B, seq_len, self.vocab))

    def corrupt(self, embedding_VW: Tensor, x_BL: Tensor, draws: FLMDraws) -> Tensor:
        """x_t·E (B, L, W) with x_t = (1 − t)·ε + t·onehot(x)."""
        eps_BLV, t_B1 = draws.zeta_BLR.to(embedding_VW.dtype), draws.t_B.to(embedding_VW.dtype)[:, None]
        return _add_at((1 - t_B1)[..., None] * eps_BLV, x_BL, t_B1) @ embedding_VW


class WideCANDI(CANDI):
    """CANDI in training, with y as wide as the vocabulary."""

    def draw(
        self, *, seed: int, step: int, rows_B: Tensor, batch: int, seq_len: int, normal: Normal = noise.normal
    ) -> CANDIDraws:
        """Times, the uniform numbers that decide which tokens are revealed, and ε (B, L, V)."""
        t_B = times.above(times.T_MIN, times.stratified(seed=seed, step=step, rows_B=rows_B, batch=batch))
        u_BL = noise.uniform(seed, "mask", step, rows_B, (seq_len,))
        return CANDIDraws(t_B, u_BL, _normal(rows_B, seq_len, self.vocab))

    def corrupt(self, embedding: Tensor, x_BL: Tensor, draws: CANDIDraws) -> Tensor:
        """Inputs of the network (B, L, W) from y = onehot(x) + σ·ε."""
        unit = unit_rows(embedding)
        sigma_B11 = self.ranks.sigma(1 - self.schedule.alpha(draws.t_B)).to(unit.dtype)[:, None, None]
        y_BLV = _add_at(sigma_B11 * draws.zeta_BLR, x_BL, torch.ones_like(sigma_B11[..., 0]))
        return network_input(unit, x_BL, self.revealed(draws), y_BLV @ unit[: self.vocab], sigma_B11)


def _normal(rows_B: Tensor, seq_len: int, vocab: int) -> Tensor:
    """ε (B, L, V), float32."""
    return torch.randn(len(rows_B), seq_len, vocab, device=rows_B.device)


def _add_at(y_BLV: Tensor, x_BL: Tensor, value_B1: Tensor) -> Tensor:
    """y with a row's value added at the tokens of x."""
    return y_BLV.scatter_add_(-1, x_BL[..., None], value_B1.expand(x_BL.shape)[..., None])


# ----------------------------------------------------------------------------------------------------------------------
# Samplers


class WideCANDISampler(CANDISampler):
    """CANDI's sampler with vocabulary-wide first noise; nothing else is that wide except the drawn distributions."""

    def begin(self, network: Network, seeds_B: Tensor) -> HybridState:
        """y = σ(0.999)·ε, as y·Ē, and no clean position."""
        unit = unit_rows(network.embedding)
        y_BLW = self.grid[0].sigma * _normal(seeds_B, self.seq_len, self.vocab).to(unit.dtype) @ unit[: self.vocab]
        token_BL = seeds_B.new_zeros(len(seeds_B), self.seq_len)
        return HybridState(seeds_B, y_BLW, token_BL, torch.zeros_like(token_BL, dtype=torch.bool), unit)


class WideState(NamedTuple):
    """The state of FLM's texts during sampling, as published."""

    z_BLV: Tensor
    token_BL: Tensor


class WideFLMSampler(FLMSampler):
    """FLM's sampler with its state as wide as the vocabulary."""

    def begin(self, network: Network, seeds_B: Tensor) -> Any:
        """z ~ N(0, I_V)."""
        token_BL = seeds_B.new_zeros(len(seeds_B), self.seq_len)
        return WideState(_normal(seeds_B, self.seq_len, self.vocab), token_BL)

    def step(self, network: Network, state: Any, row: int) -> Any:
        """A step on z; the last one sets z = x_θ."""
        (tau, t), (_, t_next) = self.times[row : row + 2]
        e_BLW = state.z_BLV.to(network.embedding.dtype) @ network.embedding
        x_theta_BLV = network.logits(network.hidden(e_BLW, e_BLW.new_full((1,), tau))).softmax(-1)
        if row == self.rows - 1:
            return WideState(x_theta_BLV, x_theta_BLV.argmax(-1))
        return WideState(euler(state.z_BLV, x_theta_BLV, t, t_next), state.token_BL)
