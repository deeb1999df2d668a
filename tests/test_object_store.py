"""A feature store in an object store: moto's S3 server on loopback, and a proxy before it that fails requests."""

import threading
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from patience import patience

from ldlm import artifact, files, location
from ldlm.errors import InputError, StorageError
from ldlm.features import digests, extraction, shards
from ldlm.features.begin import prepare
from ldlm.features.extraction import Extraction
from ldlm.features.store import FeatureStore
from ldlm.features.stream import Stream
from ldlm.features.writer import StoreWriter
from ldlm.leases import Leases
from ldlm.location import Bucket, ObjectPath, locate
from ldlm.stages import extract_features, features, train


def payload(place):
    """Everything in a store but its configuration, by name."""
    found = {}
    for path in place.rglob("*"):
        if isinstance(path, ObjectPath) or path.is_file():
            found[path.relative_to(place).as_posix()] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def few(few):
    """With fewer, larger shards: a request to moto takes its time."""
    return replace(few, shard_rows=32)


@pytest.fixture(scope="module")
def local(few, tmp_path_factory):
    return extract_features.run(few, tmp_path_factory.mktemp("local") / "features").path


def test_a_store_in_s3_has_the_bytes_of_a_local_one_and_trains_the_same(few, local, bucket, tmp_path):
    place = locate(f"{bucket}/some/features")
    assert extract_features.run(few, place).complete
    assert payload(place) == payload(local)
    assert list((tmp_path / "cache" / "ldlm").rglob("states-*")) == []
    assert features.verify(place) == []
    for name in ("train", "validation"):
        remote, here = (FeatureStore(p).split(name) for p in (f"{bucket}/some/features", local))
        rows = np.random.default_rng(0).permutation(remote.rows)
        (parts_1, tokens_1), (parts_2, tokens_2) = remote.read_rows(rows), here.read_rows(rows)
        assert np.array_equal(tokens_1, tokens_2)
        assert np.array_equal(parts_1["hidden"], parts_2["hidden"])
        assert np.array_equal(remote.hidden[:], here.hidden[:])


def test_held_out_rows_of_a_store_in_s3_become_texts(few, local, bucket, tmp_path):
    made = extract_features.run(few, locate(f"{bucket}/features")).path
    there = features.texts(made, 2, tmp_path / "there.jsonl")
    assert there.read_bytes() == features.texts(local, 2, tmp_path / "here.jsonl").read_bytes()


def test_training_streams_from_s3(few, local, bucket, train_config, tmp_path):
    place = locate(f"{bucket}/features")
    extract_features.run(few, place)
    runs = [train.run(train_config, store, tmp_path / name) for store, name in ((place, "a"), (local, "b"))]
    held_out = [run.manifest["held_out"] for run in runs]
    assert held_out[0] == held_out[1]


