"""When two figures are apart: closed forms, how often chance says so, rows of one run, and collapse."""

import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ldlm.paper import exhibits
from ldlm.paper.comparing import ENTROPY_SLACK, Figures, pooled
from ldlm.paper.printed import QUANTITIES

A, B, C = (("a", "l_h", None), ("b", "l_h", None), ("c", "l_h", None))
PPL, ENTROPY = (lambda key: (key, "gen_ppl", None)), (lambda key: (key, "entropy", None))
COMPARED = ("a < b", "b < a")
DOCS = (Path(__file__).parents[2] / "docs" / "paper.md").read_text(encoding="utf-8")


def verdict(values, a=A, b=B, runs=None):
    return Figures(values, runs or {}).compare(a, b)


def trainings(*means):
    return [[mean] for mean in means]


def test_the_spread_is_pooled_over_groups():
    found = pooled([[[1.0, 3.0]], [[10.0, 10.0, 13.0]], [[5.0]], [[]]])
    assert (found.std, found.freedom) == (pytest.approx(math.sqrt((2 + 6) / 3)), 3)
    assert pooled([[[1.0]], [[2.0]]]).freedom == 0


def test_what_varies_together_is_pooled_as_one():
    found = pooled([[[1.0, 3.0], [10.0, 14.0], []], [[5.0, 7.0]]])
    assert (found.std, found.freedom) == (pytest.approx(math.sqrt(((2 + 8) / 2 + 2) / 2)), 2)


@pytest.mark.parametrize("swap", [False, True], ids=COMPARED)
def test_two_rows_are_apart_beyond_the_quantile_of_the_pooled_spread(swap):
    """Deviations of ±1 in three rows: s = √2 of 3 degrees of freedom, and the error of a difference is s."""
    bound = stats.t.ppf(0.975, 3) * math.sqrt(2)
    for distance, said in ((bound - 0.01, "within seed spread"), (bound + 0.01, "not held" if swap else "held")):
        values = {A: trainings(9, 11), B: trainings(9 + distance, 11 + distance), C: trainings(49, 51)}
        assert verdict(values, *((B, A) if swap else (A, B))) == said


def test_rows_whose_seeds_reach_each_other_are_not_apart():
    others = {B: trainings(3.9, 9, 9, 9, 9, 9), C: trainings(5, 5, 5, 5, 5, 5)}
    assert verdict({A: trainings(1, 1, 1, 1, 1, 4), **others}) == "within seed spread"
    assert verdict({A: trainings(1, 1, 1, 1, 1, 3.8), **others}) == "held"


def test_perplexities_are_compared_by_quotients():
    """The same deviation in per cent, at 10 and at 1,000, is one spread."""
    small = {PPL("a"): trainings(10, 10.2), PPL("b"): trainings(11, 11.22)}
    large = {PPL("c"): trainings(1000, 1020)}
    assert verdict({**small, **large}, PPL("a"), PPL("b")) == "held"


def test_texts_alone_may_differ_by_more_than_trainings_do():
    """Two trainings whose means agree by accident: what another set of texts changes is the least spread."""
    values = {A: [[9, 11], [9, 11]], B: [[10, 12], [10, 12]]}
    assert verdict(values) == "within seed spread"  # s = √2/√2 of 4 degrees of freedom, so t·s is 2.8
    assert verdict({A: values[A], B: [[12, 14], [12, 14]]}) == "held"


def test_more_spread_never_makes_a_smaller_bound():
    """The quantile falls with the degrees of freedom, so t·s decides which spread is the larger."""
    quiet = {A: [[0, 0], [1.414, 1.414]], B: [[3.5, 3.5], [4.914, 4.914]]}
    loud = {A: [[-1.01, 1.01], [0.404, 2.424]], B: [[2.49, 4.51], [3.904, 5.924]]}
    assert verdict(quiet) == verdict(loud) == "within seed spread"


