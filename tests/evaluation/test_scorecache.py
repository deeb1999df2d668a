"""The cache of scores: it changes no result, survives damage and a kill, and never stands in the way."""

import importlib.util
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ldlm.evaluation import scorecache
from ldlm.evaluation.metrics import PROTOCOLS, score
from ldlm.evaluation.scorer import Scorer

TEXTS = ["The old captain found a letter.", "rain", "", "my neighbour carried his naïve plan", "nobody lost rain"]


@pytest.fixture(scope="module")
def scorer(gpt2):
    return Scorer(str(gpt2), torch.device("cpu"))


@pytest.fixture
def passes(scorer, monkeypatch):
    """How many rows each pass of the model took."""
    seen: list[int] = []
    hook = scorer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    yield seen
    hook.remove()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_was_scored_once_is_not_scored_again_and_comes_out_the_same(scorer, passes, tmp_path, protocol):
    plain = score(TEXTS, scorer, protocol, max_tokens=16)
    with scorer.cache(tmp_path) as cache:
        first = score(TEXTS, scorer, protocol, max_tokens=16, cache=cache)
    passes.clear()
    with scorer.cache(tmp_path) as cache:
        advanced = []
        again = score(TEXTS, scorer, protocol, max_tokens=16, cache=cache, advance=advanced.append)
        assert (passes, sum(advanced)) == ([], len(TEXTS))
        more = score([*TEXTS, "a young teacher"], scorer, protocol, max_tokens=16, cache=cache)
    assert passes == [1]
    assert first.nll_T.tolist() == again.nll_T.tolist() == more.nll_T.tolist()[:-1] == plain.nll_T.tolist()


def test_protocols_share_what_they_score_alike_and_nothing_else(scorer, passes, tmp_path):
    with scorer.cache(tmp_path) as cache:
        hf = score(TEXTS, scorer, "hf", max_tokens=16, cache=cache)
        passes.clear()
        cosmos = score(TEXTS, scorer, "cosmos", max_tokens=16, cache=cache)
        assert passes == []
        mdlm = score(TEXTS, scorer, "mdlm", max_tokens=16, cache=cache)
        assert passes
    assert hf.nll_T.tolist() == cosmos.nll_T.tolist()
    assert mdlm.count_T.sum() < hf.count_T.sum()


def test_scorers_do_not_share(scorer, other_gpt2, tmp_path):
    other = Scorer(str(other_gpt2), torch.device("cpu"))
    with scorer.cache(tmp_path) as one, other.cache(tmp_path) as two:
        assert one.path != two.path
        score(TEXTS, scorer, max_tokens=16, cache=one)
        found = score(TEXTS, other, max_tokens=16, cache=two)
    assert found.nll_T.tolist() == score(TEXTS, other, max_tokens=16).nll_T.tolist()


def test_a_damaged_entry_is_scored_again(scorer, passes, tmp_path):
    with scorer.cache(tmp_path) as cache:
        expected = score(TEXTS, scorer, max_tokens=16, cache=cache).nll_T
    database = sqlite3.connect(cache.path)
    ((size,),) = database.execute("SELECT MAX(LENGTH(nll)) FROM nll")
    database.execute("UPDATE nll SET nll = ? WHERE LENGTH(nll) = ?", (bytes(size), size))
    database.commit()
    database.close()
    for rows in ([1], []):  # repaired the first time
        passes.clear()
        with scorer.cache(tmp_path) as cache:
            assert score(TEXTS, scorer, max_tokens=16, cache=cache).nll_T.tolist() == expected.tolist()
        assert passes == rows


@pytest.mark.parametrize("fault", ["no database", "a file where the folder should be", "another table"])
def test_a_cache_that_can_not_be_used_is_left_with_one_note(scorer, tmp_path, fault):
    folder = tmp_path / "scores"
    with scorer.cache(folder) as cache:
        pass
    if fault == "no database":
        cache.path.write_bytes(b"this is a text and no database" * 100)
    elif fault == "another table":
        cache.path.unlink()
        database = sqlite3.connect(cache.path)
        database.execute("CREATE TABLE nll (x)")
        database.close()
    else:
        cache.path.unlink()
        folder.rmdir()
        folder.write_text("")
    notes = []
    with scorer.cache(folder, notes.append) as cache:
        found = score(TEXTS, scorer, max_tokens=16, cache=cache)
    assert found.nll_T.tolist() == score(TEXTS, scorer, max_tokens=16).nll_T.tolist()
    (note,) = notes
    assert str(folder) in note
    assert "--no-cache" in note


