"""Texts with nothing to score: a row without a perplexity wherever figures stand, and everything else goes on.

The run has learned one thing: that end-of-text is the most likely token everywhere. At temperature 0 it says nothing
else, and at temperature 1 it says other things too.
"""

import json
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ldlm import config as configs
from ldlm.config import EvaluateConfig, InterpolateConfig, SweepConfig, TrainConfig
from ldlm.evaluation import frontier, mauve
from ldlm.evaluation.frontier import Variant
from ldlm.pages import drawing, results
from ldlm.pages import report as report_page
from ldlm.stages import evaluate, extract_features, interpolate, quickstart, report, sweep, train

COMMON = {"screen_texts": 3, "texts": 4, "batch_size": 4, "device": "cpu", "guidances": (1.0,), "grids": ("time",)}
SAMPLERS = {"budgets": (2, 4), "solvers": ("euler-maruyama", "dpm++2m"), "finals": ("mean",)}


@pytest.fixture(scope="module")
def letters(few, tmp_path_factory):
    """A store of documents of one letter: every second token is end-of-text."""
    data = tmp_path_factory.mktemp("letters") / "letters.txt"
    data.write_text("\n".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=3_000)))
    config = replace(few, data=(str(data),), validation_docs=300)
    return extract_features.run(config, data.with_name("features")).path


@pytest.fixture(scope="module")
def collapsed(train_config, letters, tmp_path_factory):
    """The run."""
    changes = {
        "steps": 60,
        "optimizer": {"lr": 3e-3},
        "model": {"denoiser": {"positions": "normal"}},  # so that it learns nothing of order
        "recipe": {"sigma_dec": 30.0},
        "eval_every": 60,
        "save_every": 60,
    }
    config = configs.from_dict(TrainConfig, configs.merge(configs.to_dict(train_config), changes))
    return train.run(config, letters, tmp_path_factory.mktemp("collapsed") / "run").path


def strict(path):
    """JSON without NaN or infinity."""
    return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} in {path}"))


def whole(page):
    """A page without a number that is none."""
    text = page.read_text()
    assert not re.search(r"\b(nan|None)\b", text)
    return text


@pytest.fixture(scope="module")
def swept(collapsed, gpt2, tmp_path_factory):
    """A sweep into the run, of which one temperature has nothing to say, and so has one of two other models."""
    texts = tmp_path_factory.mktemp("others")
    (texts / "silent.txt").write_text("<|endoftext|>\n" * 6)
    (texts / "real.txt").write_text("a b c d e\nf g h i\n" * 3)
    others = [frontier.External(name, texts / f"{name}.txt", nfe=8, seconds=0.1) for name in ("silent", "real")]
    config = SweepConfig(scorer=str(gpt2), temperatures=(0.0, 1.0), **COMMON, **SAMPLERS)
    return sweep.run(config, collapsed, collapsed / "sweep", reference=texts / "real.txt", externals=others)


def test_a_combination_is_a_row_without_a_perplexity_and_the_sweep_goes_on(swept):
    found = strict(swept.path / "sweep.json")
    silent, spoken = ([row for row in found["screened"] if row["temperature"] == t] for t in (0, 1))
    assert {row["gen_ppl"] for row in silent} == {None}
    assert {row["entropy"] for row in silent} == {0}
    assert all(row["gen_ppl"] > 1 for row in spoken)
    assert len(silent) == len(spoken) == 4
    assert [one["gen_ppl"] is None for one in found["externals"]] == [True, False]
    table = (swept.path / "table.md").read_text()
    assert "4 of the 8 combinations that were screened have no perplexity (–)" in table
    assert "- silent: no perplexity" in table
    assert "nan" not in table.lower()


def test_the_best_of_a_budget_is_one_with_a_perplexity(swept):
    finalists = swept.manifest["finalists"]
    assert {row["budget"] for row in finalists if row["best"]} == {2, 4}
    assert all(row["gen_ppl"] is not None for row in finalists)


def test_pictures_and_pages_are_made_of_it(swept, collapsed, tmp_path):
    with Image.open(swept.path / "frontier.png") as picture:
        assert picture.width > 300
    text = whole(report.run(collapsed, tmp_path / "report.html"))
    assert "4 of the 8 combinations that were screened have no perplexity" in text


def test_a_sweep_of_which_nothing_can_be_scored_says_so(collapsed, gpt2, ldlm, succeed, tmp_path):
    (tmp_path / "silent.txt").write_text("<|endoftext|>\n" * 6)
    arguments = [
        "sweep", "--run", collapsed, "--scorer", gpt2, "--temperatures", 0, "--budgets", 2, 4, "--screen-texts", 3,
        "--texts", 4, "--batch-size", 4, "--device", "cpu", "--guidances", 1, "--grids", "time", "--finals", "mean",
        "--solvers", "euler-maruyama", "dpm++2m", "--reference", tmp_path / "silent.txt", "--output", tmp_path / "out",
    ]  # fmt: skip
    found = succeed(*arguments)
    assert {row["gen_ppl"] for row in found["finalists"]} == {found["real"]["gen_ppl"]} == {None}
    assert {row["budget"] for row in found["finalists"]} == {2, 4}
    assert not any(row["best"] for row in found["finalists"])
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())
    verdict = frontier.verdict(frontier.read_finalists(record))
    page = report_page.page(replace(report.read(collapsed), sweep=record, verdict=verdict))
    assert "No combination has a perplexity" in page
    again = ldlm(*arguments)
    assert again.exit_code == 0
    assert "No combination has a perplexity: none of the texts has a token to score." in again.stdout
    assert (tmp_path / "out" / "frontier.png").exists()


