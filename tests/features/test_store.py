"""The feature store: plain Zarr for any reader, and never zeros in place of what is missing."""

import errno
import json
import os
import resource
import shutil
from dataclasses import replace

import google_crc32c
import numpy as np
import pytest
import torch
import zarr

from ldlm.artifact import begin
from ldlm.config import ExtractConfig, Shapes, TrainConfig
from ldlm.errors import InputError, Unreadable
from ldlm.features import codecs, shards
from ldlm.features.codecs import CODECS
from ldlm.features.shards import ShardedArray
from ldlm.features.store import FeatureStore
from ldlm.features.writer import StoreWriter
from ldlm.stages import extract_features

WIDTH, LENGTH = 16, 16


@pytest.fixture(scope="module")
def fp16_store(extract_config, tmp_path_factory):
    """The same text in half precision and without held-out rows."""
    config = replace(extract_config, codec="fp16", validation_docs=0, shard_rows=160, batch_size=32)
    return extract_features.run(config, tmp_path_factory.mktemp("fp16") / "features").path


def test_plain_zarr_reads_the_names_shapes_and_types_that_others_rely_on(store):
    group = zarr.open_group(store / "features.zarr", mode="r")
    rows = json.loads((store / "manifest.json").read_text())["rows"]
    assert set(group) == {"hidden", "tokens", "mean", "std", "validation"}
    assert set(group["validation"]) == {"hidden", "tokens"}
    for split, found in (("train", group), ("validation", group["validation"])):
        assert (found["hidden"].shape, found["hidden"].dtype) == ((rows[split], LENGTH, WIDTH), np.float32)
        assert (found["tokens"].shape, found["tokens"].dtype) == ((rows[split], LENGTH), np.int32)
    for name in ("mean", "std"):
        assert (group[name].shape, group[name].dtype) == ((WIDTH,), np.float32)
    assert group.metadata.zarr_format == 3


def test_a_store_without_held_out_rows_has_no_validation_group(fp16_store):
    group = zarr.open_group(fp16_store / "features.zarr", mode="r")
    assert set(group) == {"hidden", "tokens", "mean", "std"}
    assert group["hidden"].dtype == np.float16
    opened = FeatureStore(fp16_store)
    with pytest.raises(InputError, match="has no validation rows; extract with --validation-docs"):
        opened.split("validation")
    assert opened.held_out().name == "train"


def test_half_precision_is_single_precision_rounded(store, fp16_store):
    single, half = (FeatureStore(path) for path in (store, fp16_store))
    tokens = half.split("train").tokens[:]
    assert tokens[: single.split("train").rows - 1].tolist() == single.split("train").tokens[:-1].tolist()
    (mean_1, std_1), (mean_2, std_2) = single.statistics(), half.statistics()
    rows = single.split("train").rows - 1
    raw_1 = single.split("train").hidden[:rows] * std_1 + mean_1
    normalised = half.split("train").hidden[:rows].astype(np.float32)
    # half a unit in the last place of fp16 (2^-11), times the spread
    tolerance = std_2 * (2.0**-11 * np.abs(normalised) + 1e-6)
    assert (np.abs(normalised * std_2 + mean_2 - raw_1) <= tolerance).all()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_rows_in_any_order_equal_direct_indexing(store, split):
    found = FeatureStore(store).split(split)
    hidden, tokens = found.hidden[:], found.tokens[:]
    random = np.random.default_rng(0)
    picks = [
        random.permutation(found.rows),
        random.integers(0, found.rows, 50),  # with repetitions
        np.array([found.rows - 1]),
        np.array([17, 0, 16, 15]),  # chunks of 16 rows, and gaps between them
        np.arange(found.rows)[::-3],
    ]
    for rows in picks:
        parts, got_tokens = found.read_rows(rows)
        assert np.array_equal(parts["hidden"], hidden[rows])
        assert np.array_equal(got_tokens, tokens[rows])
    assert np.array_equal(found.read(3, 20)[0]["hidden"], hidden[3:20])
    assert np.array_equal(found.read(3, 20)[1], tokens[3:20])


PAYLOAD = [
    "features.zarr/hidden/c/0/0/0",
    "features.zarr/hidden/c/5/0/0",
    "features.zarr/tokens/c/2/0",
    "features.zarr/validation/hidden/c/0/0/0",
    "features.zarr/validation/tokens/c/0/0",
]


