"""The likelihood bound of MDLM and Duo on token rows, row by row: their NELBO, over all times.

What `heldout` records during training leaves out the ends, with almost no noise and almost no token. Here t is drawn
from all of (0, 1), and for Duo, whose schedule keeps ε of the tokens at t = 1, the divergence from its prior is added,
so the figures are bounds. Each t is used twice, with the noise of training and with one more noisy token, weighted so
that the two together have the law of training (`heldout.with_noise`).

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ldlm.baselines import heldout
from ldlm.baselines.duo import Duo
from ldlm.baselines.interface import Method, TrainedNetwork
from ldlm.baselines.mdlm import MDLM
from ldlm.baselines.schedule import LogLinear
from ldlm.evaluation.likelihood import evenly, mean_and_variance

PARTS = 8  # equal parts of the time, each with the requested number of draws


@torch.no_grad()
def bounds(
    method: Method, network: TrainedNetwork, x_BL: Tensor, rows_B: Tensor, *, draws: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Bounds on −log p(x) in nats per row (B,), float64, and the variances of these estimates.

    `method` has no curriculum, and its loss is a bound. Noise and times are keyed by the row numbers `rows_B`.
    """
    if isinstance(method, MDLM):
        method = replace(method, schedule=LogLinear(0.0))  # masks everything at t = 1, with the same weights 1/t
    found_B = torch.full_like(x_BL[:, 0], prior(method) * x_BL.shape[1], dtype=torch.float64)
    found_var_B = torch.zeros_like(found_B)
    for part in range(PARTS):
        places = ((part + evenly(draw, draws, part, rows_B, seed)) / PARTS for draw in range(draws))
        rates = [
            _rate(method, network, x_BL, t_B, (rows_B * PARTS + part) * draws + draw, seed)
            for draw, t_B in enumerate(places)
        ]
        mean_B, variance_B = mean_and_variance(rates)
        found_B, found_var_B = found_B + mean_B / PARTS, found_var_B + variance_B / PARTS**2
    return found_B.cpu(), found_var_B.cpu()


def _rate(method: Method, network: TrainedNetwork, x_BL: Tensor, t_B: Tensor, draw_B: Tensor, seed: int) -> Tensor:
    """Loss (B,) of the rows at these times, summed over positions."""
    assert method.schedule is not None
    total_B = torch.zeros_like(t_B)
    for forced in (False, True):
        number_B = 2 * draw_B + forced
        draws: Any = method.draw(seed=seed, step=0, rows_B=number_B, batch=1, seq_len=x_BL.shape[1])
        u_BL, weight_B = heldout.with_noise(
            draws.u_BL,
            method.schedule.alpha(t_B),
            number_B,
            torch.full_like(number_B, forced, dtype=torch.bool),
            seed=heldout.SEED + seed,  # at seed 0 that of held-out rows, by which records of seed 0 were made
        )
        loss_B = method.losses(network, x_BL, draws._replace(t_B=t_B, u_BL=u_BL)).loss_BL.double().sum(dim=1)
        total_B = total_B + loss_B * weight_B / 2
    return total_B


def prior(method: Method) -> float:
    """KL(q(z_1 | x) ‖ p(z_1)) of a token in nats: for Duo, whose z_1 shows ε of the tokens; 0 for MDLM with ε = 0."""
    if not isinstance(method, Duo):
        return 0.0
    keep, vocab = method.schedule.eps, method.vocab
    other = (1 - keep) / vocab
    own = keep + other
    return own * math.log(own * vocab) + (vocab - 1) * other * math.log(other * vocab)
