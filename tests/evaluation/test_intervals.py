"""95 % intervals of means and of shares: they hold the true value about as often as they say, also in small samples."""

import math

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


def test_the_interval_of_a_share_is_wilsons_where_each_text_has_one():
    ones = np.ones(20, int)
    for valid in (0, 7, 19, 20):
        exact = stats.binomtest(valid, 20).proportion_ci(method="wilson")
        found = intervals.of_share(np.stack([ones.cumsum() <= valid, ones], 1).astype(int))
        assert found == pytest.approx([exact.low, exact.high])
        assert (found[0] == 0, found[1] == 1) == (valid == 0, valid == 20)


def test_texts_of_which_nothing_could_be_valid_say_nothing():
    counts_T2 = np.array([[2, 2], [1, 1], *[[0, 0]] * 18])
    assert intervals.of_share(counts_T2) == intervals.of_share(counts_T2[:2])
    assert intervals.of_share(counts_T2)[1] == 1
    assert intervals.of_share(counts_T2[2:]) is None


def test_what_is_alike_within_a_text_counts_as_less_and_never_as_more():
    """Whole texts right or wrong count as their number at most; texts that are all alike as all that they hold."""
    texts = np.array([[6, 6], [0, 6]] * 10)
    low, high = intervals.of_share(texts)
    wilson = stats.binomtest(10, 20).proportion_ci(method="wilson")
    assert low < wilson.low < wilson.high < high
    whole = stats.binomtest(60, 120).proportion_ci(method="wilson")
    assert intervals.of_share(np.array([[3, 6]] * 20)) == pytest.approx([whole.low, whole.high])
    one = stats.binomtest(1, 1).proportion_ci(method="wilson")
    assert intervals.of_share(np.array([[6, 6]])) == pytest.approx([one.low, one.high])  # a single text


def drawn(random, share, texts, most, alike):
    """Valid ones and all of them by text (T, 2): 1 to `most` each, with this correlation within a text."""
    number = random.integers(1, most + 1, texts)
    shares = random.beta(share * (1 / alike - 1), (1 - share) * (1 / alike - 1), texts) if alike else share
    return np.stack([random.binomial(number, shares), number], 1)


@pytest.mark.parametrize(
    "share, texts, most, alike",
    [
        (0.95, 20, 1, 0),
        (0.02, 50, 1, 0),
        (0.9, 10, 1, 0),
        (0.5, 20, 1, 0),
        (0.9, 20, 11, 0),
        (0.98, 20, 11, 0.1),
        (0.9, 20, 11, 0.4),
        (0.5, 8, 11, 0.3),
        (0.995, 100, 11, 0.3),
        (0.17, 256, 11, 0.1),
    ],
)
def test_shares_are_in_their_intervals_near_the_ends_too(share, texts, most, alike):
    """A bootstrap over texts holds the first three in 64 % of draws; texts that are alike have 90 % at least."""
    random = np.random.default_rng(0)
    found = [intervals.of_share(drawn(random, share, texts, most, alike)) for _ in range(400)]
    assert np.mean([low <= share <= high for low, high in found]) >= (0.88 if alike else 0.9)
    assert not any(math.isnan(end) for interval in found for end in interval)
