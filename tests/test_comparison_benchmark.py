"""The comparison with rival methods: its reference model by hand, order, tables, and the harness at toy size."""

import datetime
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as benchmarks_main
from benchmarks.comparison import autoregressive, picture, plan, results, runner, stories, tables
from benchmarks.comparison.plan import EQUAL_STEPS, LDLM, WAYS
from benchmarks.comparison.sources import RealText
from ldlm import files, runtime
from ldlm.errors import InputError
from ldlm.paper.comparing import Figures
from ldlm.stories.grammar import KINDS
from tests.conftest import BIGRAMS

ROOT = Path(__file__).parent.parent
TEXT = RealText(Path("novels.txt"))
LAWS = torch.tensor(list(BIGRAMS.values()))


@pytest.fixture(scope="module")
def model(bigrams):
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(bigrams).eval()


# ----------------------------------------------------------------------------------------------------------------------
# The autoregressive reference


def test_the_reference_draws_every_token_from_the_models_own_distribution(model):
    tokens_BL = autoregressive.draw(model, 0, 8, torch.arange(4000))
    assert (tokens_BL[:, 0] == 0).all()
    for before in range(3):
        after = tokens_BL[:, 1:][tokens_BL[:, :-1] == before]
        shares = torch.bincount(after, minlength=3) / len(after)
        assert shares.tolist() == pytest.approx(LAWS[before].tolist(), abs=4 * 0.5 / math.sqrt(len(after)))


def test_a_text_of_the_reference_depends_on_its_seed_alone(model):
    together = autoregressive.draw(model, 0, 8, torch.arange(20))
    assert torch.equal(together[7:9], autoregressive.draw(model, 0, 8, torch.tensor([7, 8])))
    assert len(together.unique(dim=0)) > 15


