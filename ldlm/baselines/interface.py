"""The interface of a rival method: a `Method` that is trained, and `Sampler`s that draw texts with its network.

One training loop asks a method for the randomness of a step and for the losses; one sampling loop, `draw_texts`, takes
a sampler's rows one by one. A method sees only what `Network` exposes of its network, and never the loop.

Shape letters: CONTRIBUTING.md. K of the papers, the size of the vocabulary, is V.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ldlm import noise
from ldlm.baselines.schedule import LogLinear

Normal = Callable[..., Tensor]  # `noise.normal`, perhaps compiled


class Network(Protocol):
    """The backbone as a method sees it: embeddings, a body, and a head that can be evaluated at some positions only."""

    @property
    def embedding(self) -> Tensor:
        """Embeddings: a row for each of the V tokens, then one for the mask if the method has one."""

    def hidden(self, e_BLW: Tensor, condition_B: Tensor | None) -> Tensor:
        """States (B, L, W) before the head. The condition is a scalar per row, or one for all; None means none."""

    def logits(self, h_W: Tensor) -> Tensor:
        """Logits (…, V) of states (…, W), in float32 or finer."""


class TrainedNetwork(Network, Protocol):
    """The backbone as a method trains it."""

    @property
    def head_parameters(self) -> tuple[Tensor, ...]:
        """All parameters that `logits` reads."""


class Losses(NamedTuple):
    """Losses in nats. `mean` carries the gradient; the others are recorded."""

    mean: Tensor  # over all positions
    loss_BL: Tensor  # each position's share


class Draws(Protocol):
    """The randomness of a training step."""

    @property
    def time_B(self) -> Tensor:
        """Times in (0, 1] over which losses are shown."""


class Method(Protocol):
    """A method in training. Randomness is keyed by (seed, step, row of the global batch)."""

    bound: ClassVar[bool]  # whether the loss on held-out rows bounds the negative log-likelihood

    @property
    def embeddings(self) -> int:
        """Rows of the network's embedding: V, plus one for a mask."""

    @property
    def schedule(self) -> LogLinear | None:
        """α(t), the chance by which draws' `u_BL` keep a token at their `t_B`; None of a method that keeps none."""

    def draw(
        self, *, seed: int, step: int, rows_B: Tensor, batch: int, seq_len: int, normal: Normal = noise.normal
    ) -> Draws:
        """The randomness of a step for the rows `rows_B` of a global batch of `batch`, on their device.

        `normal` may be `noise.normal` compiled, which takes the step as a tensor.
        """

    def losses(self, network: TrainedNetwork, x_BL: Tensor, draws: Any) -> Losses:
        """The loss of a batch of tokens, and each position's share."""


class Sampler(Protocol):
    """A reverse process in `rows` rows of at most one evaluation each, which carries its own kind of state along.

    A text's randomness is keyed by (its seed, row), so that a text depends on its seed and not on its batch.
    """

    @property
    def rows(self) -> int:
        """Rows to take, from number 0 on."""

    def begin(self, network: Network, seeds_B: Tensor) -> Any:
        """The state from which texts with these seeds are drawn."""

    def step(self, network: Network, state: Any, row: int) -> Any:
        """The state after a row."""

    def finish(self, state: Any) -> Tensor:
        """Tokens (B, L) int64 of the last state."""


@dataclass(frozen=True)
class Drawn:
    """Texts and their cost: rows of the sampler, and evaluations of the network, which may be fewer."""

    tokens_BL: Tensor
    rows: int
    evaluations: int


@torch.no_grad()
def draw_texts(sampler: Sampler, network: Network, seeds_B: Tensor) -> Drawn:
    """Draw the texts of `seeds_B`, on the device of the seeds."""
    counted = Counted(network)
    state = sampler.begin(counted, seeds_B)
    for row in range(sampler.rows):
        state = sampler.step(counted, state, row)
    return Drawn(sampler.finish(state), sampler.rows, counted.evaluations)


class Counted:
    """A network that counts its evaluations."""

    def __init__(self, network: Network) -> None:
        self.network, self.evaluations = network, 0

    @property
    def embedding(self) -> Tensor:
        """Embeddings of the network."""
        return self.network.embedding

    def hidden(self, e_BLW: Tensor, condition_B: Tensor | None) -> Tensor:
        """States of the network; the evaluation is counted."""
        self.evaluations += 1
        return self.network.hidden(e_BLW, condition_B)

    def logits(self, h_W: Tensor) -> Tensor:
        """Logits of the network."""
        return self.network.logits(h_W)