@pytest.mark.parametrize("name", PAYLOAD)
@pytest.mark.parametrize("damage", ["missing", "emptied", "truncated", "longer"])
def test_a_shard_that_is_not_as_it_was_written_is_noticed_at_open(store_copy, name, damage):
    path = store_copy / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"emptied": b"", "truncated": content[:-1], "longer": content + b"\0"}[damage])
    with pytest.raises(InputError) as error:
        FeatureStore(store_copy)
    assert name in str(error.value)
    assert "ldlm features repair" in str(error.value)


def test_zarr_itself_would_have_returned_zeros(store_copy):
    (store_copy / PAYLOAD[0]).unlink()
    assert not zarr.open_group(store_copy / "features.zarr", mode="r")["hidden"][:16].any()


@pytest.mark.parametrize(
    "name",
    [
        "ledger/train-00001.json",
        "ledger/validation-00000.json",
        "features.zarr/zarr.json",
        "features.zarr/hidden/zarr.json",
        "features.zarr/tokens/zarr.json",
        "features.zarr/validation/zarr.json",
        "features.zarr/validation/hidden/zarr.json",
        "features.zarr/mean/zarr.json",
        "features.zarr/mean/c/0",
        "features.zarr/std/c/0",
        "artifact.json",
    ],
)
def test_a_missing_record_or_description_is_noticed_at_open(store_copy, name):
    (store_copy / name).unlink()
    with pytest.raises(InputError):
        FeatureStore(store_copy)


def test_changed_statistics_are_noticed_at_open(store_copy):
    zarr.open_group(store_copy / "features.zarr", mode="r+")["std"][3] = 2.0
    with pytest.raises(InputError, match=r"std/c/0 has other bytes than were written"):
        FeatureStore(store_copy)