def row(solver, budget, gen_ppl, entropy):
    keys = {"grid": "time", "decoder": "joint", "final": "mean", "temperature": 0.0, "guidance": 1.0, "steps": budget}
    figures = {"gen_ppl": gen_ppl, "entropy": entropy, "diversity": 0.5, "num_texts": 8, "seconds": 1.0}
    return Variant(solver=solver, budget=budget, **keys, **figures)


def test_the_papers_sampler_is_a_finalist_where_it_has_nothing_to_score_and_sets_no_bar():
    silent = row("euler-maruyama", 128, None, 0.0)
    own, good = row("euler-maruyama", 32, 200.0, 4.0), row("ddim", 128, 100.0, 4.0)
    dull = row("heun", 128, 10.0, 1.0)
    found = frontier.finalists([silent, own, good, dull], 0.02)
    assert found == [replace(own, best=True), replace(silent, best=False), replace(good, best=True)]
    assert results.frontier_lines([one.to_json() for one in found])["the paper's sampler"] == [found[0].to_json()]
    (only,) = frontier.finalists([silent], 0.02)
    assert only == replace(silent, best=False)
    assert frontier.verdict([replace(silent, best=False), replace(good, best=True)]) == (
        "The paper's sampler has no perplexity."
    )


def test_points_of_a_path_have_no_perplexity_and_the_rest_is_told(collapsed, letters, gpt2, ldlm, tmp_path):
    config = InterpolateConfig(pairs=2, points=3, scorer=str(gpt2), device="cpu")
    made = interpolate.run(config, collapsed, letters)
    found = strict(made.path / "interpolation.json")
    assert [point["gen_ppl"] for point in found["points"]] == [None] * 3
    assert found["real"]["gen_ppl"] > 1
    shown = ldlm(
        "interpolate", "--run", collapsed, "--features", letters, "--pairs", 2, "--points", 3, "--scorer", gpt2
    )
    assert shown.exit_code == 0, shown.stderr
    assert "no perplexity (-): none of the texts has a token to score" in shown.stdout
    text = whole(report.run(collapsed, tmp_path / "report.html"))
    assert "At 3 of the 3 points there is no perplexity" in text


def test_mauve_of_a_silent_file_is_none_and_that_of_the_others_is_as_ever(gpt2, unseen, tmp_path):
    pytest.importorskip("mauve", reason="mauve-text is not installed")
    texts = {"spoken": unseen[:40], "silent": [""] * 39 + ["rain"], "real": unseen[40:80]}
    paths = {name: tmp_path / f"{name}.jsonl" for name in texts}
    for name, lines in texts.items():
        paths[name].write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    config = EvaluateConfig(scorer=str(gpt2), max_tokens=16, resamples=100)
    spoken, silent, _ = evaluate.run(config, [paths["spoken"], paths["silent"]], paths["real"], with_mauve=True)
    (alone, _) = evaluate.run(config, [paths["spoken"]], paths["real"], with_mauve=True)
    assert (silent.mauve.value, spoken.mauve.value) == (None, alone.mauve.value)
    assert spoken.mauve.settings["texts"] == spoken.mauve.settings["reference_texts"] == 40
    assert mauve.FEWEST == 20


def test_a_quickstart_that_has_collapsed_ends_with_its_table(tmp_path):
    real = {
        "name": "real text",
        "gen_ppl": 80.0,
        "entropy": 4.0,
        "diversity": 0.9,
        "num_texts": 8,
        "diversity_texts": 4,
    }
    rows = [real, {**real, "name": "samples", "gen_ppl": None, "entropy": 0.0}, {**real, "name": "unigram text"}]
    drawing.png(tmp_path / "comparison.png", results.comparison(rows))
    held_out = {
        "l_diff": 0.1,
        "l_diff_mean": 0.2,
        "token_accuracy": 0.5,
        "token_accuracy_clean": 0.6,
        "latent_std": 1.0,
    }
    decoder = {"name": "layers-2", "parameters": 3, "replaces": 4, "held_out": held_out}
    summary = {"texts": rows, "held_out": held_out, "decoder": decoder, "copied_8grams": {"samples": 0.0, "real": 0.0}}
    text = quickstart.summary_text(summary)
    assert "NO   perplexity at most a third of unigram text's: none against 80" in text
    assert "diversity of the first 4 texts of each" in text
    assert np.array(Image.open(tmp_path / "comparison.png")).std() > 0