def test_the_reference_s_held_out_loss_is_that_of_its_rows_and_the_first_token_is_free(model):
    rows = torch.tensor([[0, 1, 2, 0], [0, 2, 2, 1]])
    nats = [-math.log(LAWS[a, b]) for row in rows.tolist() for a, b in pairwise(row)]
    assert autoregressive.held_out_loss(model, rows) == pytest.approx(sum(nats) / rows.numel(), rel=1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# Order and tables


def test_what_says_most_comes_first_and_rivals_are_drawn_from_once():
    draws = list(plan.draws((0, 1), (32, 128, 8, 256), list(plan.NAMES)))
    firsts = [(one.regime, one.seed, one.budget) for one in draws if one.way.key == "ldlm"]
    assert firsts[:4] == [*(("equal-steps", 0, budget) for budget in (32, 128, 8)), ("equal-steps", 1, 32)]
    assert [budget for *_, budget in firsts[-4:]] == [256] * 4
    assert {one.regime for one in draws if one.way.method != "ldlm"} == {"equal-steps"}
    assert len({one.texts for one in draws}) == len(draws) == 2 * 4 * (2 * 2 + 9)


def test_a_way_takes_as_many_evaluations_as_its_budget_with_the_row_that_ends_it():
    steps = {way.key: way.steps(32) for way in plan.WAYS}
    assert {steps.pop(key) for key in ("ldlm", "ldlm-paper", "candi", "flm")} == {32}
    assert set(steps.values()) == {31}


def test_flops_of_a_training_in_phases_are_the_mean_over_its_steps():
    phases = {"steps": {"curriculum": 300, "training": 100}, "flops_per_token": {"curriculum": 8, "training": 4}}
    assert plan.flops_per_token(phases) == 7.0
    assert plan.flops_per_token({"flops_per_token": 5}) == 5.0


def row(way: str, seed: int, gen_ppl: float | None, entropy: float) -> dict:
    place = {"regime": "equal-steps", "seed": seed, "way": way, "budget": 32, "num_texts": 500}
    took = {"cpu_seconds": 50.0, "seconds": 60.0, "evaluations": 31.0 if way == "mdlm" else 32.0}
    return {**place, **took, "gen_ppl": gen_ppl, "entropy": entropy, "diversity": 0.5}


ROWS = [
    row("ldlm", 0, 200.0, 3.8),
    row("ldlm", 1, 220.0, 3.9),
    row("mdlm", 0, 100.0, 3.85),
    row("mdlm", 1, 110.0, 4.15),
]


def bound(loss: float) -> dict:
    """Held-out figures of a method whose loss bounds the likelihood."""
    return {"loss": loss, "nelbo": loss}


def figures(rows: list) -> dict:
    """Figures of a comparison with these rows."""
    reference = {"gen_ppl": 90.0, "entropy": 3.95, "diversity": 0.6, "num_texts": 500}
    training = {"regime": "equal-steps", "method": "mdlm", "steps": 1200, "lr": 1e-3, "flops_per_token": 6_000_000}
    made = {"parameters": {"embedding": 10, "blocks": 20}, "cpu_seconds": 600.0, "seconds": 900.0}
    one_token = {"gen_ppl": 150.0, "held_out_loss": 4.0, "cpu_seconds": 5.0, "seconds": 10.0}
    return {
        "rows": rows,
        "references": {"real": reference, "ar": [{**reference, **one_token, "seed": 0}]},
        "trainings": [{**training, **made, "seed": seed, "held_out": bound(5.0 + seed)} for seed in (0, 1)],
        "rates": {"mdlm": {"0.001": 5.0, "0.003": 5.5}},
        "samples": {"mdlm": {"budget": 32, "texts": ["One\n two.", "Three."]}},
    }


def test_the_tables_have_the_mean_with_half_the_range_and_say_which_seeds_overlap():
    lines = tables.tables(figures(ROWS), TEXT).splitlines()
    assert (
        "| MDLM | equal steps | 1,200 | 0.001 | 30 | 6.00 M | 10.0 ± 0.0 | 15.0 ± 0.0 | ≤ 5.500 ± 0.500 | – |" in lines
    )
    assert "| MDLM | 5.000 | 5.500 |" in lines  # at each learning rate
    assert "| MDLM | 105.0 ± 5.0 |" in lines
    assert "| GPT-2, a token at a time | 150.0 |" in lines
    assert "| real text | 90.0 |" in lines
    assert "| MDLM | × 0.50, +0.15 ? |" in lines  # perplexities are apart, and entropies overlap
    assert not any("Equal training FLOPs" in line for line in lines)


def test_a_loss_is_no_likelihood_a_nelbo_bounds_it_and_of_gpt2_it_is_exact():
    found = figures(ROWS)
    base = found["trainings"][0]
    found["trainings"] = [
        base,
        {**base, "method": "flm", "held_out": {"loss": 1.25}},
        {**base, "method": "ar", "parameters": 30},
        {**base, "method": "ldlm", "held_out": {"l_diff": 0.1}},
    ]
    untrained = {**found["references"]["ar"][0], "seed": 1, "held_out_loss": 9.0}
    found["references"]["ar"].append(untrained)
    ends = {line.split(" | ")[0]: line.split(" | ")[-2:] for line in tables.tables(found, TEXT).splitlines()[:9]}
    assert ends["| "] == ["−log likelihood, held-out nats per token", "held-out loss that is no likelihood |"]
    assert ends["| MDLM"] == ["≤ 5.000", "– |"]
    assert ends["| FLM"] == ["–", "1.250 |"]
    assert ends["| GPT-2"] == ["4.000", "– |"]
    assert ends["| LDLM"] == ["–", "– |"]


def test_trainings_that_have_no_wall_time_leave_it_blank():
    found = figures(ROWS)
    for training in found["trainings"]:
        del training["seconds"]
    assert "| 6.00 M | 10.0 ± 0.0 | – | ≤ 5.500 ± 0.500 | – |" in tables.tables(found, TEXT)


def test_a_rate_that_one_method_was_not_tried_with_is_blank():
    found = {**figures(ROWS), "rates": {"mdlm": {"0.0003": 5.0, "0.001": 5.5}, "flm": {"0.001": 4.0}}}
    assert "| FLM | – | 4.000 |" in tables.tables(found, TEXT)


def test_runs_of_several_learning_rates_say_so():
    found = figures(ROWS)
    found["trainings"][1]["lr"] = 3e-4
    assert "| 1,200 | 0.0003, 0.001 | 30 |" in tables.tables(found, TEXT)


def test_costs_are_shown_for_every_way_and_for_gpt2_and_say_what_they_include():
    cpu, wall = tables.tables(figures(ROWS), TEXT).split("## CPU seconds per text")[1].split("## Wall seconds per text")
    assert cpu.startswith(", with the start of the command\n")
    assert wall.startswith(", without the start of the command\n")
    assert "| MDLM | 0.100 |" in cpu and "| MDLM | 0.120 |" in wall
    assert "| GPT-2, a token at a time | 0.010 |" in cpu and "| GPT-2, a token at a time | 0.020 |" in wall
    assert "of GPT-2 without it" in cpu


def test_a_budget_is_of_evaluations_at_most_and_what_was_taken_is_told():
    document = tables.tables(figures(ROWS), TEXT)
    assert "| evaluations, at most | 32 |" in document
    assert "took fewer on average: MDLM 31.0 of 32.\n" in document


def test_a_way_without_a_perplexity_has_no_figure_and_no_comparison():
    lines = tables.tables(figures([*ROWS[:2], row("flm", 0, None, 0.1)]), TEXT).splitlines()
    assert lines.count("| FLM | – |") == 2


def comparison_of(seed: int, **changes: object) -> dict:
    """Figures of a comparison of one seed."""
    training = {"regime": "equal-steps", "method": "mdlm", "steps": 1200, "lr": 1e-3, "seed": seed}
    references = {"real": {"num_texts": 500}, "ar": [{"seed": seed, "num_texts": 500}]}
    rows, text = [row("mdlm", seed, 100.0 + seed, 3.8)], {"sha256": "a"}
    return {"seeds": [seed], "text": text, "trainings": [training], "rows": rows, "references": references, **changes}


def test_seeds_of_several_machines_are_joined_in_order():
    found = results.joined(comparison_of(2), {Path("b"): comparison_of(0), Path("c"): comparison_of(1)})
    assert found["seeds"] == [0, 1, 2]
    for part in (found["trainings"], found["rows"], found["references"]["ar"]):
        assert [one["seed"] for one in part] == [0, 1, 2]
    smaller = comparison_of(1, rows=[{**row("mdlm", 1, 90.0, 3.8), "num_texts": 300}])
    assert [one["seed"] for one in results.joined(comparison_of(2), {Path("b"): smaller})["rows"]] == [2]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (comparison_of(0), "b has seed 0, which these results have"),
        (comparison_of(1, text={"sha256": "b"}), "b has the text b and these results a"),
        (comparison_of(1, references={"real": {"num_texts": 9}, "ar": []}), "b has the number of texts 9"),
        (comparison_of(1, trainings=[]), r"b has the trainings \[\] and these results"),
    ],
)
def test_results_of_another_comparison_are_not_joined(other, said):
    with pytest.raises(InputError, match=said):
        results.joined(comparison_of(0), {Path("b"): other})


