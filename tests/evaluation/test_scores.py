"""Scores as dataclasses and as JSON."""

import json
import statistics
from dataclasses import replace

import pytest

from ldlm.evaluation.scores import FileScores, Mauve, SetScores, over_seeds


@pytest.fixture
def drawn(scores):
    """Scores of a file with this perplexity."""
    return lambda gen_ppl, mauve=None: FileScores(
        file="a.jsonl", role="texts", scores=replace(scores, gen_ppl=gen_ppl), mauve=mauve
    )


def test_scores_survive_their_json(scores):
    assert SetScores(**json.loads(json.dumps(scores.to_json()))) == scores
    assert scores.pick("entropy", "intervals") == {"entropy": 4.0, "intervals": scores.intervals}


def test_scores_of_a_file_are_on_one_level(scores, drawn):
    found = drawn(20.0, Mauve(0.9, {"seed": 25})).to_json()
    assert found == {
        **scores.to_json(), "file": "a.jsonl", "role": "texts", "mauve": 0.9, "mauve_settings": {"seed": 25},
    }  # fmt: skip
    assert "mauve" not in drawn(20.0).to_json()


def test_the_spread_over_seeds_is_of_the_files_that_have_a_figure_and_not_of_the_reference(scores, drawn):
    reference = FileScores(file="real.jsonl", role="reference", scores=scores)
    found = over_seeds([drawn(10.0), drawn(None), drawn(14.0), reference])
    assert (found.files, found.texts_each) == (3, 8)
    spread = found.figures["gen_ppl"]
    assert (spread.mean, spread.std, spread.files) == (12.0, pytest.approx(statistics.stdev([10, 14])), 2)
    assert found.to_json()["entropy"] == {"mean": 4.0, "std": 0.0, "files": 3}
    assert over_seeds([drawn(None), drawn(14.0)]).figures["gen_ppl"].std is None
    assert over_seeds([drawn(10.0, Mauve(0.9, {})), drawn(14.0, Mauve(None, {}))]).figures["mauve"].files == 1
