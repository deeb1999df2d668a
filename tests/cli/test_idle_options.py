"""An option that would change nothing in the way a command is used is refused, with its flag and the remedy."""

import numpy as np
import pytest


@pytest.fixture
def features(tmp_path):
    """Features of texts and of a reference, as arguments of `evaluate`."""
    for name in "pq":
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).normal(size=(30, 4)))
    return ("evaluate", "--features-p", tmp_path / "p.npy", "--features-q", tmp_path / "q.npy")


@pytest.mark.parametrize(
    "idle",
    [
        ("--reference", "nosuch.jsonl"),
        ("--mauve",),
        ("--seeds",),
        ("--training", "nosuch"),
        ("--dry-run",),
        ("--source", "stories"),
        ("--scorer", "nosuch"),
        ("--protocol", "hf"),
        ("--max-tokens", 8),
        ("--mauve-model", "nosuch"),
    ],
)
def test_mauve_of_features_takes_nothing_that_is_for_texts(refuse, features, idle):
    assert refuse(*features, *idle) == (
        f"--features-p and --features-q give the MAUVE of features, and {idle[0]} is for texts; leave {idle[0]} out"
    )


def test_a_model_for_mauve_needs_mauve(refuse, corpus):
    assert refuse("evaluate", corpus, "--mauve-model", "nosuch").startswith(
        "--mauve-model chooses the model of --mauve; add --mauve"
    )


@pytest.mark.parametrize("idle", [("--overwrite",), ("--allow-partial",), ("--seed", 3)])
def test_a_path_between_given_texts_takes_nothing_that_is_for_pairs(refuse, idle):
    line = refuse("interpolate", "--run", "nosuch", "--from", "a", "--to", "b", *idle)
    assert line.startswith(f"{idle[0]} is for pairs of held-out texts")


def test_the_size_of_a_vocabulary_beside_a_tokenizer_is_its_own(refuse, succeed, gpt2, corpus):
    command = ("pretrain-encoder", "--data", corpus, "--tokenizer", gpt2, "--dry-run", "--vocab-size")
    assert refuse(*command, 999) == (
        f"--vocab-size 999 is for a tokenizer that is trained, and {gpt2} has 320 tokens; leave --vocab-size out"
    )
    assert succeed(*command, 320)["vocab_size"] == 320


def test_the_list_of_the_papers_tables_takes_no_other_name(refuse):
    assert refuse("paper", "list", "table-99") == "list shows all tables and figures; leave table-99 out"