SHARED = {str(row): ("run-0", "run-1") for row in range(5)}


def chance(draw, runs, budgets=(None,), draws=3000):
    """How often the first two of equal rows are set apart, in the more frequent direction."""
    return max(chances(draw, runs, budgets, draws))


def chances(draw, runs, budgets=(None,), draws=3000):
    """How often the first of two equal rows is called the lower, and how often the higher."""
    said = []
    for _ in range(draws):
        drawn = draw()
        values = {(key, "l_h", one): rows for key in drawn for one, rows in zip(budgets, drawn[key], strict=True)}
        said.append(Figures(values, runs).compare(*((str(row), "l_h", budgets[-1]) for row in range(2))))
    return said.count("held") / draws, said.count("not held") / draws


def test_chance_seldom_sets_equal_rows_apart():
    """2.5 % in each direction, give or take what so many draws leave open."""
    random = np.random.default_rng(0)
    assert chance(lambda: {str(row): [trainings(*random.normal(size=2))] for row in range(12)}, {}) < 0.032


@pytest.mark.parametrize("own", [0.0, 1.0, 5.0])
def test_chance_seldom_sets_rows_of_the_same_trainings_apart(own):
    """Five rows of two trainings, of two sets each; a row may suit one training and not the other."""
    random = np.random.default_rng(0)

    def draw():
        common = 10 * random.normal(size=(2, 2))
        suits = own * random.normal(size=(5, 2, 1)) + random.normal(size=(5, 2, 2))
        return {str(row): [common + suits[row]] for row in range(5)}

    assert chance(draw, SHARED) < 0.032


@pytest.mark.parametrize(
    ("spreads", "shared", "stated"),
    [
        ((1.0, 1.0, 1.0, 1.0, 1.0), False, 3),
        ((1.0, 1.0, 1.0, 1.0, 1.0), True, 4),
        ((0.014, 1.24, 0.16, 0.01, 0.04), False, 20),  # LDLM, MDLM, Duo, CANDI and FLM in Table 8
        ((0.01, 0.115, 0.01, 0.01, 0.03), True, 18),  # decoders as in Table 5, beside what a training has in common
    ],
)
def test_chance_sets_rows_apart_as_often_as_the_docs_say(spreads, shared, stated):
    """Per cent of the cases in which two rows of equal mean are set apart, in either direction."""
    random, deviations = np.random.default_rng(0), np.array(spreads)[:, None, None]

    def draw():
        common = 0.3 * random.normal(size=(2, 1)) if shared else 0.0
        means = common + deviations * random.normal(size=(5, 2, 1))
        return {str(row): [drawn] for row, drawn in enumerate(means + 0.02 * random.normal(size=(5, 2, 2)))}

    up, down = chances(draw, SHARED if shared else {}, draws=2000)
    assert 100 * (up + down) == pytest.approx(stated, abs=1.5)
    assert re.search(rf"\b{stated} %", DOCS.split("## What is said about an ordering")[1].split("\n## ")[0])


@pytest.mark.parametrize("shared", [False, True])
def test_a_row_that_varies_more_than_the_others_is_not_compared_by_their_spread(shared):
    """Quiet rows dilute the pooled spread, and the noisy one has its own."""
    quiet = {(f"row {number}", "l_h", None): trainings(5, 5.01) for number in range(40)}
    values = {A: trainings(1, 1.01), B: trainings(2, 4.5), **quiet}
    runs = {key: ("run-0", "run-1") for key, _, _ in values} if shared else {}
    assert verdict(values, runs=runs) == "within seed spread"
    assert verdict(values, B, A, runs=runs) == "within seed spread"
    assert verdict({**values, B: trainings(4, 4.1)}, runs=runs) == "held"


