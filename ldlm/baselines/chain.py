"""The sampler of a discrete diffusion: the rows of a `Process`, with either way of drawing.

A process defines the law of a row at each position; the chain evaluates the network and draws. If the law does not
depend on x_θ, as with absorbing states, the components are drawn first, and the network is evaluated only if some
position asks for a token. The texts are the same, bit for bit, as with an evaluation in every row. MDLM's code saves
the same evaluations with a cache that it uses until a token of the batch changes (its sampler `ddpm_cache`).

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ldlm import noise
from ldlm.baselines.drawing import Mixture, invert, race
from ldlm.baselines.estimate import Estimate
from ldlm.baselines.interface import Network
from ldlm.baselines.nucleus import Nucleus
from ldlm.config import ChainConfig, Drawing, End


class ChainState(NamedTuple):
    """Texts in progress; at each position z is a token, or V if it is masked."""

    seeds_B: Tensor
    z_BL: Tensor
    confidence_BL: Tensor  # float64: x_θ of the token, in the row that drew it
    x_theta: Estimate | None = None  # of exactly these tokens, if already made


class Process(Protocol):
    """The reverse process of a discrete diffusion on a grid: N rows, and a last one that removes all noise."""

    @property
    def vocab(self) -> int:
        """V."""

    @property
    def absorbing(self) -> bool:
        """Whether noise is the mask, number V; otherwise it is a uniformly random token."""

    @property
    def rows(self) -> int:
        """N + 1."""

    def condition(self, row: int) -> float | None:
        """The network's condition in a row, −log α_t; None if it is not told the time."""

    def mixture(self, row: int, state: ChainState, x_theta: Estimate) -> Mixture:
        """The law of a row; in the last one no noise remains."""


@dataclass(frozen=True)
class Chain:
    """Draws texts by a process, as a `Sampler`.

    `end`: the last row draws a token where one is due, or takes the most likely.
    """

    process: Process
    seq_len: int
    nucleus: Nucleus = Nucleus()
    end: End = "draw"
    drawing: Drawing = "exact"

    @classmethod
    def of(cls, process: Process, seq_len: int, config: ChainConfig) -> Chain:
        """The chain of a process with the settings of a configuration."""
        nucleus = Nucleus(config.top_p, config.nucleus_rule)
        return cls(process, seq_len, nucleus, config.end, config.drawing)

    @property
    def rows(self) -> int:
        """Rows to take: N, and the last one."""
        return self.process.rows

    @property
    def mask(self) -> int | None:
        """Number of the mask."""
        return self.process.vocab if self.process.absorbing else None

    def begin(self, network: Network, seeds_B: Tensor) -> ChainState:
        """Noise alone: all masked, or uniform tokens."""
        shape = (len(seeds_B), self.seq_len)
        if self.mask is None:
            u_BL = noise.uniform_fine(seeds_B, "chain_start", 0, torch.zeros_like(seeds_B), (self.seq_len,))
            z_BL = (u_BL * self.process.vocab).long()
        else:
            z_BL = seeds_B.new_full(shape, self.mask)
        return ChainState(seeds_B, z_BL, torch.ones(shape, dtype=torch.float64, device=seeds_B.device))

    def step(self, network: Network, state: ChainState, row: int) -> ChainState:
        """Draw the next tokens by the law of a row."""
        x_theta = self.estimate(network, state, row)
        draw = self._exact if self.drawing == "exact" else self._race
        return draw(state, row, x_theta)

    def finish(self, state: ChainState) -> Tensor:
        """The tokens."""
        return state.z_BL

    def estimate(self, network: Network, state: ChainState, row: int) -> Estimate:
        """x_θ at a row, which is not evaluated before it is used."""
        return state.x_theta or Estimate(network, state.z_BL, self.process.condition(row), self.nucleus)

    def mixture(self, state: ChainState, row: int, x_theta: Estimate) -> Mixture:
        """The law of a row: the process's, unless the last row takes the most likely tokens.

        With uniform noise no position is known to be clean, and all of them take the most likely token.
        """
        if self._greedy(row) and self.mask is None:
            one_BL = torch.ones_like(state.confidence_BL)
            return Mixture(torch.zeros_like(one_BL), one_BL, torch.zeros_like(one_BL))
        return self.process.mixture(row, state, x_theta)

    def law(self, state: ChainState, row: int, x_theta: Estimate) -> Tensor:
        """Probabilities (B, L, S) of the states after a row, in float64 and all at once."""
        x_theta_BLV = x_theta.all_BLV
        if self._greedy(row):
            most_BL1 = x_theta_BLV.argmax(-1, keepdim=True)
            x_theta_BLV = torch.zeros_like(x_theta_BLV).scatter_(-1, most_BL1, 1.0)
        return self.mixture(state, row, x_theta).law(state.z_BL, x_theta_BLV, self.mask)

    def _greedy(self, row: int) -> bool:
        return self.end == "argmax" and row == self.rows - 1

    def _exact(self, state: ChainState, row: int, x_theta: Estimate) -> ChainState:
        """Choose a component at each position, then draw tokens where they are due."""
        address = (state.seeds_B, "chain", row, torch.zeros_like(state.seeds_B))
        component_BL, token_BL = noise.uniform_fine(*address, (2, self.seq_len)).unbind(1)
        due_BL, noise_BL = self.mixture(state, row, x_theta).choose(component_BL)

        # Noise
        other_BL: Any = self.mask if self.mask is not None else (token_BL * self.process.vocab).long()
        z_P = torch.where(noise_BL, other_BL, state.z_BL).flatten()
        confidence_P = state.confidence_BL.flatten().clone()

        # Tokens. If none is due, the network is not needed.
        where_P = due_BL.flatten().nonzero().squeeze(-1)
        if len(where_P):
            tokens_P, chances_P = self._tokens(x_theta, where_P, token_BL.flatten()[where_P], self._greedy(row))
            z_P[where_P], confidence_P[where_P] = tokens_P, chances_P
        return ChainState(state.seeds_B, z_P.view_as(state.z_BL), confidence_P.view_as(state.z_BL))

    @staticmethod
    def _tokens(x_theta: Estimate, where_P: Tensor, u_P: Tensor, greedy: bool) -> tuple[Tensor, Tensor]:
        """Tokens (P,) at positions of the flattened batch, and their x_θ."""
        tokens, chances, done = [], [], 0
        for p_PV in x_theta.at(where_P):
            part_P = p_PV.argmax(-1) if greedy else invert(p_PV, u_P[done : done + len(p_PV)])
            tokens.append(part_P)
            chances.append(p_PV.gather(-1, part_P[:, None]).squeeze(-1))
            done += len(p_PV)
        return torch.cat(tokens), torch.cat(chances)

    def _race(self, state: ChainState, row: int, x_theta: Estimate) -> ChainState:
        """Draw every position from its whole law, as published; x_θ is reused while no token of a batch changes."""
        z_BL = race(self.law(state, row, x_theta), state.seeds_B, row)
        drawn_BL = (z_BL != state.z_BL) & (z_BL < self.process.vocab)
        chance_BL = x_theta.of(torch.where(drawn_BL, z_BL, 0))
        confidence_BL = torch.where(drawn_BL, chance_BL, state.confidence_BL)
        timeless = self.process.condition(row) is None
        kept = x_theta if timeless and torch.equal(z_BL, state.z_BL) else None
        return ChainState(state.seeds_B, z_BL, confidence_BL, kept)