@pytest.mark.parametrize("content", [None, "no JSON", '{"source": "comparison", "figures": {}}', "[]"])
def test_what_is_no_record_of_this_comparison_is_one_line(content, tmp_path):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"other\.json (can't be joined|has no results of stories-frontier)"):
        results.read(path, stories.Stories())


def judged(way: str, seed: int, share: float | None, order: int) -> dict:
    """A row of the frontier on stories."""
    shares = dict.fromkeys(("sentences_valid", "stories_valid", "coverage", "nats_per_story", "nats_per_word"), share)
    sentences = {"sentences": 90, "cut_sentences": 10}
    kinds = {**dict.fromkeys(KINDS, 0), "order": order}
    return {**row(way, seed, None, 3.0), **shares, **sentences, "violations": kinds}


def test_the_frontier_on_stories_has_validity_and_violations_in_place_of_perplexity():
    rows = [
        judged("ldlm", 0, 0.7, 10),
        judged("ldlm", 1, 0.5, 31),
        judged("mdlm", 0, 0.4, 0),
        judged("flm", 0, None, 0),
    ]
    real = {**judged("real", 0, 1.0, 0), "diversity": 0.5}
    found = {**figures(rows), "references": {"real": real, "ar": []}, "trainings": [], "rates": {}}
    lines = tables.tables(found, stories.Stories()).splitlines()
    assert "## Equal steps: share of the sentences that are valid" in lines
    assert "| LDLM | 0.600 ± 0.100 |" in lines
    assert "| MDLM | -0.20 ?, -0.20 ?, +0.00 ? |" in lines  # of one seed
    assert "| FLM | – |" in lines
    start = lines.index("## Equal steps: violations in a hundred sentences, 32 evaluations")
    assert lines[start + 2].split(" | ")[-2:] == ["order", "ending |"]
    assert lines[start + 4] == "| LDLM | 0.0 | 0.0 | 0.0 | 0.0 | 0.0 | 0.0 | 20.5 | 0.0 |"
    assert "perplexity" not in "\n".join(lines)


