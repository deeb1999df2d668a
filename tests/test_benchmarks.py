"""The benchmarks run from end to end, on a few rows; their figures are nobody's claim here."""

import importlib.util
import math
from dataclasses import replace

import pytest

from ldlm.features import builtin_text


@pytest.fixture
def store(gpt2, monkeypatch):
    """The benchmark of the store, with a tiny encoder and as few rows as the readers take."""
    from benchmarks import store

    small = {
        "SEQ_LEN": 16,
        "BLOCK": 8,
        "ROWS": 96,
        "SHARD_ROWS": 48,
        "MEMORY_SHARD_ROWS": 16,
        "SECONDS": 0.02,
        "TURNS": 1,
    }
    small |= {"STEPS": 1, "STORED": (("fp16", "none"), ("fp16", "zstd"))}
    for name, value in small.items():
        monkeypatch.setattr(store, name, value)
    monkeypatch.setattr(store, "_minilm", lambda: gpt2)
    return store


@pytest.mark.slow
def test_the_store_s_benchmark_runs_and_says_what_it_left_out(store, tmp_path, monkeypatch):
    """But for peak memory, which takes processes of its own."""
    monkeypatch.setattr(store, "_memory", lambda base, folder: {"1x": 2**20, "10x": 4 * 2**20})
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "zarrs" else real(name))
    figures = store.run(tmp_path)
    assert [row["codec"] for row in figures["codecs"]] == ["fp16, uncompressed", "fp16, zstd-1"]
    values = [
        *(figures["extraction"][size]["ratio"] for size in ("small", "large")),
        *(row["ratio"] for row in figures["codecs"]),
    ]
    assert all(math.isfinite(value) and value > 0 for value in values)
    assert all(0 <= share <= 1 for shares in figures["waiting"].values() for share in shares.values())
    text = store.report(figures)
    assert "1 MiB, with ten times the text 4 MiB (+3)" in text
    assert text.count("zarrs skipped") == 2
    assert "of the bare forward pass on this cpu" in text
    assert "statistics over a sample: " in text


@pytest.mark.slow
def test_peak_memory_is_that_of_more_shards_than_are_in_memory_at_a_time(store, few, few_lines, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(few_lines.read_text(encoding="utf-8") * 8, encoding="utf-8")
    peaks = store._memory(replace(few, data=(str(text),)), tmp_path)
    assert peaks.keys() == {"1x", "10x"}
    for times in (1, 10):
        assert len(list((tmp_path / f"memory-{times}" / "ledger").iterdir())) >= 3 * times


def test_the_store_s_benchmark_is_skipped_without_its_encoder(store, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_minilm", lambda: None)
    monkeypatch.setattr(builtin_text, "documents", lambda: pytest.fail("nothing is made"))
    assert "skipped, the encoder is in the package" in store.report(store.run(tmp_path))
