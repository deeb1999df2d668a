"""The seal of a store: a process that is stopped while it seals leaves the store alone that has replaced its own.

It is stopped past its leases, on a node that sees no lock of others, and goes on once another process has begun anew in
the same place. Here both are in one process; `blind_nodes` has them as processes of their own.
"""

import errno
import json
import os
import shutil
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import forked
import pytest

from ldlm import artifact, files, presence
from ldlm.completion import is_complete
from ldlm.errors import InputError, StorageError
from ldlm.features import ledger, pieces
from ldlm.features.begin import joined, prepare
from ldlm.features.packing import Packing
from ldlm.features.sealing import Seal
from ldlm.features.spool import Spool
from ldlm.features.store import FeatureStore
from ldlm.location import Bucket, ObjectPath
from ldlm.stages import extract_features, features


@pytest.fixture(scope="module")
def other(few):
    """What the store is begun anew with."""
    return replace(few, layer=-2)


@pytest.fixture(scope="module")
def reference(few, other, tmp_path_factory):
    """The files of the stores that nothing disturbed, by layer."""
    folder = tmp_path_factory.mktemp("undisturbed")
    made = [extract_features.run(config, folder / str(config.layer)) for config in (few, other)]
    return {config.layer: payload(one.path) for config, one in zip((few, other), made, strict=True)}


def few_lines(config):
    return [line for path in config.data for line in Path(path).read_text(encoding="utf-8").splitlines()]


def payload(place):
    """Every file of a store but leases, by name."""
    return {name: path.read_bytes() for path, name in files.below(place) if not name.startswith("claims/")}


@pytest.fixture(params=["folder", "objects"])
def place(request, tmp_path, monkeypatch):
    """Where the store is, for processes that see no lock of each other."""
    for lock in ("exclusive_lock", "shared_lock"):
        monkeypatch.setattr(presence, lock, lambda folder, *, wait=False: nullcontext())
    if request.param == "folder":
        return tmp_path / "features"
    obstore = pytest.importorskip("obstore.store", reason="obstore is in the extra `object-stores`")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = obstore.MemoryStore()
    bucket = type("Memory", (Bucket,), {"store": memory, "below": lambda self, key: obstore.PrefixStore(memory, key)})
    return ObjectPath(bucket("memory://bucket"), "features")


def ready(config, place, held):
    """A process that has made every shard of a store, and its artefact."""
    made, result = prepare(config, place, held=held)
    made.pack(), made.encode_sample(), made.describe(), made.write_shards()
    return made, result


def begun_anew(config, place, held):
    """The process that overwrites a store whose processes count as dead; the second shard is under way."""
    for lease in files.matching(place / "claims", "*.lease"):
        lease.unlink()
    made, result = prepare(config, place, overwrite=True, held=held)
    made.pack(), made.encode_sample(), made.describe()
    for name in ("features.zarr/tokens/c/1/0", "features.zarr/.4-00.tmp", "features.zarr/tokens/c/9/0"):
        files.write_atomic(place / name, b"of the new store")
    return made, result


class Stop:
    """Has something happen before the first call of a function, while the process that calls it is stopped."""

    def __init__(self, monkeypatch, owner, name, happens, when=lambda *given: True):
        self.happened, real = False, getattr(owner, name)

        def call(*given, **options):
            if not self.happened and when(*given):
                self.happened = True
                happens()
            return real(*given, **options)

        monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("point", [(pieces, "documents"), (Spool, "write")], ids=["tokens", "states"])
def test_what_a_stopped_process_still_writes_is_not_taken_by_the_store_that_replaced_its_own(
    few, other, place, tmp_path, monkeypatch, point
):
    """A piece of another text, or a block of another layer's states, under the same number."""
    text = tmp_path / "other.txt"
    text.write_text("\n".join(reversed(few_lines(few))) + "\n", encoding="utf-8")
    other = replace(other, data=(str(text),))
    whole = payload(extract_features.run(other, tmp_path / "whole").path)
    with ExitStack() as first, ExitStack() as second:
        late, _ = prepare(few, place, held=first)

        def replaced():
            for lease in files.matching(place / "claims", "*.lease"):
                lease.unlink()
            seen["made"] = made, _ = prepare(other, place, overwrite=True, held=second)
            if point[0] is Spool:
                made.pack()

        seen, stop = {}, Stop(monkeypatch, *point, replaced)
        with suppress(StorageError), late.unless_sealed():
            late.pack(), late.encode_sample()
        assert stop.happened
        made, result = seen["made"]
        made.pack(), made.encode_sample(), made.describe(), made.write_shards()
        assert made.seal(result).complete
    assert payload(place) == whole


