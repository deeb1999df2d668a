"""The benchmark of speed runs from end to end at the smallest sizes; its figures are nobody's claim here."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from patience import patience

from ldlm import config
from ldlm.config import ModelConfig, Shapes

CPU = torch.device("cpu")


@pytest.fixture
def speed(monkeypatch):
    from benchmarks import machine, speed

    small = {
        "seconds": 0.0,
        "texts": 2,
        "steps": 2,
        "fewer_steps": 2,
        "rows": 2,
        "lengths": (16, 32),
        "batches": (1, 2),
    }
    scale = replace(speed.SCALES["cpu"], **small, encoder_layers=1, stored=64)
    monkeypatch.setitem(speed.SCALES, "cpu", scale)
    monkeypatch.setattr(machine, "COPY_BYTES", 2**16)
    monkeypatch.setattr(machine, "FILE_BYTES", 2**16)
    return speed


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of torch's about its own tracing
@pytest.mark.slow
def test_every_part_is_measured_beside_the_plain_way_and_as_a_share_of_the_limit(speed, tmp_path):
    figures = speed.run(tmp_path)
    names = [row["name"].partition(",")[0] for row in figures["rows"]]
    ways = 4 if shutil.which("c++") else 2
    assert names == ["sampling"] * ways + ["training"] * 2 * ways + ["decoding", "extraction", "streaming"]
    for row in figures["rows"]:
        assert row["seconds"] > 0 and row["plain_seconds"] > 0
        assert math.isfinite(row["share"])
    assert [row["length"] for row in figures["attention_growth"]] == [16, 32]
    assert [(row["texts"], row["length"]) for row in figures["growth"]] == [(1, 16), (1, 32), (1, 64), (2, 64)]
    text = speed.report(figures)
    for part in ("limits of this cpu", "training, online, bf16", "vocabulary", "texts"):
        assert part in text


def test_the_plain_attention_is_softmax_attention_and_leaves_nothing_behind(speed):
    from torch.nn import functional

    from ldlm.model import autoencoder, layers

    q, k, v = (torch.randn(2, length, 3, 4) for length in (5, 7, 7))
    fused, torchs = layers.attention, functional.scaled_dot_product_attention
    with speed.plain_attention():
        assert layers.attention is not fused and functional.scaled_dot_product_attention is not torchs
        for plain in (layers.attention, autoencoder.attention):
            torch.testing.assert_close(plain(q, k, v), fused(q, k, v))
    assert (layers.attention, autoencoder.attention) == (fused, fused)
    assert functional.scaled_dot_product_attention is torchs


def test_a_call_that_was_held_up_changes_no_timing_and_kinds_count_by_their_share(monkeypatch):
    from benchmarks import machine

    calls = iter([0.0, 0.03, 0.01, 0.01, 0.5, 0.03, 0.03, 0.03, 0.01])  # the first doesn't count; one is held up
    kinds, now = [True, False, False, True, True, True, True, False], 0.0

    def work():
        nonlocal now
        now += next(calls)

    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=lambda: now))
    found = machine.timed(work, CPU, 0, warm=1, kinds=kinds)
    assert found.median == pytest.approx((5 * 0.03 + 3 * 0.01) / 8)
    assert found.mean == pytest.approx((4 * 0.03 + 3 * 0.01 + 0.5) / 8)


def test_a_share_is_of_the_most_that_the_machine_was_seen_to_do():
    from benchmarks.machine import Limits, Share, settled

    slow, fast = Limits({"fp32": 50.0, "bf16": 300.0}, 1.0, 4.0), Limits({"fp32": 100.0, "bf16": 200.0}, 2.0, 3.0)
    best = slow.best(fast)
    assert best == Limits({"fp32": 100.0, "bf16": 300.0}, 2.0, 4.0)
    figures = {"rows": [{"a": Share(60.0, "bf16"), "b": 7}, {"a": Share(1.0, "read")}], "c": Share(25.0, "fp32")}
    assert settled(figures, best) == {"rows": [{"a": 0.2, "b": 7}, {"a": 0.25}], "c": 0.25}


def test_peak_memory_is_what_a_block_takes_and_gives_back():
    from benchmarks.machine import peak_memory

    with peak_memory(CPU) as peak:
        bytes(bytearray(b"1") * 2**26)
    if peak.bytes is None:
        pytest.skip("this kernel does not say")
    assert 2**26 <= peak.bytes < 2**28


def test_the_flops_of_decoding_are_counted_by_hand():
    from benchmarks.speed import decoder_flops

    shapes = Shapes(seq_len=8, hidden_dim=32, vocab_size=50)
    model = config.from_dict(
        ModelConfig,
        {
            "autoencoder": {"layers": 1, "width": 32, "heads": 2},
            "token_decoder": {"layers": 1, "heads": 2},
        },
    )
    d, length = 32, 8
    # D_h: q, k and v of inputs and latents, output, attention over [inputs; latents], MLP; D_w: qkv, output, SwiGLU
    resampler = length * (2 * d * d + 2 * 2 * d * d + 2 * 2 * length * d + 8 * d * d)
    block = length * (4 * d * d + 2 * length * d + 12 * d * d)
    assert decoder_flops(model, shapes) == 2 * (resampler + block + length * d * 50)


def test_it_needs_neither_zarr_nor_what_reads_stores():
    """On a machine with torch, numpy, scipy, safetensors, transformers and click alone."""
    absent = ["zarr", "numcodecs", "google_crc32c", "datasets", "matplotlib", "obstore", "xformers"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); "
        "from benchmarks import speed; import runpy; sys.argv = ['benchmarks', 'store']; "
        "runpy.run_module('benchmarks', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("store: skipped, ")


def test_busy_processes_end_after_a_parent_that_is_killed():
    program = "import sys; from benchmarks.loaded import busy\nwith busy(1): print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        start_new_session=True,
    ) as parent:
        try:
            assert parent.stdout is not None
            parent.stdout.readline()
            parent.kill()
            parent.communicate(timeout=patience())  # until the busy one ends, which has the same output
        finally:
            with suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_step_is_timed_alone_and_beside_other_work_for_every_way_to_wait(monkeypatch):
    from benchmarks import loaded

    monkeypatch.setattr(loaded, "TURNS", 1)
    rows = loaded.rows(0.0)
    assert [row["waiting"] for row in rows] == list(loaded.WAYS)
    assert all(row["idle"] > row["loaded"] > 0 for row in rows)
    assert "as the commands" in loaded.report(rows)
