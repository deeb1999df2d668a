"""Times of a training batch, one in each of its strata (Kingma et al., 2021, "Variational Diffusion Models").

Row i of a global batch of n has its time in [i/n, (i+1)/n), whichever process holds it: a batch covers [0, 1] evenly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldlm import noise

T_MIN = 1e-3  # smallest time that MDLM, Duo and CANDI draw in training


def stratified(*, seed: int, step: int, rows_B: Tensor, batch: int, shuffled: bool = False) -> Tensor:
    """u (B,) float64 in (0, 1) for the rows `rows_B` of a global batch of `batch`: one in each of its strata.

    `shuffled` assigns the strata to the rows in a new order at each step, the same for every process. Otherwise a row
    keeps its stratum, and so a process its part of [0, 1].
    """
    u_B = noise.uniform(seed, "t", step, rows_B)
    stratum_B = rows_B
    if shuffled:
        keys = noise.uniform(seed, "strata", step, torch.arange(batch, device=rows_B.device))
        stratum_B = keys.argsort()[rows_B]
    return (stratum_B + u_B) / batch


def above(t_min: float, u: Tensor) -> Tensor:
    """t = t_min + (1 − t_min)·u."""
    return t_min + (1 - t_min) * u
