"""MAUVE: against `mauve-text` itself with its own featuriser, and what is said where it can't be computed."""

import sys

import numpy as np
import pytest
import torch

from ldlm.errors import InputError
from ldlm.evaluation import mauve
from ldlm.evaluation.scorer import Scorer


@pytest.fixture
def library():
    return pytest.importorskip("mauve", reason="the extra ldlm[mauve] is not installed")


@pytest.fixture
def halves(corpus, tmp_path):
    """Two files of 60 texts, which share none."""
    lines = corpus.read_text(encoding="utf-8").splitlines()
    for name, part in (("p.txt", lines[::2]), ("q.txt", lines[1::2])):
        (tmp_path / name).write_text("\n".join(part) + "\n", encoding="utf-8")
    return tmp_path / "p.txt", tmp_path / "q.txt"


def features(seed, shift=0.0, texts=60):
    return (np.random.default_rng(seed).normal(size=(texts, 8)) + shift).astype(np.float32)


# With the library


@pytest.mark.filterwarnings("ignore")  # its own
def test_it_is_what_the_library_finds_with_its_own_featuriser_and_defaults(library, succeed, halves, gpt2):
    p, q = halves
    texts, reference = (path.read_text(encoding="utf-8").splitlines() for path in halves)
    expected = library.compute_mauve(
        p_text=texts, q_text=reference, featurize_model_name=str(gpt2), max_text_length=16, device_id=-1
    )
    found = succeed("evaluate", p, "--reference", q, "--mauve", "--scorer", gpt2, "--max-tokens", 16)
    assert found["mauve"] == pytest.approx(expected.mauve, abs=1e-6)
    assert 0 < found["mauve"] < 1
    assert "mauve" not in found["reference"]
    settings = found["mauve_settings"]
    assert (settings["num_buckets"], settings["texts"], settings["reference_texts"]) == (6, 60, 60)
    assert (settings["mauve_scaling_factor"], settings["kmeans_explained_var"], settings["seed"]) == (5, 0.9, 25)
    assert (settings["kmeans_max_iter"], settings["kmeans_num_redo"]) == (500, 5)
    assert (settings["model"], settings["max_tokens"]) == (str(gpt2), 16)


def test_another_model_than_the_scorer_may_make_the_features(library, succeed, halves, gpt2, other_gpt2):
    arguments = (*halves[:1], "--reference", halves[1], "--mauve", "--scorer", gpt2, "--max-tokens", 16)
    one, other = succeed("evaluate", *arguments), succeed("evaluate", *arguments, "--mauve-model", other_gpt2)
    assert one["gen_ppl"] == other["gen_ppl"]
    assert one["mauve"] != other["mauve"]
    assert other["mauve_settings"]["model"] == str(other_gpt2)


def test_it_is_1_for_the_same_texts_and_falls_with_distance(library):
    same, near, far = (
        mauve.score(features(0), features(seed, shift)).value for seed, shift in ((0, 0), (1, 0), (2, 2))
    )
    assert same == pytest.approx(1)
    assert same > near > far
    assert far < 0.1


def test_features_that_were_made_elsewhere(library, succeed, tmp_path):
    np.save(tmp_path / "p.npy", features(0))
    np.save(tmp_path / "q.npy", features(1, 0.5))
    found = succeed("evaluate", "--features-p", tmp_path / "p.npy", "--features-q", tmp_path / "q.npy")
    assert found["mauve"] == mauve.score(features(0), features(1, 0.5)).value


# Features


def test_a_text_stands_for_the_state_above_its_last_token_whatever_the_batch(gpt2):
    scorer = Scorer(str(gpt2), torch.device("cpu"))
    rows = scorer.tokens(["The old captain found a letter.", "rain", "my neighbour carried his naïve plan"], 16)
    assert len({len(row) for row in rows}) == 3
    together = scorer.last_states(rows, batch_size=3)
    for row, state in zip(rows, together, strict=True):
        outputs = scorer.model(torch.tensor([row.tolist()]), output_hidden_states=True)
        assert state == pytest.approx(outputs.hidden_states[-1][0, -1].numpy(), abs=1e-5)
    assert together.shape == (3, 16)


# Without it


def test_the_package_that_is_absent_is_named(refuse, halves, gpt2, monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    line = refuse("evaluate", *halves, "--mauve", "--reference", halves[1], "--scorer", gpt2)
    assert "needs the package mauve-text, which is not installed; pip install 'ldlm[mauve]'" in line


@pytest.mark.parametrize(("module", "package"), [("faiss", "faiss-cpu"), ("sklearn", "scikit-learn")])
def test_what_the_package_lacks_is_named_before_anything_is_scored(
    refuse, halves, gpt2, monkeypatch, tmp_path, module, package
):
    (tmp_path / "mauve.py").write_text(f"import {module}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mauve", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    line = refuse("evaluate", halves[0], "--mauve", "--reference", halves[1], "--scorer", gpt2)
    assert f"MAUVE needs the package {package}, which is not installed" in line


def test_nothing_of_it_is_imported_where_it_is_not_asked_for(succeed, halves, gpt2, monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    assert "mauve" not in succeed("evaluate", halves[0], "--scorer", gpt2, "--max-tokens", 16)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A package of that name, so that what is checked before it runs can be seen without it."""
    (tmp_path / "mauve.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mauve", raising=False)


def test_it_needs_a_reference(refuse, halves, gpt2, installed):
    assert "give some with --reference FILE" in refuse("evaluate", halves[0], "--mauve", "--scorer", gpt2)


def test_few_texts_and_equal_ones_are_refused():
    with pytest.raises(InputError, match="needs at least 20 texts on each side, and the reference are 19"):
        mauve.score(features(0), features(1)[:19])
    with pytest.raises(InputError, match="all features are alike"):
        mauve.score(np.ones((30, 4)), np.ones((30, 4)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"", "is no plain .npy file"),
        (b"1.0 2.0\n", "is no plain .npy file"),
        (np.array([{"a": 1}], dtype=object), "is no plain .npy file"),
        ({"p": features(0)}, "is no plain .npy file"),  # an archive
        (np.zeros(8, np.float32), "one array of floats of shape (texts, width)"),
        (np.zeros((30, 8), np.int64), "one array of floats of shape (texts, width)"),
        (np.full((30, 8), np.nan), "holds NaN or infinity"),
        (np.zeros((30, 7)), "features of width 7 and"),
    ],
)
def test_features_that_can_not_be_used_are_named(refuse, tmp_path, installed, content, message):
    path = tmp_path / "p.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path.with_suffix(".npz"), **content)
        path.with_suffix(".npz").rename(path)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    np.save(tmp_path / "q.npy", features(0))
    line = refuse("evaluate", "--features-p", path, "--features-q", tmp_path / "q.npy")
    assert message in line
    assert str(path) in line


def test_features_of_one_side_or_beside_texts_are_refused(refuse, halves, tmp_path):
    np.save(tmp_path / "p.npy", features(0))
    for arguments in (("--features-p", tmp_path / "p.npy"), (halves[0], "--features-q", tmp_path / "p.npy")):
        assert "takes --features-p FILE.npy and --features-q FILE.npy" in refuse("evaluate", *arguments)
