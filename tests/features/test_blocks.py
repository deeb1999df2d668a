"""Blocks of states: what crosses from the encoder's device to the host, and when."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock

import numpy as np
import pytest
import torch

from ldlm.errors import InputError
from ldlm.features import blocks, codecs, spool
from ldlm.features.begin import prepare
from ldlm.features.blocks import Blocks, one_ahead
from ldlm.features.codecs import CODECS
from ldlm.features.shared_work import Tally
from ldlm.progress import SILENT


@pytest.fixture
def crossed(monkeypatch):
    """Bytes that have been brought to the host, by data type."""
    found = Counter()

    def noted(tensor, really=blocks.fetch):
        found[tensor.dtype] += tensor.nbytes
        return really(tensor)

    for module in (blocks, codecs):
        monkeypatch.setattr(module, "fetch", noted)
    return found


@pytest.mark.parametrize("sample", [None, 1])
@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8-token"])
def test_only_what_is_stored_crosses_to_the_host(few, tmp_path, crossed, codec, sample):
    """With statistics of all rows, and of one block, where most rows are encoded when they are stored."""
    config = replace(few, codec=codec, stats_tokens=sample, max_channel_error=1.0)
    extraction, result = prepare(config, tmp_path / "f")
    assert extraction.pack()
    values = {split: rows * config.seq_len * 16 for split, rows in extraction.rows.items()}
    in_blocks = sum(-(-rows // config.batch_size) for rows in extraction.rows.values())
    extraction.encode_sample()
    sampled = len(extraction.sample())
    whole = sampled > 1
    spooled = 4 * values["train"] if whole else 4 * config.batch_size * config.seq_len * 16
    assert crossed == {torch.float32: spooled + 4 * sampled}  # and a number per block, which says that it is finite
    extraction.describe()
    crossed.clear()
    extraction.write_shards()
    encoded = in_blocks - sampled
    dtype = {"fp16": torch.float16, "bf16": torch.uint16, "int8-token": torch.int8}[codec]
    scales = sum(values.values()) // 16 * 4 if codec == "int8-token" else 0
    assert crossed == {
        dtype: sum(values.values()) * dtype.itemsize,
        torch.float32: 4 * (in_blocks + encoded) + scales,
    }
    extraction.seal(result)


def test_threads_that_take_turns_spool_each_block_s_own_states(few, tmp_path, monkeypatch):
    extraction, _ = prepare(few, tmp_path / "f")
    assert extraction.pack()
    everything = extraction.sample()
    expected = [extraction._blocks.encoded_raw("train", block)().copy() for block in everything]
    checksum, turn = spool._checksum, Lock()

    def slowly(values):
        time.sleep(0.005)  # as a slow disk: the other thread's turn comes meanwhile
        return checksum(values)

    monkeypatch.setattr(spool, "_checksum", slowly)
    tally = Tally(SILENT, "", dict.fromkeys(everything, 0), set)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda block: extraction.share_blocks([block], tally, turn), everything))
    monkeypatch.undo()
    for block, states in zip(everything, expected, strict=True):
        assert np.array_equal(extraction.spool.read(block, states.shape), states), block


def test_a_block_is_begun_before_the_one_before_it_is_waited_for():
    happened = []

    def begin(number):
        happened.append(f"begin {number}")
        return lambda: happened.append(f"wait {number}") or number

    assert list(one_ahead(begin(number) for number in range(3))) == [0, 1, 2]
    assert happened == ["begin 0", "begin 1", "wait 0", "begin 2", "wait 1", "wait 2"]
    assert list(one_ahead([])) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_states_that_are_not_finite_are_refused_by_their_rows(few, tmp_path, bad):
    extraction, _ = prepare(few, tmp_path / "f")
    extraction.pack()
    really = extraction.encoder

    class Broken:
        name, device, hidden_dim = really.name, really.device, really.hidden_dim

        def __call__(self, tokens_BL):
            states = really(tokens_BL)
            states[3, 5, 7] = bad
            return states

    made = Blocks(few.batch_size, extraction.tokens, Broken(), extraction.spool)
    zeros, ones, codec = torch.zeros(16), torch.ones(16), CODECS["fp32"]
    for begun in (made.raw("train", 2), made.stored("validation", 0, zeros, ones, codec)):
        with pytest.raises(InputError, match=r"not finite from row (16 of train|0 of validation) on; use --precision"):
            begun()
