"""95 % intervals of means, which hold in small samples too; other figures have `metrics.bootstrap`."""

from __future__ import annotations

import math

import numpy as np

TAIL = 0.975


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