def test_the_picture_has_a_chart_for_each_figure_and_family_with_ldlm_under_both_regimes():
    rows = [judged("ldlm", 0, 0.7, 10), {**judged("ldlm", 0, 0.2, 10), "regime": "equal-flops"}]
    rows += [judged("mdlm", 0, 0.4, 0), judged("duo", 0, 0.3, 0), {**judged("duo", 0, 0.5, 0), "budget": 64}]
    real = judged("real", 0, 1.0, 0)
    found = {**figures(rows), "references": {"real": real, "ar": [{**real, "sentences_valid": 0.5}]}}
    charts = picture.charts(found, stories.Stories.axes)
    assert len(charts) == 9  # of valid sentences and entropy against evaluations, and of sentences against seconds
    assert [mark.name for mark in charts[0].marks] == ["LDLM", "LDLM, equal FLOPs", "MDLM", "GPT-2", "real text"]
    assert not any("stories" in chart.y.label for chart in charts)
    seconds = charts[7]
    assert (seconds.x.label, seconds.y.label) == (
        "CPU seconds per text, log scale",
        "valid sentences, share, log scale",
    )
    assert {mark.name: (list(mark.x), list(mark.y)) for mark in seconds.marks}["Duo"] == ([0.1, 0.1], [0.3, 0.5])
    assert {mark.name: (list(mark.x), list(mark.y)) for mark in seconds.marks}["GPT-2"] == ([0.1], [0.5])


def test_committed_results_are_still_read_and_shown():
    """Results of the frontier give tables, and charts of LDLM beside others."""
    paths = [*(ROOT / "benchmarks/results").glob("stories-frontier-*.json")]
    assert paths
    for path in paths:
        found = results.read(path, stories.Stories())["figures"]
        assert "| MDLM | equal steps | 1,400 | " in tables.tables(found, stories.Stories())
        for chart in picture.charts(found, stories.Stories.axes):
            names = {mark.name for mark in chart.marks} - {"GPT-2", "real text"}
            assert "LDLM" in names and len(names) > 2


def test_samples_are_shown_as_they_are_but_for_their_line_ends():
    assert tables.samples(figures(ROWS)) == "**MDLM**, 32 evaluations\n\n> One two.\n>\n> Three.\n"


@pytest.mark.parametrize(
    ("page", "section", "stem"),
    [
        ("baselines", "## On one text", "comparison"),
        ("baselines", "## On stories", "stories-frontier"),
    ],
)
def test_tables_and_texts_on_the_page_are_those_of_a_committed_run(page, section, stem):
    shown = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8").split(section)[1]
    committed = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks/results").glob(f"{stem}-*.md"))
    assert [line for line in shown.splitlines() if line.startswith(("| ", "> ")) and line not in committed] == []


def test_docs_say_of_which_rivals_two_seeds_set_ldlm_apart_on_stories():
    """By the rule of the paper's tables, at equal steps, with the default sampler: docs/baselines.md and README.md."""
    record = files.read_json(ROOT / "benchmarks/results/stories-frontier-2026-11-29.json")
    methods, valid = {way.key: way.method for way in WAYS}, {}
    for row in sorted(record["figures"]["rows"], key=lambda row: row["seed"]):
        if methods[row["way"]] != LDLM or row["regime"] == EQUAL_STEPS:
            valid.setdefault((row["way"], "diversity", row["budget"]), []).append([row["sentences_valid"]])  # a share
    figures = Figures(valid, {way: (f"{method}-0", f"{method}-1") for way, method in methods.items()})
    nucleus, close = ["duo-p", "psi", "psi-rescale"], {}
    for budget in (8, 16, 32, 64, 128, 256):
        rivals = [way for way, method in methods.items() if method != LDLM]
        said = {way: figures.compare((way, "diversity", budget), (LDLM, "diversity", budget)) for way in rivals}
        assert not {*said.values()} - {"held", "within seed spread"}
        close[budget] = [way for way in rivals if said[way] == "within seed spread"]
        if budget >= 32:
            low = min(value for (value,) in valid[LDLM, "diversity", budget])
            assert all(low > value for way in rivals for (value,) in valid[way, "diversity", budget])
    assert close == {
        8: ["remdm", *nucleus], 16: nucleus, 32: nucleus, 64: [], 128: ["psi", "psi-rescale"], 256: ["psi-rescale"]
    }  # fmt: skip


