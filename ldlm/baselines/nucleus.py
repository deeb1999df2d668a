"""Nucleus filtering (Holtzman et al., 2020), in the two readings of "p = 0.9" that the rivals' results rest on.

Both keep the most likely tokens, as many as have a mass of at most p together, and always the first. `inclusive`, which
Duo and the Ψ-samplers have, keeps the token that crosses p as well; `exclusive`, which MDLM and ReMDM have, drops it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ldlm.config import NucleusRule


@dataclass(frozen=True)
class Nucleus:
    """A filter of distributions. `top_p` 1 leaves everything."""

    top_p: float = 1.0
    rule: NucleusRule = "exclusive"

    def __call__(self, p_V: Tensor) -> Tensor:
        """The distributions (…, V) with the tokens outside the nucleus at 0, normalised again, in their dtype.

        Of equally likely tokens those with a smaller number come first.
        """
        if self.top_p >= 1:
            return p_V
        sorted_V, order_V = p_V.sort(dim=-1, descending=True, stable=True)
        mass_V = sorted_V.cumsum(-1)
        kept_V = (mass_V if self.rule == "exclusive" else mass_V - sorted_V) <= self.top_p
        kept_V[..., 0] = True
        sorted_V = sorted_V * kept_V
        filtered_V = p_V.new_zeros(p_V.shape).scatter_(-1, order_V, sorted_V)
        return filtered_V / sorted_V.sum(-1, keepdim=True)
