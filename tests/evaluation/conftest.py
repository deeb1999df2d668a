"""Scores of a set of texts, as `measure` returns them."""

import pytest

from ldlm.evaluation.scores import SetScores


@pytest.fixture
def scores() -> SetScores:
    """Made-up scores of eight texts."""
    return SetScores(
        gen_ppl=20.0,
        entropy=4.0,
        diversity=0.5,
        diversity_texts=8,
        intervals={"gen_ppl": [19.0, 21.0], "entropy": [3.9, 4.1]},
        bootstrap={"level": 0.95, "resamples": 100, "seed": 0},
        protocol="mdlm",
        boundaries="eos",
        boundary_tokens=["[SEP]"],
        clean_up=None,
        scorer="gpt2-large",
        scorer_revision="commit:abc",
        scorer_tokenizer="abc",
        dtype="float32",
        num_texts=8,
        texts_scored=8,
        tokens=100,
        tokens_scored=92,
        tokens_from="file",
        max_tokens=16,
        seeds=[0, 7],
    )