def test_one_seed_alone_is_not_told_apart():
    one, two = [{"gen_ppl": 100.0}], [{"gen_ppl": 50.0}, {"gen_ppl": 51.0}]
    assert tables._compared(one, two, {"gen_ppl": "ratio"}) == "× 1.98 ?"
    assert tables._compared(two, one, {"gen_ppl": "ratio"}) == "× 0.51 ?"


# ----------------------------------------------------------------------------------------------------------------------
# The harness


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--methods", "foo"), "there is no method foo; choose from ldlm"),
        (("--steps", "0"), "0 is no whole number of 1 or more"),
        (("--texts", "-5"), "-5 is no whole number of 1 or more"),
        (("--budgets", "8", "0"), "0 is no whole number of 1 or more"),
        (("--documents", "0"), "0 is no whole number of 1 or more"),
        ((), "is a file and the output is a folder; choose another --output"),
    ],
)
def test_what_a_comparison_cannot_use_is_refused_before_anything_is_made(words, said, tmp_path, capsys):
    out = tmp_path / "out"
    if not words:
        out.write_text("")
    with pytest.raises(SystemExit) as stopped:
        stories.main(["--output", str(out), *words])
    assert said in f"{stopped.value} {capsys.readouterr().err}"
    assert out.exists() == (not words)


def test_a_benchmark_does_not_measure_for_an_output_that_is_a_file(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "samplers", "--output", str(tmp_path / "file")])
    monkeypatch.setattr(benchmarks_main, "part", lambda name: pytest.fail("measured"))
    with pytest.raises(SystemExit):
        benchmarks_main.main()
    assert "is a file and the output is a folder" in capsys.readouterr().err