@pytest.mark.parametrize("other", [1.0, 8.0])
def test_of_two_rows_of_the_same_trainings_each_has_its_part_in_the_spread(other):
    """Too few to be compared training by training, and one varies more than the other."""
    random = np.random.default_rng(0)

    def draw():
        return {"0": [trainings(*random.normal(size=2))], "1": [trainings(*other * random.normal(size=2))]}

    runs = {row: SHARED[row] for row in "01"}
    assert chance(draw, runs) < 0.032
    a, b = ((row, "l_h", None) for row in "01")
    values = {a: trainings(1, 1.1), b: trainings(2, 4)}
    back = {b: values[b], a: values[a]}
    assert Figures(values, runs).compare(a, b) == Figures(back, runs).compare(a, b) == "within seed spread"


def test_budgets_of_one_training_are_no_independent_trainings():
    """Four budgets of six rows, which differ by training alone; two rows share theirs."""
    random = np.random.default_rng(0)

    def draw():
        means = random.normal(size=(6, 2))
        means[5] = means[4]
        return {str(row): [trainings(*means[row] + 0.1 * random.normal(size=2)) for _ in range(4)] for row in range(6)}

    runs = {str(row): (f"{min(row, 4)}-0", f"{min(row, 4)}-1") for row in range(6)}
    assert chance(draw, runs, budgets=(8, 32, 64, 128)) < 0.032


def test_rows_of_the_same_trainings_are_compared_training_by_training():
    """Decoders of two runs that differ by far more than the decoders do."""
    steps = (0.0, 0.5, 0.52, 1.0, 1.5)
    values = {(str(row), "l_h", None): trainings(10 + step, 30 + step + 0.01 * row) for row, step in enumerate(steps)}
    first, second, third = ((str(row), "l_h", None) for row in range(3))
    assert verdict(values, first, second) == "within seed spread"
    assert verdict(values, first, second, {**SHARED, "1": ("run-2", "run-3")}) == "within seed spread"
    assert verdict(values, first, second, SHARED) == "held"
    assert verdict(values, second, first, SHARED) == "not held"
    assert verdict(values, second, third, SHARED) == "within seed spread"
    two = {place: values[place] for place in (first, second)}
    assert verdict(two, first, second, {key: SHARED[key] for key in "01"}) == "within seed spread"  # too few to tell


def test_a_training_that_is_missing_is_not_taken_for_the_next():
    """b is a + 1 in each training; a lacks the first of them and b the last."""
    runs = {str(row): ("run-0", "run-1", "run-2") for row in range(4)}
    values = {(str(row), "l_h", None): trainings(*(x + 0.3 * row for x in (0.0, 10.0, 20.0))) for row in (2, 3)}
    values["0", "l_h", None] = [[], [10.0], [20.0]]
    values["1", "l_h", None] = [[1.0], [11.0], []]
    assert verdict(values, ("0", "l_h", None), ("1", "l_h", None), runs) == "within seed spread"


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


@pytest.mark.parametrize(
    ("ppl", "entropy"), [("gen_ppl", "entropy"), ("middle_ppl", "middle_entropy"), ("mean_ppl", "mean_entropy")]
)
def test_each_perplexity_has_the_entropy_of_its_own_texts(ppl, entropy):
    values = {("a", ppl, None): trainings(100, 101), ("b", ppl, None): trainings(200, 202)}
    entropies = {("a", entropy, None): trainings(2.2, 2.2), ("b", entropy, None): trainings(3.9, 3.9)}
    a, b = values
    assert verdict(values, a, b) == "held"
    assert verdict({**values, **entropies}, a, b) == "not comparable, for entropy"
    assert verdict({**values, **entropies}, b, a) == "not comparable, for entropy"


def test_every_perplexity_that_an_ordering_compares_has_its_entropy_beside_it():
    for exhibit in map(exhibits.load, exhibits.NAMES):
        compared = {quantity for statement in exhibit.statements for _, quantity in statement.places}
        needed = {QUANTITIES[name].entropy for name in compared if QUANTITIES[name].ratio}
        assert needed <= {*exhibit.columns}, exhibit.name


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