def test_an_interrupted_evaluation_keeps_what_it_has(scorer, passes, tmp_path):
    def stop(count):
        if passes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), scorer.cache(tmp_path) as cache:
        score(TEXTS, scorer, max_tokens=16, batch_size=1, cache=cache, advance=stop)
    assert passes == [1]
    with scorer.cache(tmp_path) as cache:
        score(TEXTS, scorer, max_tokens=16, batch_size=1, cache=cache)
    assert len(passes) == sum(len(row) > 1 for row in scorer.tokens(TEXTS, 16))


def test_a_process_that_was_killed_in_a_write_leaves_a_cache_that_works(scorer, passes, tmp_path):
    with scorer.cache(tmp_path) as cache:
        expected = score(TEXTS, scorer, max_tokens=16, cache=cache).nll_T
    code = f"""
import os, sqlite3
database = sqlite3.connect({str(cache.path)!r})
database.execute("PRAGMA cache_size = 5")  # so that half a transaction stands in the file
database.execute("UPDATE nll SET nll = zeroblob(4), crc = 0")
database.executemany("INSERT INTO nll VALUES (?, ?, 0)", [(bytes([i]), bytes(5000)) for i in range(50)])
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert cache.path.with_name(cache.path.name + "-journal").exists()
    passes.clear()
    with scorer.cache(tmp_path) as cache:
        assert score(TEXTS, scorer, max_tokens=16, cache=cache).nll_T.tolist() == expected.tolist()
    assert passes == []


def test_two_processes_may_write_at_once(scorer, tmp_path):
    rows = [np.arange(i, i + 5, dtype=np.int32) for i in range(20)]
    with scorer.cache(tmp_path) as one, scorer.cache(tmp_path) as two:
        for place, row in enumerate(rows):
            (one, two)[place % 2].put(row, np.full(4, place, np.float32))
    with scorer.cache(tmp_path) as cache:
        assert [cache.get(row)[0] for row in rows] == list(range(20))


def test_the_oldest_third_makes_room_where_it_grows_too_large(scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(scorecache, "MOST_BYTES", 100_000)
    monkeypatch.setattr(scorecache, "WRITE_EVERY", 0.0)
    rows = [np.arange(i, i + 1_001, dtype=np.int32) for i in range(80)]
    with scorer.cache(tmp_path) as cache:
        for row in rows:
            cache.put(row, np.zeros(1_000, np.float32))
        kept = [cache.get(row) is not None for row in rows]
    assert kept[-10:] == [True] * 10
    assert not any(kept[:40])
    assert cache.path.stat().st_size < 130_000


def test_it_lies_where_the_xdg_specification_says(monkeypatch):
    specification = importlib.util.find_spec("ldlm.evaluation.scorecache")
    module = importlib.util.module_from_spec(specification)  # a fresh one: the tests' own cache lies elsewhere
    specification.loader.exec_module(module)
    monkeypatch.setenv("HOME", "/home/user")
    for value, expected in (("/caches", "/caches"), ("caches", "/home/user/.cache"), ("", "/home/user/.cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert module.folder() == Path(expected) / "ldlm" / "scores"


def test_the_command_uses_it_unless_told_not_to(succeed, gpt2, corpus, monkeypatch, tmp_path):
    cold = tmp_path / "scores"
    monkeypatch.setattr(scorecache, "folder", lambda: cold)
    arguments = ("evaluate", corpus, "--scorer", gpt2, "--max-tokens", 16)
    without = succeed(*arguments, "--no-cache")
    assert not cold.exists()
    assert succeed(*arguments) == without
    (file,) = cold.iterdir()
    database = sqlite3.connect(file)
    ((count,),) = database.execute("SELECT COUNT(*) FROM nll")
    database.close()
    lines = corpus.read_text(encoding="utf-8").splitlines()
    assert count == len({tuple(row) for row in Scorer(str(gpt2), torch.device("cpu")).tokens(lines, 16)})
    assert succeed(*arguments) == without
    assert Path(file).name.startswith(without["scorer_revision"].replace(":", "-")[:40])
