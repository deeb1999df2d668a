"""When two figures are apart: closed forms, how often chance says so, rows of one run, and collapse."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from ldlm.paper import exhibits
from ldlm.paper.comparing import ENTROPY_SLACK, Figures, pooled

A, B, C = (("a", "l_h", None), ("b", "l_h", None), ("c", "l_h", None))
PPL, ENTROPY = (lambda key: (key, "gen_ppl", None)), (lambda key: (key, "entropy", None))
COMPARED = ("a < b", "b < a")


def verdict(values, a=A, b=B, runs=None):
    return Figures(values, runs or {}).compare(a, b)


def trainings(*means):
    return [[mean] for mean in means]


def test_the_spread_is_pooled_over_groups():
    found = pooled([[1.0, 3.0], [10.0, 10.0, 13.0], [5.0], []])
    assert (found.std, found.freedom) == (pytest.approx(math.sqrt((2 + 6) / 3)), 3)
    assert pooled([[1.0], [2.0]]).freedom == 0


@pytest.mark.parametrize("swap", [False, True], ids=COMPARED)
def test_two_rows_are_apart_beyond_the_quantile_of_the_pooled_spread(swap):
    """Deviations of ±1 in three rows: s = √2 of 3 degrees of freedom, and the error of a difference is s."""
    bound = stats.t.ppf(0.975, 3) * math.sqrt(2)
    for distance, said in ((bound - 0.01, "within seed spread"), (bound + 0.01, "not held" if swap else "held")):
        values = {A: trainings(9, 11), B: trainings(9 + distance, 11 + distance), C: trainings(49, 51)}
        assert verdict(values, *((B, A) if swap else (A, B))) == said


def test_rows_whose_seeds_reach_each_other_are_not_apart():
    quiet = {(f"row {n}", "l_h", None): trainings(5, 5) for n in range(40)}
    assert verdict({A: trainings(1, 4), B: trainings(3.9, 9), **quiet}) == "within seed spread"
    assert verdict({A: trainings(1, 3.8), B: trainings(3.9, 9), **quiet}) == "held"


def test_perplexities_are_compared_by_quotients():
    """The same deviation in per cent, at 10 and at 1,000, is one spread."""
    small = {PPL("a"): trainings(10, 10.2), PPL("b"): trainings(11, 11.22)}
    large = {PPL("c"): trainings(1000, 1020)}
    found = Figures({**small, **large}).noise["gen_ppl"]
    assert found.std == pytest.approx(math.log(1.02) / math.sqrt(2))
    assert verdict({**small, **large}, PPL("a"), PPL("b")) == "held"


def test_texts_alone_may_differ_by_more_than_trainings_do():
    """Two trainings whose means agree by accident: what another set of texts changes is the least spread."""
    values = {A: [[9, 11], [9, 11]], B: [[10, 12], [10, 12]]}
    found = Figures(values).noise["l_h"]
    assert (found.std, found.freedom) == (pytest.approx(math.sqrt(2) / math.sqrt(2)), 4)
    assert verdict(values) == "within seed spread"


def test_chance_seldom_sets_equal_rows_apart():
    """In a table of twelve equal rows: 2.5 % in each direction, give or take what 4,000 draws leave open."""
    random = np.random.default_rng(0)
    said = []
    for _ in range(4000):
        values = {(str(row), "l_h", None): trainings(*random.normal(size=2)) for row in range(12)}
        said.append(verdict(values, ("0", "l_h", None), ("1", "l_h", None)))
    assert max(said.count("held"), said.count("not held")) / len(said) < 0.032


def test_rows_of_the_same_trainings_are_compared_set_by_set():
    """Decoders of two runs that differ by far more than the decoders do."""
    values = {A: [[10, 12], [30, 35]], B: [[10.5, 12.6], [30.4, 35.5]]}
    same = {"a": ("run-0", "run-1"), "b": ("run-0", "run-1")}
    assert verdict(values) == "within seed spread"
    assert verdict(values, runs={**same, "b": ("run-2", "run-3")}) == "within seed spread"
    assert verdict(values, runs=same) == "held"
    assert verdict(values, B, A, runs=same) == "not held"
    assert verdict({**values, B: [[10.5, 12.6], [30.4, 34.9]]}, runs=same) == "within seed spread"
    assert verdict({A: trainings(10, 30), B: trainings(10.5, 30.4)}, runs=same) == "within seed spread"  # of two: few


def test_what_is_missing_and_what_was_measured_once():
    assert verdict({A: trainings(1, 2)}) == "not run"
    assert verdict({A: trainings(1, 2), B: [[None, None]]}) == "not run"
    assert verdict({A: [[1, 1.1]], B: trainings(3, 4)}) == "one measurement"
    times = {("a", "sample_seconds", None): trainings(1), ("b", "sample_seconds", None): trainings(3)}
    assert verdict(times, *times) == "held"


def test_a_perplexity_that_is_low_by_collapse_is_compared_with_none():
    values = {PPL("a"): trainings(100, 101), PPL("b"): trainings(200, 202)}
    for low, said in ((3.8, "held"), (3.8 - ENTROPY_SLACK - 0.01, "not comparable, for entropy")):
        entropies = {ENTROPY("a"): trainings(low, low), ENTROPY("b"): trainings(3.8, 3.8)}
        assert verdict({**values, **entropies}, PPL("a"), PPL("b")) == said
        back = "not held" if said == "held" else said
        assert verdict({**values, **entropies}, PPL("b"), PPL("a")) == back


def test_no_ordering_of_the_papers_own_figures_is_one_of_collapse():
    for name in exhibits.NAMES:
        exhibit = exhibits.load(name)
        printed = {
            (key, quantity, budget): trainings(cell.mean, cell.mean)
            for key, row in exhibit.rows.items()
            for budget, cells in row.printed.items()
            for quantity, cell in cells.items()
        }
        figures = Figures(printed)
        for statement in exhibit.statements:
            places = [(key, quantity, statement.at) for key, quantity in statement.places]
            for a, b in pairwise(places):
                assert figures.compare(a, b) in ("held", "not run"), (name, a, b)