POINTS = {"sweep": (ledger, "sweep"), "fsync": (files, "fsync_tree"), "rows": (Packing, "remove")}


@pytest.mark.parametrize("point", POINTS)
def test_a_process_that_was_stopped_while_it_sealed_leaves_the_store_that_replaced_its_own(
    few, other, reference, place, monkeypatch, point
):
    with ExitStack() as first, ExitStack() as second:
        late, result = ready(few, place, first)
        seen = {}

        def replaced():
            seen["made"] = begun_anew(other, place, second)
            seen["before"] = payload(place)

        stop = Stop(monkeypatch, *POINTS[point], replaced)
        with suppress(StorageError):
            late.seal(result)
            assert point == "rows"  # before, it is not said to be sealed
        assert stop.happened
        assert payload(place) == seen["before"]
        made, result = seen["made"]
        made.write_shards(), made.make_missing(second)
        assert made.seal(result).complete
    assert payload(place) == reference[other.layer]


def at_the_manifest(monkeypatch, place, happens, links=True):
    """Have something happen between the last look before the manifest is put and the put."""
    if isinstance(place, ObjectPath):
        put = lambda self, operation, key, *rest: operation == "put" and key.endswith("/manifest.json")  # noqa: E731
        return Stop(monkeypatch, Bucket, "call", happens, put)
    return Stop(
        monkeypatch,
        os,
        "link" if links else "replace",
        happens,
        lambda source, target: str(target).endswith("/manifest.json"),
    )


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("place", ["folder"], indirect=True)
def test_a_folder_that_was_begun_anew_gets_no_manifest_of_the_store_before(
    few, other, reference, place, monkeypatch, links
):
    """It lies ready in the folder, and goes with all else there."""
    with ExitStack() as first, ExitStack() as second:
        late, result = ready(few, place, first)
        if not links:
            monkeypatch.setattr(os, "link", no_links)
        seen = []
        stop = at_the_manifest(monkeypatch, place, lambda: seen.append(begun_anew(other, place, second)), links)
        with pytest.raises(StorageError, match="run the same command again"):
            late.seal(result)
        assert stop.happened and not (place / "manifest.json").is_file()
        made, result = seen[0]
        made.write_shards(), made.make_missing(second)
        assert made.seal(result).complete
    assert payload(place) == reference[other.layer]


def no_links(source, target):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("place", ["objects"], indirect=True)
@pytest.mark.parametrize("layer", [-2, None])
def test_a_manifest_that_comes_into_another_store_seals_nothing_and_the_same_command_mends_it(
    few, reference, place, monkeypatch, layer
):
    """The gap of one operation: between the look at the lease and the put. Also where the new store is of the same."""
    config = few if layer is None else replace(few, layer=layer)
    with ExitStack() as first, ExitStack() as second:
        late, result = ready(few, place, first)
        seen = []
        stop = at_the_manifest(monkeypatch, place, lambda: seen.append(begun_anew(config, place, second)))
        with suppress(StorageError):
            late.seal(result)
        assert stop.happened and (place / "manifest.json").is_file()
        made, result = seen[0]
        assert not made.sealed
        with pytest.raises(FileNotFoundError), made.unless_sealed():
            raise FileNotFoundError
        if layer is not None:
            assert not artifact.open_artifact(place, "features", complete=False).complete
            assert not FeatureStore(place, allow_partial=True).sealed
            assert "manifest.json" in {fault["file"] for fault in features.verify(place)}
    done = extract_features.run(config, place)
    assert done.complete
    # Of the same settings it is that of these shards, and what belongs to none is not swept once more.
    left = set() if layer is not None else {"features.zarr/.4-00.tmp", "features.zarr/tokens/c/9/0"}
    found = payload(place)
    assert found.keys() - left == reference[config.layer].keys() and found.items() >= reference[config.layer].items()
    assert features.verify(place) == []


@pytest.mark.parametrize("place", ["objects"], indirect=True)
def test_repair_takes_a_manifest_of_another_store_away(few, other, reference, place, monkeypatch):
    with ExitStack() as first, ExitStack() as second:
        late, result = ready(few, place, first)
        at_the_manifest(monkeypatch, place, lambda: begun_anew(other, place, second))
        with suppress(StorageError):
            late.seal(result)
    assert features.repair(place, device="cpu")[1].complete
    assert payload(place) == reference[other.layer]


def test_a_process_whose_store_was_replaced_says_so_and_describes_nothing(few, other, place):
    with ExitStack() as first, ExitStack() as second:
        late, _ = prepare(few, place, held=first)
        late.pack(), late.encode_sample()
        begun_anew(other, place, second)
        (place / "store.json").unlink(), (place / "statistics.safetensors").unlink()
        with pytest.raises(StorageError, match="run the same command again"), late.unless_sealed():
            late.describe()
        assert not (place / "store.json").is_file() and not (place / "statistics.safetensors").is_file()
        with pytest.raises(StorageError, match="run the same command again"), late.unless_sealed():
            raise FileNotFoundError


