"""Nucleus filtering (Holtzman et al., 2020), in the two readings of "p = 0.9" that the rivals' results rest on.

Both keep as many of the most likely tokens as together have a mass of at most p, and always the first. `inclusive`,
used by Duo and the Ψ-samplers, also keeps the token that crosses p; `exclusive`, used by MDLM and ReMDM, drops it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldlm.config import NucleusRule

# Tokens sorted on a GPU at first, and then if these have less than p: sorting all takes ten times as long.
SORTED = (512, 8_192)


@dataclass(frozen=True)
class Nucleus:
    """A filter of distributions; `top_p` 1 keeps everything."""

    top_p: float = 1.0
    rule: NucleusRule = "exclusive"

    def __call__(self, p_PV: Tensor) -> Tensor:
        """The distributions (P, V) with tokens outside the nucleus set to 0, renormalised, in their dtype.

        Among equally likely tokens, those with a smaller number come first.
        """
        if self.top_p >= 1:
            return p_PV
        least_P1, among_equals_P1 = self.bounds(p_PV, () if p_PV.device.type == "cpu" else SORTED)
        equal_PV = p_PV == least_P1
        kept_PV = (p_PV > least_P1) | (equal_PV & (equal_PV.cumsum(-1, dtype=torch.int32) <= among_equals_P1))
        filtered_PV = torch.where(kept_PV, p_PV, 0.0)
        return filtered_PV / filtered_PV.sum(-1, keepdim=True)

    def bounds(self, p_PV: Tensor, first: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The smallest probability that is kept (P, 1), and how many of the tokens with that probability are kept.

        `first` are the numbers of tokens to sort at first; all are sorted if these have less than p.
        """
        vocab = p_PV.shape[-1]
        least_P1 = p_PV.new_empty(len(p_PV), 1)
        among_equals_P1 = torch.empty_like(least_P1, dtype=torch.int64)
        rest_P = torch.arange(len(p_PV), device=p_PV.device)
        for count in (*first, vocab):
            of_rest_PV = p_PV if len(rest_P) == len(p_PV) else p_PV[rest_P]
            sorted_PV = largest(of_rest_PV, min(count, vocab))
            mass_PV = sorted_PV.cumsum(-1)
            kept_PV = (mass_PV if self.rule == "exclusive" else mass_PV - sorted_PV) <= self.top_p
            kept_PV[:, 0] = True
            found_P1 = sorted_PV.gather(-1, kept_PV.sum(-1, keepdim=True) - 1)
            least_P1[rest_P] = found_P1
            among_equals_P1[rest_P] = (kept_PV & (sorted_PV == found_P1)).sum(-1, keepdim=True)

            # Rows that have not reached p with this many tokens need more.
            rest_P = rest_P[mass_PV[:, -1] <= self.top_p]
            if count >= vocab or not len(rest_P):
                break
        return least_P1, among_equals_P1


def largest(p_PV: Tensor, count: int) -> Tensor:
    """The `count` largest of each row (P, count), in descending order.

    On a CPU, numpy sorts all of them in less time than torch takes for the first few hundred.
    """
    if p_PV.device.type == "cpu":
        return torch.from_numpy(np.sort(p_PV.detach().numpy(), axis=-1)).flip(-1)[:, :count]
    return p_PV.topk(count).values
