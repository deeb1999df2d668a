"""The benchmarks run from end to end, on a few rows; their figures are nobody's claim here."""

import importlib.util
import math
import re
from dataclasses import replace

import pytest
import torch

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
    small |= {"STEPS": 1, "STORED": (("fp16", "none"), ("fp16", "blosc"))}
    for name, value in small.items():
        monkeypatch.setattr(store, name, value)
    monkeypatch.setattr(store, "minilm", lambda: gpt2)
    return store


@pytest.mark.slow
def test_the_store_s_benchmark_runs_and_says_what_it_left_out(store, tmp_path, monkeypatch):
    """But for peak memory, which takes processes of its own."""
    monkeypatch.setattr(store, "_memory", lambda base, folder: {"1x": 2**20, "10x": 4 * 2**20})
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "zarrs" else real(name))
    figures = store.run(tmp_path)
    assert [row["codec"] for row in figures["codecs"]] == ["fp16, uncompressed", "fp16, blosc"]
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
    monkeypatch.setattr(store, "minilm", lambda: None)
    monkeypatch.setattr(builtin_text, "documents", lambda: pytest.fail("nothing is made"))
    assert "skipped, the encoder is in the package" in store.report(store.run(tmp_path))


@pytest.mark.slow
def test_extractions_by_one_process_and_two_are_compared(gpt2, tmp_path, monkeypatch):
    from benchmarks import workers

    for name, value in {"ROWS": 400, "SEQ_LEN": 16, "SHARD_ROWS": 32, "minilm": lambda: gpt2}.items():
        monkeypatch.setattr(workers, name, value)
    figures = workers.run(tmp_path)
    assert figures["equal"] is True
    assert figures["workers"].keys() == {"1", "2"}
    assert "bytes of all files equal: yes" in workers.report(figures)


@pytest.mark.slow
def test_the_benchmark_of_streaming_runs(gpt2, tmp_path, monkeypatch):
    pytest.importorskip("obstore", reason="obstore is in the extra `object-stores`")
    pytest.importorskip("moto.server", reason="moto is in the extra `test`")
    from benchmarks import streaming

    small = {"ROWS": 64, "SEQ_LEN": 16, "BLOCK": 8, "SHARD_ROWS": 16, "SECONDS": 0.05, "TURNS": 1}
    for name, value in {**small, "WAITS": (0.01, 0.02), "minilm": lambda: gpt2}.items():
        monkeypatch.setattr(streaming, name, value)
    figures = streaming.run(tmp_path)
    assert figures["ratios"].keys() == {"0.01", "0.02"}
    assert all(rate > 0 for rate in figures["bytes_per_second"].values())
    assert re.search(r"^20 ms +\d", streaming.report(figures), re.MULTILINE)


@pytest.mark.slow
def test_the_plans_are_those_of_dry_runs(tmp_path, monkeypatch):
    from benchmarks import packing, plans

    for name, value in {"BYTES": 20_000, "SEQ_LEN": 16, "LAYERS": 4, "WIDTH": 16, "HEADS": 2}.items():
        monkeypatch.setattr(plans, name, value)
    monkeypatch.setattr(packing, "VOCABULARY", 400)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")  # so that it is as it was afterwards
    figures = plans.run(tmp_path)
    assert len(figures["plans"]) == 8
    first, last = figures["plans"][0], figures["plans"][-1]
    assert first["bytes"]["fp16"] == 9_000_000_000 * (2 * 16 + 4)
    assert first["hours"]["100000"] > 9e9 / 1e5 / 3600
    assert last["hours"]["100000"] > 250e9 / 1e5 / 3600 / 512
    packing_rate, here = figures["packing_tokens_per_second"], figures["tokens_per_second"]
    for plan in figures["plans"]:  # the tokenizer is measured once, so that all rows of the table imply the same
        for rate in (100_000, here):
            encoding = plan["tokens"] * -(-plan["shards"] // plan["workers"]) / plan["shards"] / rate
            spent = 3600 * plan["hours"][str(rate)] - encoding
            assert spent * plan["workers"] == pytest.approx(plan["tokens"] / packing_rate, rel=1e-3)
    text = plans.report(figures)
    assert f"a machine's cores tokenise {round(packing_rate):,} tokens per second" in text
    assert "each worker is taken to have a machine's cores" in text
    assert re.search(r"^OpenWebText +9,000,000,000 ", text, re.MULTILINE)
    assert text.count("250e9 tokens") == 5


@pytest.mark.slow
def test_the_benchmark_of_packing_runs(tmp_path, monkeypatch):
    from benchmarks import packing

    for name, value in {"BYTES": 20_000, "PIECE": 4_000, "VOCABULARY": 400, "SEQ_LEN": 16, "TURNS": 1}.items():
        monkeypatch.setattr(packing, name, value)
    for name in ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS"):
        monkeypatch.setenv(name, "2")  # so that both are as they were afterwards
    figures = packing.run(tmp_path)
    assert figures["workers"].keys() == {1, 2}
    assert all(one["ratio"] > 0 and one["tokens_per_second"] > 0 for one in figures["workers"].values())
    assert figures["turns"][0]["1"]["result"] == figures["turns"][0]["2"]["result"] > 1_000
    assert "packing by 2 processes" in packing.report(figures)


@pytest.mark.slow
def test_the_benchmark_of_the_window_runs(tmp_path, monkeypatch):
    from benchmarks import packing, window

    small = {"FULL_ROWS": 20_000, "CHARACTERS": 30_000, "EVERY": 3, "EXCERPT": 2**12}
    for name, value in {**small, "BATCH": 8, "BATCHES": 2, "STEPS": 1}.items():
        monkeypatch.setattr(window, name, value)
    figures = window.run(tmp_path)
    assert all(figures["gradient"][kind]["fully shuffled"] == 1 for kind in window.KINDS)
    assert figures["text"] == packing.prose_name()
    assert "fully shuffled" in window.report(figures)
    assert f"rows of {figures['text']}, windows of as many batches" in window.report(figures)


def test_neighbours_and_variance_are_what_a_closed_form_says():
    from benchmarks import window

    whole = window.neighbours(window._windowed(10_240, 512, 512))
    assert whole == {"neighbours": 15.0, "blocks": 32.0}  # a window is one batch, of whole blocks
    shuffled = window.neighbours(window._shuffled(10_240, 512))
    assert shuffled["neighbours"] == pytest.approx(15 * 511 / 10_239, rel=0.2)
    vectors = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert window._variance(vectors) == pytest.approx(float(vectors.var(0).sum()))