def test_chunks_are_asked_for_several_at_a_time_and_indices_once(few, local, bucket, proxy, monkeypatch):
    """The service answers only once three are asked for: with fewer in flight it would not, with more it would say."""
    monkeypatch.setattr(shards, "REQUESTS", 3)
    monkeypatch.setattr(shards, "TOGETHER_BYTES", 1)  # a chunk for each
    longer = replace(few, data=few.data * 3, shard_rows=64)
    extract_features.run(longer, locate(f"{bucket}/features"))
    split = FeatureStore(f"{bucket}/features").split("train")
    chunks = split.rows // shards.CHUNK_ROWS // 3 * 3
    assert chunks >= 6
    rows = np.arange(chunks * shards.CHUNK_ROWS)
    proxy.seen.clear()
    first = split.load(rows)["hidden"]
    asked = [(path, part) for method, path, part in proxy.seen if method == "GET" and "/hidden/c/" in path]
    assert len(asked) == len(set(asked)) == chunks + -(-len(rows) // 64)  # and an index of each shard
    assert not [path for method, path, _ in proxy.seen if method == "HEAD"]
    proxy.together = threading.Barrier(3)
    assert np.array_equal(split.load(rows)["hidden"], first)
    assert proxy.most == 3


def test_a_replaced_store_is_noticed_by_one_small_request_a_window(few, bucket, proxy):
    place = locate(f"{bucket}/features")
    extract_features.run(few, place)
    split = FeatureStore(place).split("train")
    asked, cpu = {"batch_size": 8, "seed": 0, "shuffle_rows": 16}, torch.device("cpu")
    proxy.seen.clear()
    with Stream(split, **asked, device=cpu) as stream:
        for _ in range(6):  # in the third window
            next(iter(stream))
    descriptions = [method for method, path, _ in proxy.seen if path.endswith("features/store.json")]
    assert 3 <= len(descriptions) <= 3 + 3  # and those that are read ahead
    assert set(descriptions) == {"GET"}
    with Stream(split, **asked, device=cpu) as stream:
        next(iter(stream))
        extract_features.run(replace(few, codec="fp32"), place, overwrite=True)
        with pytest.raises(InputError, match="was replaced while it was read"):
            for _ in range(20):
                next(iter(stream))


@pytest.mark.parametrize(("most", "near", "requests"), [(2**22, 2**16, 1), (2**22, 1, 2), (1, 2**16, 3)])
def test_small_chunks_that_lie_near_each_other_come_by_one_request(
    few, local, bucket, proxy, monkeypatch, most, near, requests
):
    """Chunks 0, 1 and 3 of a shard: together, but for the third where a gap is too much, or each alone."""
    monkeypatch.setattr(shards, "TOGETHER_BYTES", most)
    monkeypatch.setattr(shards, "NEAR_BYTES", near)
    place = locate(f"{bucket}/features")
    extract_features.run(replace(few, shard_rows=64), place)
    there, here = FeatureStore(place).split("train"), FeatureStore(local).split("train")
    rows = np.array([50, 17, 3, 16, 55])
    there.load(rows)  # the indices
    proxy.seen.clear()
    proxy.together = threading.Barrier(2 * requests)  # states and tokens at once
    (found, tokens), (expected, expected_tokens) = there.read_rows(rows), here.read_rows(rows)
    for kind in ("hidden", "tokens"):
        assert sum(f"/{kind}/c/" in path for _, path, _ in proxy.seen) == requests
    assert np.array_equal(tokens, expected_tokens)
    assert np.array_equal(found["hidden"], expected["hidden"])


def test_server_errors_and_resets_are_ridden_out(few, local, bucket, proxy):
    proxy.chance = 0.2
    place = locate(f"{bucket}/features")
    assert extract_features.run(few, place).complete
    assert features.verify(place) == []
    assert proxy.failed > 10
    proxy.chance = 0.0
    assert payload(place) == payload(local)


def test_a_server_that_stays_down_fails_clearly_and_the_same_command_goes_on(few, local, bucket, proxy, notes):
    class Down(type(notes)):
        """Takes the server down once a shard is written."""

        def task(self, name, total, unit, done=0):
            made = super().task(name, total, unit, done)
            made.advance = lambda count, **figures: self.count(name)
            return made

        def count(self, name):
            proxy.chance = float(name == "encode" and any((place / "ledger").glob("*.json")))

    place = locate(f"{bucket}/features")
    with pytest.raises(StorageError, match=r"s3://.* failed, with up to 6 retries .* run the same command again"):
        extract_features.run(few, place, progress=Down())
    proxy.chance = 0.0
    assert 1 <= len(list((place / "ledger").glob("*.json"))) < len(list((local / "ledger").iterdir()))
    with pytest.raises(InputError, match=r"is not sealed: .* shards .* are missing"):
        FeatureStore(place)
    assert extract_features.run(few, place).complete
    assert payload(place) == payload(local)


@pytest.mark.parametrize("once", [False, True])
def test_a_request_that_is_reset_after_a_long_time_is_made_again(bucket, proxy, monkeypatch, once):
    """A large shard on a slow line: the time for retries begins with the failure."""
    monkeypatch.setattr(location, "RETRY_SECONDS", 0.2)
    proxy.hang = 0.8
    place = locate(f"{bucket}/shard")
    assert place.write_bytes(b"x" * 1000, once=once)
    assert place.read_bytes() == b"x" * 1000
    assert sum(method == "PUT" for method, _, _ in proxy.seen) == 2


def test_a_shard_that_one_request_can_not_take_is_refused_before_anything_is_written(few, bucket):
    place = locate(f"{bucket}/features")
    with pytest.raises(InputError, match=r"--shard-rows 16777216 makes files of 8.0 GiB.* use at most 10485760"):
        extract_features.run(replace(few, shard_rows=2**24), place)
    assert list(place.rglob("*")) == []


def test_a_store_is_opened_with_one_request_per_record_and_hashed_in_parts(few, bucket, proxy, monkeypatch):
    place = locate(f"{bucket}/features")
    extract_features.run(few, place)
    proxy.seen.clear()
    records = FeatureStore(place).records
    for name in records:
        assert [method for method, path, _ in proxy.seen if path.endswith(f"{name}.json")] == ["GET"]
    monkeypatch.setattr(files, "PART", 1000)
    proxy.seen.clear()
    assert features.verify(place) == []
    chunk, size = "features.zarr/hidden/c/0/0/0", (place / "features.zarr/hidden/c/0/0/0").size()
    ranges = [part for method, path, part in proxy.seen if path.endswith(chunk) and method == "GET"]
    assert ranges == [f"bytes={at}-{min(at + 1000, size) - 1}" for at in range(0, size, 1000)]
    assert len(ranges) > 1


def test_damage_in_s3_is_found_and_mended(few, local, bucket):
    place = locate(f"{bucket}/features")
    extract_features.run(few, place)
    chunk = place / "features.zarr/hidden/c/0/0/0"
    data, split = bytearray(chunk.read_bytes()), FeatureStore(place).split("train")
    chunk.write_bytes(bytes(data[:100]))  # while it is open: opening it compares the sizes
    with pytest.raises(InputError, match=r"is damaged: it has 100 bytes, and .* were written; run `ldlm features rep"):
        split.read(0, 1)
    data[100] ^= 1
    chunk.write_bytes(bytes(data))
    (place / "features.zarr/tokens/c/1/0").unlink()
    assert [(f["shard"], f["problem"]) for f in features.verify(place)] == [
        ("train-00000", "has other bytes than were written"),
        ("train-00001", "is missing"),
    ]
    with pytest.raises(InputError, match=r"shard train-00001: .* is missing; run `ldlm features repair"):
        FeatureStore(place)
    bad, _ = features.repair(place, device="cpu")
    assert bad == ["train-00000", "train-00001"]
    assert payload(place) == payload(local)


def test_machines_without_a_common_disk_share_the_work_by_rank(start, few, local, bucket, tmp_path, monkeypatch):
    """Each in a cache of its own, at the same time; whoever is last seals."""
    place = locate(f"{bucket}/features")
    turns = {}
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        extraction = Extraction(few, place, tmp_path, None, None, {}, None)
        turns[rank] = extraction._in_turn(list(range(5)))
    assert turns == {0: [0, 1, 4, 3, 2], 1: [2, 3, 4, 1, 0]}

    environments = [
        {"RANK": str(rank), "WORLD_SIZE": "2", "XDG_CACHE_HOME": str(tmp_path / f"machine-{rank}")} for rank in (0, 1)
    ]
    arguments = ["extract-features"]
    for name in ("encoder", "seq_len", "validation_docs", "shard_rows", "batch_size", "codec", "device"):
        arguments += [f"--{name.replace('_', '-')}", str(getattr(few, name))]
    arguments += ["--data", *few.data]
    workers = [start(arguments, place, environment=environment) for environment in environments]
    assert [worker.wait(timeout=patience()) for worker in workers] == [0, 0]
    assert payload(place) == payload(local)


def test_of_two_machines_that_make_a_shard_differently_the_first_counts(few, bucket):
    """Another processor may round otherwise: the ledger tells what stands there, whoever's it is."""
    place = locate(f"{bucket}/features")
    extraction, _ = prepare(few, place)
    extraction.pack()
    extraction.encode_sample()
    extraction.describe()
    tokens = extraction._shard_tokens("train", 0)
    states = np.zeros((*tokens.shape, 16), np.float16)
    encoder = files.read_json(place / "store.json")["encoder"]
    maker = {"encoder": encoder["fingerprint"], "statistics": encoder["statistics"]}
    for other in (0, 1):
        facts = {**maker, "versions": f"of machine {other}"}
        extraction.writer.write("train", 0, {"hidden": states + np.float16(other)}, tokens, facts)
    assert [fault["file"] for fault in features.verify(place)] == ["manifest.json"]
    record = files.read_json(place / "ledger" / "train-00000.json")
    assert record["versions"] == "of machine 0"
    stored = (place / "features.zarr" / "hidden" / "c/0/0/0").read_bytes()
    assert files.sha256(stored) == record["files"]["features.zarr/hidden/c/0/0/0"]["sha256"]
    assert FeatureStore(place, allow_partial=True).split("train").read(0, 1)[0]["hidden"].max() == 0


def test_a_machine_that_comes_late_changes_nothing_that_is_sealed(few, local, bucket, tmp_path, monkeypatch):
    """It has other versions of the libraries, and had begun before the others sealed the store."""
    place = locate(f"{bucket}/features")
    late, _ = prepare(few, place)
    late.pack(), late.encode_sample()
    rows = payload(late.packing.folder)  # which the others remove
    extract_features.run(few, place)
    before = payload(place)
    for name, data in rows.items():
        (late.packing.folder / name).write_bytes(data)
    monkeypatch.setattr(extraction, "library_versions", lambda: {"zarr": "another"})
    monkeypatch.setattr(ObjectPath, "is_file", lambda self: False)  # as when it looked
    monkeypatch.setattr(StoreWriter, "recorded", lambda self: set())
    late.tokenizer.add_tokens(["captain"])
    late.describe(), late.write_shards()
    monkeypatch.undo()
    late.clear()
    assert payload(place) == before
    FeatureStore(place)


def test_shards_that_are_done_cost_one_listing_and_not_a_request_each(few, bucket, proxy, monkeypatch):
    place = locate(f"{bucket}/features")
    extract_features.run(few, place)
    (place / "manifest.json").unlink()
    (place / "ledger" / "train-00000.json").unlink()
    asked, real = [], proxy.forward
    monkeypatch.setattr(proxy, "do_HEAD", lambda self: asked.append(self.path) or real(self))
    extract_features.run(few, place)
    assert {path.rpartition("/")[2] for path in asked if "/ledger/" in path} == {"train-00000.json"}


def test_another_configuration_is_refused_and_overwrite_replaces(few, bucket):
    place = locate(f"{bucket}/features")
    extract_features.run(few, place)
    other = replace(few, layer=-2)
    with pytest.raises(InputError, match="was made with other settings"):
        extract_features.run(other, place)
    extract_features.run(other, place, overwrite=True)
    assert artifact.open_artifact(place, "features").config["layer"] == -2


def test_a_prefix_that_is_refused_is_unchanged(few, bucket, tmp_path, monkeypatch):
    """Nor do the hashes of the text come there, which machines share while a store is made."""
    monkeypatch.setattr(digests, "LEAST", 1)
    monkeypatch.setattr(digests, "SETTLED", 0.0)
    foreign, sealed, begun = (locate(f"{bucket}/{name}") for name in ("foreign", "sealed", "begun"))
    (foreign / "photo.jpg").write_bytes(b"a photo")
    files.write_json(sealed / "artifact.json", {"kind": "features", "schema": artifact.SCHEMA, "inputs": {}})
    (sealed / "manifest.json").write_bytes(b"{}")
    before = payload(foreign), payload(sealed)
    with pytest.raises(InputError, match="is not empty and not made by ldlm"):
        prepare(few, foreign)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    with pytest.raises(InputError, match="was made with other settings"):
        prepare(few, sealed)
    assert (payload(foreign), payload(sealed)) == before
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "yet another"))
    prepare(few, begun)
    assert any(name.startswith("claims/digests/") for name in begun.sizes())