def test_a_flipped_bit_inside_a_shard_is_an_error_and_not_data(store_copy):
    path = store_copy / PAYLOAD[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    split = FeatureStore(store_copy).split("train")
    with pytest.raises(ValueError, match=r"(?i)checksum"):
        split.hidden[:80]


def test_a_shard_that_the_system_can_not_read_is_named_in_one_line(store, monkeypatch):
    def pread(descriptor, length, start):
        raise OSError(errno.EIO, "Input/output error")

    split = FeatureStore(store).split("train")
    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(Unreadable, match=r"hidden/c/0/0/0 can't be read \(Input/output error\); see to the disk"):
        split.arrays["hidden"].read(np.arange(1))


def test_a_store_that_is_not_sealed_is_refused(store_copy):
    (store_copy / "manifest.json").unlink()
    with pytest.raises(
        InputError,
        match=r"not sealed: 0 of \d+ shards .* are missing; run the same `ldlm extract-features` command again",
    ):
        FeatureStore(store_copy)


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_rows_of_zeros_are_written_like_any_others(tmp_path, first):
    begin(tmp_path / "s", "features", ExtractConfig(), {})
    shapes = Shapes(seq_len=8, hidden_dim=4, vocab_size=10)
    writer = StoreWriter(
        tmp_path / "s", shapes, codec=CODECS["fp32"], compression="zstd", shard_rows=32, with_hidden=True
    )
    writer.create({"train": 32}, np.zeros(4), np.ones(4))
    hidden, tokens = np.zeros((32, 8, 4), np.float32), np.zeros((32, 8), np.int32)
    hidden[:16], tokens[:16] = first, first
    assert not writer.done("train", 0)
    writer.write("train", 0, {"hidden": hidden}, tokens, {})
    assert writer.done("train", 0)
    shards = [tmp_path / "s" / "features.zarr" / name for name in ("hidden/c/0/0/0", "tokens/c/0/0")]
    for shard in shards:
        # A shard ends with (place, length) of its two chunks, all ones for one that is absent, and a checksum.
        assert np.frombuffer(shard.read_bytes()[-36:-4], np.uint64).max() < 2**63
    record = json.loads(writer.record_path("train", 0).read_text())
    assert (record["rows"], record["start"], len(record["files"])) == (32, 0, 2)


@pytest.fixture(
    params=[
        (201, 501, "zstd"),
        (128, 384, "zstd"),
        (128, 384, "none"),
        (201, 501, "none"),
        (5, 3, "zstd"),
        (201, 501, "blosc"),
        (128, 384, "blosc"),
        (5, 3, "blosc"),
    ]
)
def written(request, tmp_path):
    """(store, hidden, tokens): random rows in two shards, the last one short; longer and wider than a chunk, or not."""
    length, width, compression = request.param
    random = np.random.default_rng(0)
    hidden = random.standard_normal((40, length, width)).astype(np.float16)
    tokens = random.integers(0, 99, (40, length), dtype=np.int32)
    begin(tmp_path / "s", "features", ExtractConfig(), {})
    shapes = Shapes(seq_len=length, hidden_dim=width, vocab_size=99)
    writer = StoreWriter(
        tmp_path / "s", shapes, codec=CODECS["fp16"], compression=compression, shard_rows=32, with_hidden=True
    )
    writer.create({"train": 40}, np.zeros(width), np.ones(width))
    for shard in range(writer.shards(40)):
        rows = slice(32 * shard, min(40, 32 * shard + 32))
        writer.write("train", shard, {"hidden": hidden[rows]}, tokens[rows], {})
    return tmp_path / "s", hidden, tokens


@pytest.mark.parametrize(
    ("length", "width", "chunk"),
    [
        (128, 768, (16, 128, 384)),  # the paper's
        (1024, 768, (16, 128, 384)),
        (16, 1024, (16, 16, 342)),
        (16, 1600, (16, 16, 320)),
        (130, 400, (16, 65, 200)),
        (129, 385, (16, 65, 193)),
    ],
)
def test_a_shard_is_whole_chunks_with_next_to_nothing_beyond_the_array(tmp_path, length, width, chunk):
    shapes = Shapes(seq_len=length, hidden_dim=width, vocab_size=99)
    writer = StoreWriter(
        tmp_path / "s", shapes, codec=CODECS["fp16"], compression="none", shard_rows=16, with_hidden=True
    )
    writer.create({"train": 16}, np.zeros(width), np.ones(width))
    hidden, tokens = np.ones((16, length, width), np.float16), np.ones((16, length), np.int32)
    writer.write("train", 0, {"hidden": hidden}, tokens, {})
    array = zarr.open_group(tmp_path / "s" / "features.zarr", mode="r")["hidden"]
    assert array.chunks == chunk
    (shard,) = (tmp_path / "s/features.zarr/hidden/c").rglob("0/0/0")
    assert shard.stat().st_size < 1.02 * hidden.nbytes


def test_zarr_reads_what_was_written(written):
    path, hidden, tokens = written
    group = zarr.open_group(path / "features.zarr", mode="r")
    assert np.array_equal(group["hidden"][:], hidden)
    assert np.array_equal(group["tokens"][:], tokens)


def test_tensorstore_reads_what_was_written(written):
    """A reader that shares no code with zarr-python; it verifies the checksums as well."""
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore is in the extra `test`")
    path, hidden, tokens = written
    for name, expected in (("hidden", hidden), ("tokens", tokens)):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "features.zarr" / name)}}
        assert np.array_equal(tensorstore.open(spec).result().read().result(), expected)


def test_zarrs_reads_what_was_written(written):
    """The pipeline in Rust, in place of zarr-python's."""
    pytest.importorskip("zarrs", reason="zarrs is in the extra `test`")
    path, hidden, tokens = written
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        group = zarr.open_group(path / "features.zarr", mode="r")
        assert np.array_equal(group["hidden"][:], hidden)
        assert np.array_equal(group["tokens"][:], tokens)


def test_the_stream_s_own_reader_reads_what_was_written_in_any_order(written):
    path, hidden, tokens = written
    group = zarr.open_group(path / "features.zarr", mode="r")
    for name, expected in (("hidden", hidden), ("tokens", tokens)):
        array = ShardedArray(path / "features.zarr" / name, group[name].metadata.to_dict(), {})
        for rows in ([0], [39], [38, 1, 17, 16], [5, 5, 4], list(range(40)), list(range(39, -1, -1))):
            assert np.array_equal(array.read(np.array(rows)), expected[rows])
            into = np.zeros((41, *expected.shape[1:]), expected.dtype)
            assert np.shares_memory(array.read(np.array(rows), into), into)
            assert np.array_equal(into[: len(rows)], expected[rows])


