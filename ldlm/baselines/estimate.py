"""The estimate x_θ of a discrete diffusion's clean tokens, of which only what is asked for is computed.

Shape letters: CONTRIBUTING.md. P is positions, B·L.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ldlm.baselines.interface import Network
from ldlm.baselines.nucleus import Nucleus
from ldlm.baselines.vocabulary import parts


class Estimate:
    """x_θ(z), filtered by a nucleus; the network is evaluated when something is first asked for."""

    def __init__(self, network: Network, z_BL: Tensor, condition: float | None, nucleus: Nucleus) -> None:
        self.network, self.z_BL, self.condition, self.nucleus = network, z_BL, condition, nucleus

    @cached_property
    def hidden_PW(self) -> Tensor:
        """States before the head, of all positions."""
        e_BLW = F.embedding(self.z_BL, self.network.embedding)
        condition_1 = None if self.condition is None else e_BLW.new_full((1,), self.condition)
        return self.network.hidden(e_BLW, condition_1).flatten(0, 1)

    @cached_property
    def all_BLV(self) -> Tensor:
        """x_θ in float64, everywhere at once, as the published way of drawing needs it."""
        p_PV = self.nucleus(self.network.logits(self.hidden_PW).double().softmax(-1))
        return p_PV.view(*self.z_BL.shape, -1)

    def of(self, tokens_BL: Tensor) -> Tensor:
        """x_θ (B, L) float64 of a token at each position."""
        if "all_BLV" in self.__dict__:
            return self.all_BLV.gather(-1, tokens_BL[..., None]).squeeze(-1)
        vocab = len(self.network.embedding)
        pieces = zip(parts(self.hidden_PW, vocab), parts(tokens_BL.flatten()[:, None], vocab), strict=True)
        return torch.cat([self._of(h_PW, tokens_P1) for h_PW, tokens_P1 in pieces]).double().view_as(tokens_BL)

    def _of(self, h_PW: Tensor, tokens_P1: Tensor) -> Tensor:
        logits_PV = self.network.logits(h_PW)
        if self.nucleus.top_p < 1:
            # In float32, which takes half the time of what `at` does for the few positions that need it. So a token at
            # the nucleus's edge, within rounding of p, may be in one nucleus and not in the other: such tokens are
            # rare, and it is rarer still that z shows one.
            return self.nucleus(logits_PV.softmax(-1)).gather(-1, tokens_P1)
        return (logits_PV.gather(-1, tokens_P1) - logits_PV.logsumexp(-1, keepdim=True)).exp()

    def at(self, where_P: Tensor) -> Iterator[Tensor]:
        """x_θ (…, V) float64 at positions of the flattened batch, a part of them at a time."""
        for part in parts(where_P, len(self.network.embedding)):
            yield self.nucleus(self.network.logits(self.hidden_PW[part]).double().softmax(-1))
