"""Smoothness of a latent space: paths between latents and edits along them (Section 6, Figures 3 left and 4 right).

A path leads from z_A at a = 0 to z_B at a = 1, and its ends are z_A and z_B to the bit.

Shape letters: CONTRIBUTING.md; B is pairs, P points of a path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldlm.errors import InputError
from ldlm.evaluation import metrics
from ldlm.evaluation.scores import SetScores

LatentPath = Callable[[Tensor, Tensor, float], Tensor]  # (z_A, z_B, a) → z, all (B, N, C)

SMALLEST_ANGLE = 1e-6  # radians, from 0 and from π
HALF = 0.5  # the a of the mean of two latents
RECORDED = ("gen_ppl", "entropy", "diversity", "diversity_texts", "intervals")  # of a point's scores, in its record


def linear(z_A_BNC: Tensor, z_B_BNC: Tensor, a: float) -> Tensor:
    """(1−a)·z_A + a·z_B, the paper's path (SPEC 9). At a = ½ between unrelated latents, z is too short by about √2."""
    return (1 - a) * z_A_BNC + a * z_B_BNC


def spherical(z_A_BNC: Tensor, z_B_BNC: Tensor, a: float) -> Tensor:
    """Turn each latent vector by a share a of the angle between its ends; its norm changes linearly.

    The turn is Shoemake's slerp (1985), which White (2016, "Sampling Generative Networks") brought to latent spaces.
    It is taken per latent vector instead of over the whole latent, because decoders read vector by vector: in this way
    every vector is as long as those of real texts. Slerp is for unit vectors; between vectors of unequal norm it leaves
    the range of the two norms, hence the linear norm.

    At an angle of 0 this is the linear path. At π the plane of the turn is undefined, and the path is linear too.
    """
    A, B = z_A_BNC.double(), z_B_BNC.double()
    norm_A, norm_B = (z.norm(dim=-1, keepdim=True) for z in (A, B))
    u_A, u_B = A / norm_A, B / norm_B
    # The arc cosine of u_A·u_B would lose half its digits near 0 and π (Kahan, 2006).
    angle = 2 * torch.atan2((u_A - u_B).norm(dim=-1, keepdim=True), (u_A + u_B).norm(dim=-1, keepdim=True))
    norm = (1 - a) * norm_A + a * norm_B
    weight_A, weight_B = (torch.sin(share * angle) / torch.sin(angle) for share in (1 - a, a))
    turned = weight_A * (norm / norm_A) * A + weight_B * (norm / norm_B) * B
    turns = (angle > SMALLEST_ANGLE) & (angle < torch.pi - SMALLEST_ANGLE)  # False at norm 0, where the angle is NaN
    return torch.where(turns, turned, linear(A, B, a)).to(z_A_BNC.dtype)


PATHS: dict[str, LatentPath] = {"linear": linear, "spherical": spherical}


def edit_distance(one_BL: np.ndarray, other_BL: np.ndarray) -> np.ndarray:
    """Levenshtein distance (1966) between the token rows of each pair, int64 (B,).

    It is the smallest number of token insertions, deletions and substitutions that turn one row into the other.
    """
    pairs, length = other_BL.shape
    column = np.arange(length + 1)
    # distance[:, j]: from the tokens of `one` read so far to the first j of `other`
    distance = np.tile(column, (pairs, 1))
    for token_B in one_BL.T:
        substituted = distance[:, :-1] + (other_BL != token_B[:, None])
        deleted = distance + 1
        np.minimum(deleted[:, 1:], substituted, out=deleted[:, 1:])
        # An insertion costs 1 per column: the running minimum of distance − column covers any number of them at once.
        distance = np.minimum.accumulate(deleted - column, axis=1) + column
    return distance[:, -1]


# ----------------------------------------------------------------------------------------------------------------------
# Pairs and points


def draw_pairs(rows: int, pairs: int, seed: int) -> np.ndarray:
    """Row numbers (2, pairs), each row at most once; `InputError` if there are too few rows."""
    if rows < 2 * pairs:
        remedy = f"use at most {rows // 2}" if rows > 1 else "extract more text, or hold out more of it"
        raise InputError(f"--pairs {pairs} needs {2 * pairs} held-out rows, and the store has {rows}; {remedy}")
    return np.random.default_rng(seed).permutation(rows)[: 2 * pairs].reshape(2, pairs)


def points(count: int) -> list[float]:
    """Equally spaced values of a from 0 to 1; an odd number of them includes ½ exactly."""
    return [number / (count - 1) for number in range(count)]


def edits_along(rows_PBL: np.ndarray) -> np.ndarray:
    """Edit distance (P, B) of each row from the same pair's row at the previous point; 0 at the first point."""
    return np.stack([edit_distance(rows_PBL[max(0, i - 1)], rows_PBL[i]) for i in range(len(rows_PBL))])


@dataclass(frozen=True)
class PathPoint:
    """Scores of the texts at one point of the paths."""

    a: float
    scores: SetScores
    edits: float | None  # tokens, the mean edit distance from the previous point; None at the first point
    edits_interval: list[float] | None  # [low, high], like the intervals of `scores`; None for a single pair, too

    def to_json(self) -> dict[str, object]:
        """The point with the figures and intervals of its scores."""
        found = self.scores.pick(*RECORDED)
        if self.edits_interval is not None:
            found["intervals"] = {**found["intervals"], "edits": self.edits_interval}
        return {"a": self.a, **found, "edits": self.edits}


def path_points(a_P: Sequence[float], scores_P: Sequence[SetScores], edits_PB: np.ndarray) -> list[PathPoint]:
    """The points of a path with their edits; intervals over pairs are bootstrapped like those of the scores."""

    def interval(edits_B: np.ndarray, scores: SetScores) -> list[float] | None:
        how = {name: scores.bootstrap[name] for name in ("resamples", "seed")}
        return metrics.bootstrap(lambda chosen: float(edits_B[chosen].mean()), len(edits_B), **how)

    first, *rest = zip(a_P, scores_P, edits_PB, strict=True)
    return [
        PathPoint(first[0], first[1], None, None),
        *(PathPoint(a, scores, float(edits_B.mean()), interval(edits_B, scores)) for a, scores, edits_B in rest),
    ]