@pytest.fixture
def toy(monkeypatch, succeed):
    """The comparison at toy size, its commands called in this process; the list of them."""
    small = {"layers": 2, "width": 16, "heads": 2, "steps": 2}
    for name, value in {"SEQ_LEN": 16, "VOCABULARY": 320, "ENCODER": small, "SCORER": small}.items():
        monkeypatch.setattr(plan, name, value)
    monkeypatch.setattr(runner, "RIVALS", ("mdlm",))
    called = []

    def call(comparison, *arguments):
        monkeypatch.chdir(comparison.folder)
        called.append([str(argument) for argument in arguments])
        found = succeed(*arguments)
        with open(comparison.folder / "commands.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"ldlm": called[-1], "seconds": 1.0, "cpu_seconds": 60.0}) + "\n")
        return found

    monkeypatch.setattr(runner.Comparison, "ldlm", call)
    return called


@pytest.mark.slow
def test_the_comparison_goes_on_where_it_was_interrupted_and_writes_what_it_found(
    toy, corpus, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(results, "SHOWN", 2)
    sizes = ["--seeds", "0", "--steps", "4", "--texts", "3", "--budgets", "2", "--methods", "ldlm", "mdlm", "ar"]
    command = ["--text", str(corpus), "--output", str(tmp_path / "c"), "--results", str(tmp_path / "r"), *sizes]
    runner.main(command)
    first = list(toy)
    assert [words[0] for words in first].count("sample") == 2 * 2 + 3
    (tmp_path / "c/texts/equal-steps/seed-0/ldlm-2.json").unlink()  # as if it had been stopped before the scores
    runner.main(command)
    assert [words[0] for words in toy[len(first) :]] == ["sample"]
    (made,) = (tmp_path / "r").glob("*.json")
    figures = files.read_json(made)["figures"]
    drawn = {(row["regime"], row["way"]): row for row in figures["rows"]}
    assert len(drawn) == len(figures["rows"]) == 2 * 2 + 3
    assert [place for place, row in drawn.items() if row["seconds"] is None] == [("equal-steps", "ldlm")]
    assert all(1 <= row["evaluations"] <= 2 for row in drawn.values())
    trained = {(row["regime"], row["method"]): row for row in figures["trainings"]}
    assert {key: row["cpu_seconds"] for key, row in trained.items()} == dict.fromkeys(trained, 60.0)
    ours, theirs = trained["equal-steps", "ldlm"], trained["equal-steps", "mdlm"]
    dearest = max(plan.flops_per_token(files.read_json(path)) for path in (tmp_path / "c/costs").glob("[!l]*.json"))
    fewer = trained["equal-flops", "ldlm"]["steps"]
    assert fewer == round(ours["steps"] * dearest / ours["flops_per_token"]) < ours["steps"]
    rates = figures["rates"]["mdlm"]
    assert (set(rates), theirs["lr"]) == ({"0.0003", "0.001", "0.003", "0.006"}, float(min(rates, key=rates.get)))
    tried = files.read_json(tmp_path / "c/rates/mdlm.json")
    files.write_json(tmp_path / "c/rates/mdlm.json", {rate: tried[rate] for rate in list(tried)[1:]})
    shutil.rmtree(tmp_path / "c/runs/equal-steps/seed-0/mdlm")
    (tmp_path / "c/texts/equal-steps/seed-0/mdlm-2.json").unlink()
    shutil.rmtree(tmp_path / "c/rates/mdlm-0.0003")
    before = len(toy)
    runner.main(command)  # an output that was begun when there were three rates tries the fourth alone
    assert files.read_json(tmp_path / "c/rates/mdlm.json") == tried
    trained = [words[-1] for words in toy[before:] if words[0] == "train"]
    assert trained == ["rates/mdlm-0.0003", "runs/equal-steps/seed-0/mdlm"]
    shown = figures["samples"]["ldlm-paper"]
    drawn_texts = files.read_jsonl(tmp_path / f"c/texts/equal-steps/seed-0/ldlm-paper-{shown['budget']}.jsonl")
    assert shown["texts"] == [row["text"] for row in drawn_texts][:2]  # the first, and none is chosen
    assert made.with_suffix(".png").exists()
    assert made.with_suffix(".md").read_text(encoding="utf-8") in capsys.readouterr().out


def test_another_text_is_not_taken_for_the_first(toy, corpus, few_lines, tmp_path):
    command = ["--output", str(tmp_path / "c"), "--methods"]
    runner.main(["--text", str(corpus), "--texts", "3", *command])
    with pytest.raises(SystemExit, match=r"holds a comparison on another text than .*few\.txt"):
        runner.main(["--text", str(few_lines), *command])
    with pytest.raises(SystemExit, match=r"has trainings of 3,000 steps, not 50; give --steps 3000, or another"):
        runner.main(["--text", str(corpus), "--steps", "50", *command])


def test_a_table_has_one_number_of_texts_and_real_text_is_measured_again_when_it_grows(toy, corpus, tmp_path):
    out, source = tmp_path / "c", RealText(corpus)
    command = ["--text", str(corpus), "--output", str(out), "--steps", "2", "--methods", "ar", "--budgets", "8"]
    runner.main([*command, "--seeds", "0", "1", "--texts", "3"])
    draws = {one.way.key: one.texts.with_suffix(".json") for one in plan.draws([0], [8], ["mdlm"])}
    for way, texts in {"mdlm": 3, "mdlm-p": 6}.items():
        files.write_json(out / draws[way], {"num_texts": texts})
        (out / draws[way]).with_suffix(".jsonl").write_text('{"text": "One."}\n' * texts)
    runner.main([*command, "--seeds", "0", "--texts", "6"])
    found = results.collect(source, out, (0, 1), (8,))
    assert found["references"]["real"]["num_texts"] == 6
    assert [(one["seed"], one["num_texts"]) for one in found["references"]["ar"]] == [(0, 6)]
    assert [(one["way"], one["num_texts"]) for one in found["rows"]] == [("mdlm-p", 6)]
    assert list(found["samples"]) == ["mdlm-p", "ar"]
    assert list(results.collect(source, out, (1,), (8,))["samples"]) == []
    files.write_json(out / results.REAL, {"num_texts": 3})  # as earlier versions left it
    with pytest.raises(InputError, match=r"mdlm-p-8\.json is of 6 texts, and the real ones are 3; run it with"):
        results.collect(source, out, (0,), (8,))
    files.write_json(out / results.REAL, {"num_texts": 6})
    before = len(toy)
    with pytest.raises(SystemExit, match=r"has sets of 6 texts, and --texts 5 asks for fewer; give --texts 6 or more"):
        runner.main([*command, "--texts", "5"])
    assert len(toy) == before


@pytest.mark.parametrize("there", [False, True])
def test_a_report_on_a_folder_without_findings_is_one_line(there, tmp_path):
    out = tmp_path / "c"
    if there:
        out.mkdir()
    for report, own in ((runner.main, ["--text", "novels.txt"]), (stories.main, [])):
        with pytest.raises(
            SystemExit, match=r"Error: .*c has no measured texts, so there is nothing to report; run it"
        ):
            report([*own, "--output", str(out), "--report"])


def test_hardware_and_date_are_those_of_the_commands_and_not_of_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "hardware", lambda: "this one")
    today, place = datetime.date.today().isoformat(), tmp_path / "commands.jsonl"
    place.write_text(files.dump_jsonl([{"ldlm": ["train"], "seconds": 1.0, "cpu_seconds": 1.0}]))  # as it was before
    other = {"date": "2026-01-01", "hardware": "H100; A100"}

    def place_and_day(*others, here):
        found = results.measured_at(tmp_path, others, here=here)
        return found.date, found.hardware

    assert place_and_day(here=False) == (today, None)
    assert place_and_day(here=True) == (today, "this one")
    assert place_and_day(other, here=False) == (today, "H100; A100")
    with pytest.raises(subprocess.CalledProcessError):
        runner.Comparison(TEXT, tmp_path, 4, 3).ldlm("no-command")
    *_, line = files.read_jsonl(place)
    assert (line["date"], line["hardware"]) == (today, "this one")
    files.write_atomic(place, files.dump_jsonl([{**line, "date": "2026-01-02", "hardware": "A100"}]))
    for here in (False, True):
        assert place_and_day(other, here=here) == ("2026-01-02", "A100; H100")


def test_a_command_that_was_listed_in_part_costs_neither_the_next_one_nor_the_report(tmp_path):
    place, ran = tmp_path / "commands.jsonl", runner.Comparison(TEXT, tmp_path, 4, 3)
    place.write_text('{"ldlm": ["sa')
    with pytest.raises(subprocess.CalledProcessError):
        ran.ldlm("no-command", "--output", "one")
    assert list(results._spent_by_output(tmp_path)) == ["one"]
    assert results.measured_at(tmp_path, [], here=False).hardware == runtime.hardware()


def test_seeds_that_run_at_once_share_the_trials_of_a_learning_rate(tmp_path, monkeypatch):
    """Threads stand for processes: a lock on a folder keeps both apart."""
    at_work, tried = threading.Lock(), []

    def train(comparison, output, method, seed, steps, *more):
        assert at_work.acquire(blocking=False), "another process is at work"
        tried.append(output.name)
        time.sleep(0.05)
        manifest = {"held_out": {"loss": abs(float(more[-1].split("=")[1]) - 1e-3)}}
        files.write_atomic(comparison.folder / output / "manifest.json", files.dump_digested(manifest))
        at_work.release()

    monkeypatch.setattr(runner.Comparison, "_train", train)
    folder = tmp_path / "c"
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(runner.Comparison(TEXT, folder, 4, 3).rate, "mdlm") for _ in range(2)]
    assert [one.result() for one in asked] == [1e-3, 1e-3]
    assert tried == [f"mdlm-{rate:g}" for rate in plan.RATES]


