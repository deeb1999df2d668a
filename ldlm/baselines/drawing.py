"""Drawing the next tokens of a discrete diffusion, exactly and cheaply, or as the published code does.

A step of every such process is a mixture at each position: stay, a token drawn from the estimate x_θ, or the process's
noise, which is the mask or any token. `choose` draws the component with one uniform number, and a token is drawn only
where the component asks for one, by inversion in float64. So nothing as wide as the vocabulary is computed for the
positions that stay, which are all but 1/N of them in a process of N steps.

`race` is the published way: the law over all tokens at all positions in float64, and an exponential race. In float32
such a race misses every outcome less likely than about 1e-7 (Zheng et al., 2024, arXiv 2409.02908).

Shape letters: CONTRIBUTING.md. S is the states of a position: V, and one more with a mask.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ldlm import noise


class Mixture(NamedTuple):
    """The law of a step at each position, float64 (B, L): non-negative weights that sum to 1."""

    stay_BL: Tensor
    token_BL: Tensor  # of a draw from x_θ
    noise_BL: Tensor  # of the mask, or of a uniform token

    def law(self, z_BL: Tensor, x_theta_BLV: Tensor, mask: int | None) -> Tensor:
        """Probabilities (B, L, S) of the next states, given the current state z and the estimate x_θ.

        `mask` is the number of the mask, which is V; None for a process whose noise is uniform.
        """
        law_BLS = self.token_BL[..., None] * x_theta_BLV
        if mask is None:
            law_BLS = law_BLS + self.noise_BL[..., None] / x_theta_BLV.shape[-1]
        else:
            law_BLS = torch.cat([law_BLS, self.noise_BL[..., None]], dim=-1)
        return law_BLS.scatter_add(-1, z_BL[..., None], self.stay_BL[..., None])

    def choose(self, u_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Where a token of x_θ is due, and where noise is, bool (B, L), from uniform numbers.

        The token comes last in the cumulative sum, so that rounding in it never lets a mask through.
        """
        noise_BL = u_BL < self.noise_BL
        return u_BL >= self.noise_BL + self.stay_BL, noise_BL


def invert(p_PV: Tensor, u_P: Tensor) -> Tensor:
    """Tokens (P,) drawn from distributions (P, V), normalised or not, with one uniform number in (0, 1) each."""
    cdf_PV = p_PV.double().cumsum(-1)
    drawn_P1 = torch.searchsorted(cdf_PV, u_P[:, None] * cdf_PV[:, -1:])
    return drawn_P1.squeeze(-1).clamp(max=p_PV.shape[-1] - 1)


def race(law_BLS: Tensor, seeds_B: Tensor, row: int) -> Tensor:
    """States (B, L) drawn from probabilities (B, L, S) by an exponential race in their dtype, as published.

    Each text's numbers come from its own generator, seeded by the text's seed and the sampler's row.
    """
    words_B = noise.uniform_fine(seeds_B, "race", row, torch.zeros_like(seeds_B))
    u_BLS = torch.empty_like(law_BLS)
    for u_LS, word in zip(u_BLS, (words_B * 2.0**53).long().tolist(), strict=True):
        u_LS.uniform_(generator=torch.Generator(law_BLS.device).manual_seed(word))
    return (law_BLS / (1e-10 - (u_BLS + 1e-10).log())).argmax(-1)