def test_a_process_that_seals_a_store_which_was_just_replaced_says_so(few, other, place):
    with ExitStack() as first, ExitStack() as second:
        late, result = ready(few, place, first)
        begun_anew(other, place, second)
        (place / "store.json").unlink()
        with pytest.raises(StorageError, match="run the same command again"):
            late.seal(result)


def test_a_worker_that_comes_late_does_not_join_the_store_that_replaced_its_own(few, other, place):
    """It has the settings of the command that started it."""
    with ExitStack() as first, ExitStack() as second:
        late, _ = prepare(few, place, held=first)
        mark = late.own_seal.mark
        assert joined(few, place, late.fingerprints, mark).own_seal.mark == mark
        begun_anew(other, place, second)
        with pytest.raises(StorageError, match="begun anew by another process; run the same command again"):
            joined(few, place, late.fingerprints, mark)


def test_a_process_whose_store_was_replaced_writes_no_shard_with_the_statistics_of_the_new_one(few, other, place):
    with ExitStack() as first, ExitStack() as second:
        late, _ = prepare(few, place, held=first)
        late.pack(), late.encode_sample(), late.describe()
        begun_anew(other, place, second)
        with pytest.raises(StorageError, match="run the same command again"):
            late.write_shards()


def test_two_that_seal_the_same_store_both_find_it_sealed(few, reference, place, tmp_path, monkeypatch):
    """One was stopped while it sealed, past its leases, and the other did it."""
    with ExitStack() as held:
        late, result = ready(few, place, held)

        def meanwhile():
            for path, _ in files.below(place / "claims"):
                path.unlink()  # with the locks, which another node does not see
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
            extract_features.run(few, place)

        stop = at_the_manifest(monkeypatch, place, meanwhile)
        assert late.seal(result).complete and stop.happened
    assert payload(place) == reference[few.layer]


def test_a_command_that_finds_a_manifest_of_another_store_goes_on(few, other, reference, tmp_path):
    """As earlier versions left one."""
    out = extract_features.run(few, tmp_path / "features").path
    manifest = (out / "manifest.json").read_bytes()
    with ExitStack() as held:
        prepare(other, out, overwrite=True, held=held)
        (out / "manifest.json").write_bytes(manifest)
    assert json.loads(manifest)["sha256"]["config.yaml"] != files.sha256_file(out / "config.yaml")
    assert extract_features.run(other, out).complete
    assert payload(out) == reference[other.layer]


def test_a_manifest_beside_which_nothing_is_made_seals_nothing_and_the_same_command_goes_on(few, reference, tmp_path):
    """It came late, and the process of the same settings that began anew was killed then."""
    out = extract_features.run(few, tmp_path / "features").path
    manifest = (out / "manifest.json").read_bytes()
    with ExitStack() as held:
        made, _ = prepare(few, out, overwrite=True, held=held)
        (out / "manifest.json").write_bytes(manifest)
        assert not made.sealed and not is_complete(out)
        made.pack(), made.encode_sample(), made.describe()
        assert not made.sealed and not is_complete(out)
    assert extract_features.run(few, out).complete
    assert payload(out) == reference[few.layer]


def test_a_manifest_that_has_other_records_is_not_that_of_the_store(few, tmp_path):
    """Shards that are made again, on another device say, may have other bytes and the same names."""
    out = extract_features.run(few, tmp_path / "features").path
    assert Seal(out).there
    record = out / "ledger" / "train-00001.json"
    record.write_bytes(record.read_bytes() + b"\n")
    assert not Seal(out).there


def test_repair_rebuilds_nothing_from_a_damaged_configuration(few, tmp_path):
    """With the description damaged too the manifest looks like another's."""
    out = extract_features.run(few, tmp_path / "features").path
    for name in ("config.yaml", "store.json"):
        data = (out / name).read_bytes()
        (out / name).write_bytes(data.replace(b"layer", b"Layer", 1))
    before = payload(out)
    assert "config.yaml" in {fault["file"] for fault in features.verify(out)}
    with pytest.raises(InputError, match=r"config.yaml.*restore it from a copy"):
        features.repair(out, device="cpu")
    assert payload(out) == before


