"""A bound on the likelihood of token rows under a latent diffusion model (docs/likelihood.md, after Eq. 14-23).

For every noise level τ, with z̃ = μ + τ ε around the latents μ(w) of a row w,

    −log p(w) ≤ E[−log p(w | z̃)] + KL(q_τ(z̃ | w) ‖ p(z̃)) ≤ E[−log p(w | z̃)] + ∫_{t*}^1 ω(t) E‖μ − ẑ(z_t, t)‖² dt.

z̃ is z_t/α_t at the time t* with σ/α = τ, ω is Eq. 22, and no term is left at t = 1, where α = 0. In terms of the
signal-to-noise ratio ρ = α²/σ² the integral is ½ ∫₀^{1/τ²} E‖μ − ẑ‖² dρ. Its parts between neighbouring τ, within which
the integrand changes little, are estimated separately, so that one integral gives the bound at every τ.

All values are in nats per row, sums over elements. Shape letters: CONTRIBUTING.md. T is noise levels τ, from the
highest to the lowest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldlm import noise
from ldlm.errors import InputError
from ldlm.evaluation import intervals
from ldlm.model.diffusion import Schedule, noised

Denoise = Callable[[Tensor, Tensor], Tensor]  # z_t (B, N, C) and t (B,) float64 → ẑ_0
Decode = Callable[[Tensor, Tensor], Tensor]  # z_t and t → −log p(w | z_t) of the rows w, (B,)

GOLDEN = (math.sqrt(5) - 1) / 2
LEVELS, STEP = 13, math.sqrt(2)  # number of default noise levels, and the ratio of neighbours


def levels(middle: float) -> tuple[float, ...]:
    """Default noise levels τ, from 8 times to an eighth of the middle one."""
    return tuple(middle * STEP ** (LEVELS // 2 - number) for number in range(LEVELS))


# ----------------------------------------------------------------------------------------------------------------------
# The bound, row by row


@dataclass(frozen=True)
class Bounds:
    """Estimates of both terms of the bound of −log p(w) for rows at each τ, and their variances; float64 (B, T)."""

    decoding_BT: Tensor  # E[−log p(w | z̃)]
    decoding_var_BT: Tensor
    kl_BT: Tensor  # KL(q_τ ‖ p) or more
    kl_var_BT: Tensor


def bounds(
    schedule: Schedule,
    mu_BNC: Tensor,
    rows_B: Tensor,
    *,
    denoise: Denoise,
    decode: Decode,
    taus: Sequence[float],
    draws: int,
    seed: int = 0,
) -> Bounds:
    """Bounds for rows with the latents μ, from `draws` ≥ 2 draws per row at each τ and between each two neighbours.

    `taus` are in descending order. Noise and times are keyed by the row numbers `rows_B`.
    """
    edges = [0.0, *(1 / tau**2 for tau in taus)]
    errors, codings = list[tuple[Tensor, Tensor]](), list[tuple[Tensor, Tensor]]()
    for part, (low, high) in enumerate(pairwise(edges)):
        errors_EB, codings_EB = list[Tensor](), list[Tensor]()
        for draw in range(draws):
            address = (seed, part * draws + draw, rows_B)
            rho_B, weight_B = _snr(low, high, evenly(draw, draws, part, rows_B, seed))
            z_t_BNC, t_B = _noisy(schedule, mu_BNC, rho_B, "likelihood", *address)
            squares_B = (mu_BNC - denoise(z_t_BNC, t_B)).double().square().flatten(1).sum(1)
            errors_EB.append(weight_B / 2 * squares_B)
            z_t_BNC, t_B = _noisy(schedule, mu_BNC, torch.full_like(rho_B, high), "likelihood_tokens", *address)
            codings_EB.append(decode(z_t_BNC, t_B).double())
        errors.append(mean_and_variance(errors_EB))
        codings.append(mean_and_variance(codings_EB))
    kl_BT, kl_var_BT = (torch.stack(column, dim=1).cumsum(1).cpu() for column in zip(*errors, strict=True))
    decoding_BT, decoding_var_BT = (torch.stack(column, dim=1).cpu() for column in zip(*codings, strict=True))
    return Bounds(decoding_BT, decoding_var_BT, kl_BT, kl_var_BT)


def _noisy(
    schedule: Schedule, mu_BNC: Tensor, rho_B: Tensor, purpose: str, seed: int, number: int, rows_B: Tensor
) -> tuple[Tensor, Tensor]:
    """z_t at signal-to-noise ratios ρ (B,), and t (B,), with its own noise for each `number`."""
    t_B = schedule.time_of_log_snr(rho_B.log())
    eps_BNC = noise.normal(seed, purpose, number, rows_B, tuple(mu_BNC.shape[1:])).to(mu_BNC.dtype)
    return noised(schedule, mu_BNC, t_B, eps_BNC), t_B


def _snr(low: float, high: float, place_B: Tensor) -> tuple[Tensor, Tensor]:
    """ρ (B,) between two edges, at places in (0, 1), linear in ln ρ, or in ρ if `low` is 0; and weights dρ/dplace.

    Between neighbouring τ, ρ‖μ − ẑ‖² changes little where the signal is strong, and ‖μ − ẑ‖² where it is weak.
    """
    if low == 0:
        return high * place_B, torch.full_like(place_B, high)
    rho_B = low * (high / low) ** place_B
    return rho_B, rho_B * math.log(high / low)


def evenly(draw: int, draws: int, part: int, rows_B: Tensor, seed: int) -> Tensor:
    """Places (B,) of a draw, in its own equal part of (0, 1), spread over the rows by a golden-ratio walk.

    All rows share a random shift, so that each place is uniform in its part.
    """
    shift = noise.uniform(seed, "likelihood_time", part, rows_B.new_full((1,), draw))
    walk_B = (rows_B.double() * GOLDEN + shift).remainder(1.0).clamp(min=2.0**-40)
    return (draw + walk_B) / draws


def mean_and_variance(found: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean over draws (B,), and its variance from their spread, an overestimate if draws are stratified (`evenly`)."""
    found_EB = torch.stack(list(found))
    return found_EB.mean(0), found_EB.var(0) / len(found_EB)