def test_a_window_may_be_of_more_shards_than_a_process_may_have_open_files(store, monkeypatch):
    monkeypatch.setattr(shards, "CORES", 1)
    split = FeatureStore(store).split("train")
    spare = 3
    assert split.rows // split.shard_rows * len(split.arrays) > spare
    free = os.dup(0)  # the lowest number that no file has
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, limits[1]))
    try:
        found = split.read(0, split.rows)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert np.array_equal(found[1], split.read(0, split.rows)[1])


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "gone", "absent chunk"])
def test_the_stream_s_own_reader_never_returns_what_was_not_written(written, damage):
    path = written[0]
    group = zarr.open_group(path / "features.zarr", mode="r")
    array = ShardedArray(path / "features.zarr" / "hidden", group["hidden"].metadata.to_dict(), {})
    shard = path / "features.zarr/hidden/c/0/0/0"
    data = bytearray(shard.read_bytes())
    if damage == "flipped":
        data[len(data) // 3] ^= 4
    elif damage == "absent chunk":
        # The last entry of the index as zarr writes it for a chunk that is all fill value, with the right checksum.
        count = int(np.prod(array.grid)) * 16
        data[-20:-4] = b"\xff" * 16
        data[-4:] = google_crc32c.value(bytes(data[-count - 4 : -4])).to_bytes(4, "little")
    shard.write_bytes({"short": data[: len(data) // 2], "empty": b""}.get(damage, data))
    if damage == "gone":
        shard.unlink()
    with pytest.raises(InputError, match="repair"):
        array.read(np.array([3, 16]))


def encode(h, codec):
    return codecs.encode(torch.from_numpy(h), codec)[0]()


def test_states_that_do_not_fit_their_storage_are_refused():
    fine = np.array([[[1.0, -65504.0]]], np.float32)
    assert encode(fine, CODECS["fp16"])["hidden"].dtype == np.float16
    for bad in (7e4, -7e4):
        with pytest.raises(InputError, match=r"don't fit in fp16; use --overwrite --codec bf16, or fp32"):
            encode(np.array([[[1.0, bad]]], np.float32), CODECS["fp16"])
    for name in ("fp32", "bf16", "int8-token"):
        encode(np.array([[[7e4]]], np.float32), CODECS[name])


def test_a_fingerprint_is_of_the_rows_and_not_of_the_place(store, store_copy, fp16_store):
    assert FeatureStore(store_copy).fingerprint == FeatureStore(store).fingerprint
    assert FeatureStore(fp16_store).fingerprint != FeatureStore(store).fingerprint


def test_the_fingerprint_of_a_store_without_states_tells_its_rows_apart(extract_config, tmp_path):
    """With states, their statistics do."""
    for name, count in (("a", 40), ("b", 50), ("held-out", 20)):
        lines = [{"text": f"{name} says {i} words", "other": f"{i} other words of {name}"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    a, b, held_out = (str(tmp_path / f"{name}.jsonl") for name in ("a", "b", "held-out"))
    plain = replace(extract_config, kind="scratch", data=(a, b), validation_data=(held_out,), validation_docs=0)
    ways = {
        "plain": plain,
        "order": replace(plain, data=(b, a)),
        "column": replace(plain, text_column="other"),
        "detokenizer": replace(plain, detokenizer="lm1b"),
        "held out": replace(plain, data=(held_out, b), validation_data=(a,)),
        "larger shards": replace(plain, shard_rows=2 * plain.shard_rows),
    }
    found = {}
    for name, config in ways.items():
        extract_features.run(config, tmp_path / name)
        found[name] = FeatureStore(tmp_path / name).fingerprint
    assert found.pop("larger shards") == found["plain"]
    assert len(set(found.values())) == len(found)
    moved = FeatureStore(tmp_path.joinpath("plain").rename(tmp_path / "moved"))
    assert moved.fingerprint == found["plain"] != moved.fingerprint.before

    out = tmp_path / "run"  # of a version that recorded what was before
    begin(out, "run", TrainConfig(), {"features": str(moved.fingerprint.before)})
    assert begin(out, "run", TrainConfig(), {"features": moved.fingerprint}).state == "partial"
    with pytest.raises(InputError, match=r"inputs\.features"):
        begin(out, "run", TrainConfig(), {"features": "0" * 64})


def test_a_store_carries_its_tokenizer(store, gpt2, tmp_path):
    from ldlm.features.encoder import tokenizer_fingerprint
    from ldlm.hub import load_tokenizer

    moved = shutil.copytree(FeatureStore(store).tokenizer_path, tmp_path / "tokenizer")
    assert tokenizer_fingerprint(load_tokenizer(str(moved))) == tokenizer_fingerprint(load_tokenizer(str(gpt2)))
