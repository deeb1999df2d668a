"""Compression of a store: what each costs, and stores that were begun with another than today's default."""

from dataclasses import replace

import numpy as np
import pytest
import zarr

from ldlm.artifact import begin
from ldlm.config import ExtractConfig, LaunchConfig, Shapes
from ldlm.errors import InputError
from ldlm.features.codecs import CODECS
from ldlm.features.writer import StoreWriter
from ldlm.stages import extract_features

ROWS, LENGTH, WIDTH = 32, 128, 384


@pytest.fixture
def config(tmp_path, gpt2):
    (tmp_path / "a.txt").write_text("\n".join(f"line {i} of the text, which is short" for i in range(300)))
    return ExtractConfig(
        encoder=str(gpt2), data=(str(tmp_path / "a.txt"),), seq_len=16, shard_rows=64, precision="fp32", device="cpu"
    )


def arrays(folder):
    """The bytes of every file of the arrays of a store."""
    paths = (path for path in (folder / "features.zarr").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("phases", [("pack",), ("pack", "encode")])
def test_a_store_that_was_begun_with_zstd_goes_on_with_it(config, tmp_path, notes, phases):
    earlier = replace(config, compression="zstd")
    whole = extract_features.run(earlier, tmp_path / "whole")
    for phase in phases:
        extract_features.run(earlier, tmp_path / "half", launch=LaunchConfig(only=phase))
    for record in sorted((tmp_path / "half" / "ledger").glob("*.json"))[1:]:
        record.unlink()
    made = extract_features.run(config, tmp_path / "half", progress=notes)
    assert made.complete
    assert arrays(made.path) == arrays(whole.path)
    assert any("was begun with zstd" in note for note in notes.lines)


def test_a_complete_store_of_zstd_is_complete_for_the_same_command(config, succeed, tmp_path):
    whole = extract_features.run(replace(config, compression="zstd"), tmp_path / "s")
    before = arrays(whole.path)
    assert extract_features.run(config, whole.path).complete
    next(path for path in (whole.path / "features.zarr/hidden/c").rglob("0") if path.is_file()).unlink()
    succeed("features", "repair", whole.path, "--device", "cpu")
    assert arrays(whole.path) == before


def test_other_compressions_are_other_settings(config, tmp_path):
    extract_features.run(config, tmp_path / "s")
    with pytest.raises(InputError, match="compression: blosc -> zstd"):
        extract_features.run(replace(config, compression="zstd"), tmp_path / "s")


@pytest.mark.parametrize(("codec", "less"), [("fp16", 0.94), ("bf16", 0.92), ("fp32", 0.9), ("int8-token", 1.001)])
def test_sorted_bytes_take_less_room_and_come_back_to_the_bit(tmp_path, codec, less):
    random = np.random.default_rng(0)
    tokens = random.integers(0, 99, (ROWS, LENGTH), dtype=np.int32)
    half = random.standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float16)
    hidden = {  # as the codec stores it
        "fp16": half,
        "bf16": (half.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16),
        "fp32": half.astype(np.float32),
        "int8-token": random.integers(-127, 128, half.shape).astype(np.int8),
    }[codec]
    parts = {"hidden": hidden}
    if codec == "int8-token":
        parts["scale"] = random.random((ROWS, LENGTH)).astype(np.float32)
    bytes_of = {}
    for compression in ("zstd", "blosc"):
        path = tmp_path / compression
        begin(path, "features", ExtractConfig(), {})
        shapes = Shapes(seq_len=LENGTH, hidden_dim=WIDTH, vocab_size=99)
        writer = StoreWriter(path, shapes, CODECS[codec], compression, shard_rows=ROWS, with_hidden=True)
        writer.create({"train": ROWS}, np.zeros(WIDTH), np.ones(WIDTH))
        bytes_of[compression] = writer.write("train", 0, parts, tokens, {})
        group = zarr.open_group(path / "features.zarr", mode="r")
        for name, rows in {"tokens": tokens, **parts}.items():
            assert np.array_equal(group[name][:], rows)
    assert bytes_of["blosc"] < less * bytes_of["zstd"]
