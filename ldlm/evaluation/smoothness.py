"""Paths between latents, and how far the texts on them lie apart (Section 6, Figures 3 left and 4 right).

A path leads from z_A at a = 0 to z_B at a = 1, and its ends are z_A and z_B to the bit.

Shapes in names: B pairs, N latents, C latent width, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

LatentPath = Callable[[Tensor, Tensor, float], Tensor]  # (z_A, z_B, a) → z, all (B, N, C)

SMALLEST_ANGLE = 1e-6  # radians, from 0 and from π


def linear(z_A_BNC: Tensor, z_B_BNC: Tensor, a: float) -> Tensor:
    """(1−a)·z_A + a·z_B, the paper's path. Between unrelated latents it is short: at a = ½ by about √2."""
    return (1 - a) * z_A_BNC + a * z_B_BNC


def spherical(z_A_BNC: Tensor, z_B_BNC: Tensor, a: float) -> Tensor:
    """Each latent vector turns by a share a of its angle, and its norm goes in a straight line from end to end.

    The turn is Shoemake's slerp (1985), which White (2016, "Sampling Generative Networks") brought to latent spaces.
    It is taken per latent vector and not over the whole latent, because the latents' decoders read vector by vector:
    so every vector, and with them the whole, is as long as those of real texts. Slerp as Shoemake wrote it is for unit
    vectors; between vectors of unequal norm it leaves the range of the two, hence the straight line for the norm.

    Where the angle is 0, both together are the linear path; where it is π, no plane to turn in is marked out, and the
    vector goes straight, too.
    """
    A, B = z_A_BNC.double(), z_B_BNC.double()
    norm_A, norm_B = (z.norm(dim=-1, keepdim=True) for z in (A, B))
    u_A, u_B = A / norm_A, B / norm_B
    # The arc cosine of u_A·u_B would lose half of its digits near 0 and π (Kahan, 2006).
    angle = 2 * torch.atan2((u_A - u_B).norm(dim=-1, keepdim=True), (u_A + u_B).norm(dim=-1, keepdim=True))
    norm = (1 - a) * norm_A + a * norm_B
    weight_A, weight_B = (torch.sin(share * angle) / torch.sin(angle) for share in (1 - a, a))
    turned = weight_A * (norm / norm_A) * A + weight_B * (norm / norm_B) * B
    turns = (angle > SMALLEST_ANGLE) & (angle < torch.pi - SMALLEST_ANGLE)  # no vector of norm 0: its angle is NaN
    return torch.where(turns, turned, linear(A, B, a)).to(z_A_BNC.dtype)


PATHS: dict[str, LatentPath] = {"linear": linear, "spherical": spherical}


def edit_distance(one_BL: np.ndarray, other_BL: np.ndarray) -> np.ndarray:
    """Levenshtein's distance (1966) between the token rows of each pair, int64 (B,).

    That is the fewest insertions, deletions and substitutions of a token that make one row the other.
    """
    pairs, length = other_BL.shape
    column = np.arange(length + 1)
    # distance[:, j]: from the tokens of `one` that have been read to the first j of `other`
    distance = np.tile(column, (pairs, 1))
    for token_B in one_BL.T:
        substituted = distance[:, :-1] + (other_BL != token_B[:, None])
        deleted = distance + 1
        np.minimum(deleted[:, 1:], substituted, out=deleted[:, 1:])
        # An insertion costs 1 a column: the running minimum of distance − column takes any number of them at once.
        distance = np.minimum.accumulate(deleted - column, axis=1) + column
    return distance[:, -1]
