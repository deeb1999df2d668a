"""95 % intervals of means: they hold the true value about as often as they say, also in small samples."""

import numpy as np
import pytest
from scipy import stats

from ldlm.evaluation import intervals


def test_the_interval_of_a_mean_has_students_quantile():
    values = np.array([10.0, 14.0, 12.0, 16.0])
    half = stats.t.ppf(0.975, 3) * values.std(ddof=1) / 2
    assert intervals.of_mean(values) == pytest.approx([13 - half, 13 + half])
    assert intervals.of_mean(np.array([10.0])) is None
    assert intervals.of_mean(np.zeros(0)) is None


@pytest.mark.parametrize("number", [2, 3, 10])
def test_few_values_hold_their_mean_in_their_interval(number):
    random = np.random.default_rng(0)
    found = [intervals.of_mean(random.normal(100, 5, number)) for _ in range(400)]
    assert 0.92 <= np.mean([low <= 100 <= high for low, high in found]) <= 0.98