PARENT = """
import sys
from pathlib import Path
from benchmarks.comparison import runner, stories
comparison = runner.Comparison(stories.Stories(), Path(sys.argv[1]), 4, 3)
comparison.ldlm("stories", "--config", "pipe", "--output", "runs/stories.txt")
"""


@pytest.fixture
def at_work(tmp_path):
    """A process whose command is at work, the folder, and a descriptor of the pipe that the command reads."""
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT) as parent:
        pipe = os.open(tmp_path / "pipe", os.O_WRONLY)  # waits until the command opens it
        yield parent, tmp_path, pipe
        parent.kill()
    os.close(pipe)


def test_the_command_of_a_process_that_is_killed_is_waited_for(at_work, capfd):
    parent, folder, pipe = at_work
    parent.kill()
    parent.wait()
    with ThreadPoolExecutor() as pool:
        comparison = runner.Comparison(stories.Stories(), folder, 4, 3)
        again = pool.submit(comparison.ldlm, "stories", "--documents", "2", "--output", "runs/stories.txt")
        said = ""
        while not again.done() and "waiting" not in said:
            said += capfd.readouterr().err
            time.sleep(0.05)
        assert f"another process is at work on {folder / 'runs/stories.txt'}; waiting for it" in said
        os.write(pipe, b"documents: 2\n")
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, pipe)  # the end of what the command reads
        os.close(null)
        assert again.result()["documents"] == 2


