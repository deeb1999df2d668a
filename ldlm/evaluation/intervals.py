"""95 % intervals of means and of shares, which hold in small samples too; other figures have `metrics.bootstrap`.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

import math

import numpy as np

TAIL = 0.975
Z = 1.959963984540054  # that quantile of the normal distribution


def student(freedom: float) -> float:
    """The 97.5 % quantile of Student's distribution: half a 95 % interval, in standard errors."""
    from scipy.stats import t  # takes a while to import, and the list of the paper's tables needs none

    return float(t.ppf(TAIL, freedom))


def of_mean(values: np.ndarray) -> list[float] | None:
    """Interval [low, high] of the mean of independent values, with Student's quantile; None for fewer than two."""
    if len(values) < 2:
        return None
    mean = float(values.mean())
    half = student(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return [mean - half, mean + half]


def of_share(counts_T2: np.ndarray) -> list[float] | None:
    """Wilson's interval [low, high] (1927) of a share, from the counts by text of valid ones and of all; None of none.

    A bootstrap over texts is a point where all are valid, and too narrow near it.
    """
    counts_T2 = counts_T2[counts_T2[:, 1] > 0]
    if not len(counts_T2):
        return None
    valid, all_of_them = map(float, counts_T2.sum(0))
    share, number = valid / all_of_them, all_of_them / _design_effect(counts_T2)
    middle = share + Z**2 / (2 * number)
    half = Z * math.sqrt(share * (1 - share) / number + (Z / (2 * number)) ** 2)
    scale = 1 + Z**2 / number
    low, high = (middle - half) / scale, (middle + half) / scale
    return [low if valid else 0.0, high if valid < all_of_them else 1.0]  # exactly, whatever rounding does


def _design_effect(counts_T2: np.ndarray) -> float:
    """By how much the number of observations overstates what they say, as those of one text are alike; at least 1.

    The variance of the share between texts over that of independent observations, with Student's quantile for few
    texts (Korn & Graubard, 1998). Where all or none are valid, a text counts once: nothing tells how alike its
    sentences are.
    """
    (valid, number), texts = counts_T2.sum(0), len(counts_T2)
    if number == texts:
        return 1.0
    if texts == 1 or valid in (0, number):
        return float(number) / texts  # a text is one observation, for all that is known
    rest_T = counts_T2[:, 0] - valid / number * counts_T2[:, 1]
    between, within = float((rest_T**2).sum()) * texts / (texts - 1), valid * (1 - valid / number)
    return max(1.0, between / within * (student(texts - 1) / Z) ** 2)