@pytest.mark.parametrize("where", ["objects", "folder"])
def test_a_process_that_wakes_after_its_store_was_replaced_removes_nothing_of_it(few, bucket, tmp_path, where):
    """It had sealed the store, and was stopped before it removed what a sealed store does not need."""
    place = locate(f"{bucket}/features") if where == "objects" else tmp_path / "features"
    late, _ = prepare(few, place)
    with ExitStack() as held:
        prepare(replace(few, layer=-2), place, overwrite=True, held=held)
        with Leases(place / "claims", None).turn("train-0"):
            before = files.sizes(place)
            assert sum(name.startswith("claims/") and name.endswith(".lease") for name in before) == 2
            late.clear()
            assert files.sizes(place) == before


def test_objects_that_another_process_removes_too_keep_no_others(tmp_path):
    """Some services say that an object is missing, and leave the others of the request. Here it is a folder."""
    LocalStore = pytest.importorskip("obstore.store", reason="obstore is in the extra `object-stores`").LocalStore
    place = ObjectPath(type("Folder", (Bucket,), {"store": LocalStore(str(tmp_path))})("s3://folder"), "features")
    for number in range(40):
        (place / f"{number:02d}").write_bytes(b"")

    def still():
        for name in list(place.sizes())[::2]:
            (place / name).unlink(missing_ok=True)  # as another process does meanwhile
        return True

    place.unlink_below(still)
    assert place.sizes() == {}
    (place / "0").write_bytes(b"")
    place.unlink_below(lambda: False)
    assert place.sizes() == {"0": 0}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("ftp://host/features", "ftp is not among the object stores s3, gs, az"),
        ("s3://bucket", "must name a bucket and a prefix in it"),
        ("s3:///x", "must name a bucket and a prefix in it"),
    ],
)
def test_places_that_are_none(where, message):
    with pytest.raises(InputError, match=message):
        locate(where)


def test_a_bucket_that_is_not_there_is_one_clear_line(few, proxy):
    with pytest.raises(StorageError, match="s3://no-such-bucket-here/features"):
        extract_features.run(few, locate("s3://no-such-bucket-here/features"))