# ----------------------------------------------------------------------------------------------------------------------
# Many rows


@dataclass(frozen=True)
class RowNats:
    """−log p of rows in nats, or a bound on it: row numbers, values, and standard errors of the estimates."""

    rows_B: np.ndarray
    nats_B: np.ndarray
    se_B: np.ndarray  # 0 where the value is exact

    def to_json(self, seq_len: int) -> dict[str, Any]:
        """Means per token, and the log-likelihood of each row.

        The first and the last token of a row are BOS and EOS: the denominator is L, but L − 2 for
        `bits_per_inner_token`. The interval is over rows, taken as independent of each other; one row has none.
        """
        bits_B = self.nats_B / math.log(2) / seq_len
        mean, count = bits_B.mean().item(), len(bits_B)
        return {
            "bits_per_token": mean,
            "interval": intervals.of_mean(bits_B),
            "bits_per_inner_token": mean * seq_len / (seq_len - 2),
            "estimate_se": math.sqrt((self.se_B**2).sum().item()) / count / math.log(2) / seq_len,
            "nats_per_token": mean * math.log(2),
            "perplexity": math.exp(nats) if (nats := mean * math.log(2)) < 100 else None,
            "rows": [
                {"row": row, "loglikelihood": -nats, "standard_error": se}
                for row, nats, se in zip(self.rows_B.tolist(), self.nats_B.tolist(), self.se_B.tolist(), strict=True)
            ],
        }


def halves(rows: int) -> tuple[range, range]:
    """Rows on which τ is chosen, and those on which figures are reported; `InputError` if there are too few.

    They alternate: a store holds its documents in order, so its two stretches would be of different books.
    """
    if rows < 4:
        raise InputError(
            f"{rows} rows are too few to choose τ on one half and report the other; take --split train, or a store "
            f"with 4 or more"
        )
    return range(0, rows, 2), range(1, rows, 2)