def test_a_process_that_is_killed_right_after_the_seal_leaves_no_other_name_of_the_manifest(
    few, reference, tmp_path, monkeypatch
):
    """The manifest has its name by then, and the next process removes the one under which it lay ready."""
    out, killed = tmp_path / "features", tmp_path / "killed" / "features"
    stop = Stop(
        monkeypatch,
        files,
        "fsync_dir",
        lambda: shutil.copytree(out, killed),
        lambda folder: folder == out and (out / "manifest.json").is_file(),
    )
    extract_features.run(few, out)
    assert stop.happened and len(list(killed.glob(".manifest.json.*.tmp"))) == 1
    extract_features.run(few, killed)
    assert payload(killed) == payload(out) == reference[few.layer]


@pytest.mark.parametrize("place", ["objects"], indirect=True)
def test_a_service_that_fails_after_the_seal_is_said(few, place, monkeypatch):
    with ExitStack() as held:
        made, result = ready(few, place, held)

        def fails(self, still):
            raise StorageError("the service failed")

        with monkeypatch.context() as patched:
            patched.setattr(ObjectPath, "unlink_below", fails)
            with pytest.raises(StorageError, match="the service failed"):
                made.seal(result)
        assert made.sealed
        made.clear()
    assert not (place / "packed").is_dir() and not (place / "claims").is_dir()


def test_a_process_that_lost_the_lease_of_the_rows_removes_them_by_another(few, reference, place, monkeypatch):
    with ExitStack() as held:
        made, result = ready(few, place, held)
        lease = place / "claims" / "pack.lease"
        stop = Stop(monkeypatch, Packing, "remove", lambda: lease.unlink())
        assert made.seal(result).complete and stop.happened
    assert payload(place) == reference[few.layer]


def test_an_error_while_shards_are_made_again_is_said_as_it_is(few, tmp_path, monkeypatch):
    with ExitStack() as held:
        made, _ = ready(few, tmp_path / "features", held)
        (made.out / "ledger" / "train-00001.json").write_bytes(b"damaged")

        def fails(out, lease):
            raise StorageError("the service failed")

        monkeypatch.setattr(ledger, "drop_misfits", fails)
        with pytest.raises(StorageError, match="the service failed"), made.unless_sealed():
            made.make_missing(held)


@pytest.mark.parametrize("phase", ["pack", "make_missing"])
def test_a_process_whose_store_was_replaced_and_sealed_ends_with_the_phase(few, other, reference, tmp_path, phase):
    with ExitStack() as first:
        late, _ = prepare(few, tmp_path / "features", held=first)
        first.close()
        extract_features.run(other, late.out, overwrite=True)
        late.own_seal.at_work = None  # as for the workers of an engine
        with pytest.raises(StorageError, match="another began the store anew"):
            late.pack() if phase == "pack" else late.make_missing(first)
    assert payload(late.out) == reference[other.layer]


def test_a_process_without_a_lease_sees_its_store_replaced(few, tmp_path):
    """As the workers of an engine, which the process that started them is at work for."""
    out = tmp_path / "features"
    prepare(few, out)
    seal = Seal(out)
    seal.check()
    record = json.loads((out / "artifact.json").read_text())
    (out / "artifact.json").write_text(json.dumps({**record, "emptied": True}))
    with pytest.raises(StorageError, match="another began the store anew"):
        seal.check()
    (out / "artifact.json").unlink()
    with pytest.raises(StorageError, match="another began the store anew"):
        seal.check()


@pytest.fixture(scope="module")
def arguments(few):
    """The same extraction as the command line takes it."""
    return [
        "extract-features", "--encoder", few.encoder, "--data", *few.data, "--seq-len", str(few.seq_len),
        "--validation-docs", "8", "--shard-rows", "16", "--batch-size", "8", "--device", "cpu",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ldlm.features.ledger:sweep", "hidden/c/1/0/0"),
        ("ldlm.features.packing:Packing.remove", "store.json"),
        *(
            pytest.param(first, second, marks=pytest.mark.slow)
            for first in ("ldlm.features.ledger:sweep", "ldlm.files:fsync_tree", "manifest.json",
                "ldlm.features.packing:Packing.remove")
            for second in ("rows.json", "statistics.safetensors", "train-00000.decided", "ledger/train-00001.json")
        ),
    ],
)  # fmt: skip
def test_a_node_that_was_stopped_while_it_sealed_harms_no_store_that_is_begun_anew(
    arguments, reference, tmp_path, tmp_path_factory, first, second
):
    whole = tmp_path_factory.mktemp("whole") / "features"
    for name, data in reference[-2].items():
        files.write_atomic(whole / name, data)
    program = "import sys, blind_nodes; blind_nodes.main(sys.argv[1:])"
    done = forked.run(program, "replaced", str(whole), str(tmp_path), first, second, *arguments)
    assert done.returncode == 0, done.stderr
