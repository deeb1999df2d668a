"""The choice of a sweep's finalists and the verdict on them."""

from dataclasses import replace
from pathlib import Path

import pytest

from ldlm.errors import InputError
from ldlm.evaluation import frontier
from ldlm.evaluation.frontier import External, Variant
from ldlm.pages import results


def row(solver: str, budget: int, gen_ppl: float, entropy: float, guidance: float = 1.0) -> Variant:
    keys = {"grid": "time", "decoder": "joint", "final": "mean", "temperature": 0.0, "guidance": guidance}
    figures = {"gen_ppl": gen_ppl, "entropy": entropy, "diversity": 0.5, "num_texts": 8, "seconds": 1.0}
    return Variant(solver=solver, budget=budget, steps=budget, **keys, **figures)


def chosen(rows: list[Variant]) -> list[tuple[Variant, bool]]:
    return [(replace(one, best=None), one.best) for one in frontier.finalists(rows, 0.02)]


def test_a_low_perplexity_that_is_bought_with_entropy_does_not_win():
    own = [row("euler-maruyama", 32, 200, 4.0), row("euler-maruyama", 128, 100, 4.0)]
    collapsed, good, dull = row("ddim", 32, 20, 3.0), row("heun", 32, 110, 3.99), row("dpm++2m", 32, 150, 4.2)
    assert chosen([*own, collapsed, good, dull]) == [(own[0], False), (good, True), (own[1], True)]
    # Where nothing keeps the entropy, what comes nearest.
    assert chosen([own[1], collapsed, row("heun", 32, 10, 2.0)]) == [(collapsed, True), (own[1], True)]
    # A guided Euler–Maruyama is not the paper's.
    guided = row("euler-maruyama", 128, 50, 4.0, guidance=2.0)
    assert chosen([own[1], guided]) == [(own[1], False), (guided, True)]


def test_nor_does_it_where_the_papers_own_sampler_collapses():
    """It is a finalist in any case, and then neither the one that the verdict names nor the best of its budget."""
    rows = [row("euler-maruyama", 32, 60, 1.5), row("dpm++2m", 32, 410, 3.4), row("euler-maruyama", 128, 440, 3.4)]
    finalists = frontier.finalists(rows, 0.02)
    assert frontier.verdict(finalists).startswith("At 32 evaluations dpm++2m (time, w = 1): perplexity 410")
    lines = results.frontier_lines([one.to_json() for one in finalists])
    assert [one["gen_ppl"] for one in lines["the paper's sampler"]] == [60, 440]
    assert [one["gen_ppl"] for one in lines["best at each budget"]] == [410, 440]


def test_a_sweep_of_before_the_best_was_marked_is_still_read():
    rows = [row("euler-maruyama", 32, 200, 4.0), row("heun", 32, 110, 4.0), row("euler-maruyama", 128, 100, 4.0)]
    stored = {"finalists": [one.to_json() for one in rows]}
    assert "At 32 evaluations heun" in frontier.verdict(frontier.read_finalists(stored))
    assert results.frontier_lines(stored["finalists"])["best at each budget"] == [stored["finalists"][1]]


@pytest.mark.parametrize("cost", ["4,nan", "4,inf", "4,-1", "4,0", "0,1", "-4,1", "4.5,1", "4", "1,2,x"])
def test_costs_of_other_models_are_positive(cost):
    """Their axes are logarithmic."""
    assert External.parse("a=b,c.jsonl,4,0.5") == External("a", Path("b,c.jsonl"), 4, 0.5)
    with pytest.raises(InputError, match=r"NAME=FILE,NFE,SECONDS \(evaluations and seconds per text, both above 0\)"):
        External.parse(f"a=b.jsonl,{cost}")


def test_a_row_of_a_sweep_survives_its_json():
    one = row("heun", 32, 110, 4.0)
    assert Variant.from_json(one.to_json()) == one
    assert "best" not in one.to_json()
    assert Variant.from_json(replace(one, best=False).to_json()).best is False
    assert "intervals" not in one.to_json()  # as in a record of an earlier version
    with_intervals = replace(one, intervals={"gen_ppl": [100.0, 120.0], "entropy": [3.9, 4.1]})
    assert Variant.from_json(with_intervals.to_json()) == with_intervals
    assert "perplexity 110.0 [100.0, 120.0], entropy 4.000 [3.900, 4.100]" in frontier.verdict(
        [replace(with_intervals, best=True), row("euler-maruyama", 128, 100, 4.0)]
    )