def test_the_command_of_a_process_that_is_to_end_ends_before_it(at_work):
    parent, _, pipe = at_work
    parent.terminate()
    assert parent.wait() != 0
    with pytest.raises(BrokenPipeError):  # nobody reads
        os.write(pipe, b"documents: 2\n")


@pytest.mark.parametrize(("way", "known"), [("ldlm", 8), ("mdlm", None), ("remdm", None)])
def test_evaluations_of_texts_that_were_drawn_before_a_kill_are_those_of_ldlm_alone(way, known, tmp_path, monkeypatch):
    """`ldlm sample` counts those that it takes itself, and LDLM takes one a step; a rival's may be fewer."""
    complete = {"kind": "samples"}  # its record, which is all that it prints where nothing is left to draw
    monkeypatch.setattr(runner.Comparison, "ldlm", lambda *arguments: complete)
    monkeypatch.setattr(runner.Comparison, "train", lambda *arguments: None)
    monkeypatch.setattr(runner.Comparison, "_score", lambda *arguments: {"num_texts": 3})
    (draw,) = (
        one for one in plan.draws([0], [8], list(plan.NAMES)) if one.way.key == way and one.regime == plan.EQUAL_STEPS
    )
    runner.Comparison(TEXT, tmp_path, 4, 3).draw(draw)
    record = files.read_json(tmp_path / draw.texts.with_suffix(".json"))
    assert record == {"cpu_seconds": None, "seconds": None, "evaluations": known, "num_texts": 3}


@pytest.mark.slow
def test_the_frontier_on_stories_goes_on_and_writes_what_it_found(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "SEQ_LEN", 32)
    sizes = [
        "--seeds",
        "0",
        "1",
        "--steps",
        "3",
        "--texts",
        "5",
        "--budgets",
        "2",
        "3",
        "--methods",
        "ldlm",
        "mdlm",
        "ar",
    ]
    command = ["--documents", "200", "--held-out", "60", "--output", str(tmp_path / "c"), *sizes]
    stories.main([*command, "--results", str(tmp_path / "r")])
    first = list(toy)
    assert [words[0] for words in first].count("sample") == 2 * 2 * (2 * 2 + 3)
    (ours, *_) = (words for words in first if words[0] == "train" and "--method" not in words)
    assert {"recipe.sigma_dec=0.5", "optimizer.lr=0.006", "recipe.warmup_steps=1"} <= set(ours)
    assert not any("--scorer" in words for words in first)
    (tmp_path / "c/texts/equal-steps/seed-1/mdlm-3.json").unlink()  # as if it had been stopped before the scores
    stories.main([*command, "--results", str(tmp_path / "r")])
    assert [words[0] for words in toy[len(first) :]] == ["sample"]
    (made,) = (tmp_path / "r").glob("stories-frontier-*.json")
    found = files.read_json(made)["figures"]
    assert {row["regime"] for row in found["rows"]} == {"equal-steps", "equal-flops"}
    assert all(row["num_texts"] == 5 and set(row["violations"]) == set(KINDS) for row in found["rows"])
    assert found["references"]["real"]["sentences_valid"] == found["references"]["real"]["cut_sentences_valid"] == 1.0
    assert {row["method"] for row in found["trainings"] if row["flops_per_token"]} == {"ldlm", "mdlm"}
    assert made.with_suffix(".png").exists()
    assert made.with_suffix(".md").read_text(encoding="utf-8") in capsys.readouterr().out
    with pytest.raises(SystemExit, match="holds a comparison on another text than the first 270 stories of seed 0"):
        stories.main([*command, "--documents", "210"])
