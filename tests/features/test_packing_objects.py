"""Token rows in an object store, of machines that have nothing else in common: each piece is made once."""

import io
import json
import re
import resource
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import interruption
import numpy as np
import pytest
from patience import patience

from ldlm import location
from ldlm.config import LaunchConfig
from ldlm.errors import InputError, StorageError
from ldlm.features import corpus, digests, pieces, text, tokenized
from ldlm.features.begin import prepare
from ldlm.features.packing import Ends, Packing
from ldlm.features.shared_work import Tally
from ldlm.features.spool import Spool
from ldlm.features.tokenized import ENDS, TOKENS, values
from ldlm.hub import load_tokenizer
from ldlm.leases import Leases
from ldlm.location import ObjectPath, locate
from ldlm.progress import SILENT
from ldlm.stages import extract_features, features

SIZE = 300  # bytes of a piece


@pytest.fixture(scope="module")
def tokenizer(gpt2):
    return load_tokenizer(str(gpt2))


@pytest.fixture
def machine(few, tokenizer, bucket, tmp_path):
    """The packing as a machine has it: `machine("a")`, with a folder of its own."""

    def made(name, config=few):
        kind = type("Elsewhere", (Packing,), {"work": tmp_path / name})
        folder = locate(f"{bucket}/features")
        ends = Ends(*text.special_tokens(tokenizer))
        return kind(config, folder / "packed" / "x", folder / "claims", tokenizer.backend_tokenizer, ends)

    return made


def serial(config, tokenizer):
    """The rows of each split, packed from its documents from the first to the last."""
    found = {split: corpus.documents(config, split) for split in ("train", "validation")}
    packed = {split: list(text.pack(part, tokenizer, config.seq_len)) for split, part in found.items() if part}
    return {split: np.concatenate(part).tolist() for split, part in packed.items()}


def rows_of(made):
    return {split: rows.read(0, rows.rows + 5).tolist() for split, rows in made.rows(made.planned()).items()}


def uploads(proxy):
    """How often the tokens of each piece went up, by its number."""
    found = (re.search(r"/(\d+)-\w+\.tokens(\?|$)", path) for method, path, _ in proxy.seen if method == "PUT")
    return Counter(int(one[1]) for one in found if one)


@pytest.mark.parametrize("held_out", [0, 8])
def test_machines_make_each_piece_once_and_their_rows_are_those_of_serial_packing(
    machine, proxy, few, tokenizer, monkeypatch, held_out
):
    monkeypatch.setattr(tokenized, "PART", 64)  # rows and ends lie across parts that are asked for
    config = replace(few, validation_docs=held_out)
    machines = [machine(name, config) for name in "abc"]
    planned = machines[0].plan(SIZE)
    assert len(planned) > 5
    threads = [threading.Thread(target=one.tokenize, args=(one.planned(), 0)) for one in machines]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert uploads(proxy) == Counter(range(len(planned)))
    expected = serial(config, tokenizer)
    assert [rows_of(one) for one in machines] == [expected] * 3
    train = machines[1].rows(planned)["train"]
    for start in range(0, train.rows, 3):
        assert train.read(start, start + 2).tolist() == expected["train"][start : start + 2]
    assert [list(one.work.glob("*.*")) for one in machines] == [[], [], []]  # nothing stays but locks


def test_pieces_that_are_done_are_not_made_again(machine, proxy, few, tokenizer, monkeypatch):
    made, seen = machine("a"), interruption.at_piece(monkeypatch, 4)
    planned = made.plan(SIZE)
    with pytest.raises(KeyboardInterrupt):
        made.tokenize(planned, 0)
    other = machine("b")
    assert other.planned() == planned
    other.tokenize(planned, 0)
    assert len(seen) == len(planned) + 1
    assert set(uploads(proxy).values()) == {1}
    assert rows_of(other) == serial(few, tokenizer)


def test_the_piece_of_a_machine_that_died_is_taken_over(machine, proxy, few, tokenizer):
    """Its lease is in the object store, with no sign of life."""
    made = machine("a")
    planned = made.plan(SIZE)
    dead = Leases(made.claims, None, heartbeat=None)
    assert dead.claim("piece-000002") is not None
    made.leases.expiry = 0.5
    made.tokenize(planned, 0)
    assert uploads(proxy) == Counter(range(len(planned)))
    assert rows_of(made) == serial(few, tokenizer)


def write(made, ids, ends):
    with made.kept.writing(0) as into:
        into.write(np.array(ids, np.int32), np.array(ends, np.int64))


def test_of_two_makers_the_first_decides_and_their_bytes_are_not_mixed(machine, monkeypatch):
    """They differ, as with two versions of a tokenizer, and the second was stopped after it had looked."""
    first, second = machine("a"), machine("b")
    write(first, range(9), [4, 9])
    monkeypatch.setattr(type(second.kept), "has", lambda self, number: False)
    write(second, range(50, 57), [2, 5, 7])
    monkeypatch.undo()
    for made in (first, second):
        (found,) = made.kept.found([0])
        assert (found.tokens, found.documents) == (9, 2)
        read = partial(values, start=0)
        assert read(made.kept.path(found.name), stop=9, count=9).tolist() == list(range(9))
        assert read(made.kept.path(found.name, ENDS), stop=2, count=2).tolist() == [4, 9]
    assert sorted(made.folder.sizes()) == [f"{found.name}.{ENDS}", f"{found.name}.{TOKENS}", "records/000000.json"]
    write(second, range(9), [4, 9])  # the same bytes again
    assert first.kept.found([0]) == [found]
    first.kept.path(found.name).unlink()
    with pytest.raises(StorageError, match=r"records/000000\.json names files that are gone; remove it and run"):
        second.kept.found([0])


def test_server_errors_and_resets_are_ridden_out(machine, proxy, few, tokenizer):
    proxy.chance = 0.2
    made = machine("a")
    made.tokenize(made.plan(SIZE), 0)
    found = made.rows(made.planned())["train"]
    assert proxy.failed > 10
    proxy.chance = 0.0
    assert found.read(0, found.rows).tolist() == serial(few, tokenizer)["train"]


def test_a_large_piece_goes_up_in_parts(bucket, proxy, monkeypatch):
    place, data = locate(f"{bucket}/large"), np.random.default_rng(0).bytes(3 * location.PART_BYTES + 1)
    place.upload(io.BytesIO(data))
    assert sum(method == "PUT" and "partNumber" in path for method, path, _ in proxy.seen) == 4
    assert place.read_bytes() == data


def test_rows_that_are_removed_go_many_at_a_time_and_are_wanted_by_nobody(machine, proxy, monkeypatch):
    monkeypatch.setattr(location, "MOST_DELETED", 5)
    made, late = machine("a"), machine("b")
    planned = made.plan(SIZE)
    made.tokenize(planned, 0)
    with made.leases.turn("pack") as lease:
        objects = len(made.folder.sizes())
        assert objects > 3 * len(planned)
        proxy.seen.clear()
        made.remove(lease.check)
        assert sum(method == "POST" for method, _, _ in proxy.seen) == 1 + -(-(objects - 1) // 5)  # the plan goes first
    assert not made.folder.is_dir()
    late.tokenize(planned, 0)
    assert not made.folder.is_dir()


def test_a_machine_that_lost_its_lease_leaves_the_plan(machine):
    """It was stopped before it removed the rows; another took its place, and the store was begun anew."""
    made = machine("a")
    made.plan(SIZE)
    before = made.folder.sizes()
    with made.leases.turn("pack") as lease:
        (made.claims / "pack.lease").unlink()
        with pytest.raises(StorageError, match="another took its place"):
            made.remove(lease.check)
    assert made.folder.sizes() == before


def test_machines_that_wait_for_the_plan_go_on_as_soon_as_it_is_there(machine, proxy):
    """And not one after the other: a thousand would stand in line for the lease."""
    first, others, found = machine("a"), [machine("b"), machine("c")], []

    def wait(made):
        with made.turn(made.planned) as planned:
            found.append(planned)

    with first.turn(first.planned) as planned:
        assert planned is None
        threads = [threading.Thread(target=wait, args=(made,), daemon=True) for made in others]
        [thread.start() for thread in threads]
        until = time.monotonic() + patience(5)
        while sum(method == "PUT" and "pack.lease" in path for method, path, _ in proxy.seen) < 4:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert found == []
        planned = first.plan(SIZE)
        [thread.join(timeout=patience(5)) for thread in threads]
        assert found == [planned, planned]


def test_a_full_disk_names_the_folder_of_the_machine(machine):
    made = machine("a")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for count in (25_100, 10**6):  # of which the last part, or all, does not fit
            with pytest.raises(OSError, match="File too large") as error:
                write(made, range(count), [count])
            assert error.value.filename == str(made.work)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not made.folder.is_dir()


# ----------------------------------------------------------------------------------------------------------------------
# Whole extractions


@pytest.fixture(scope="module")
def several(few, tmp_path_factory):
    """The text of `few` in six files, each a piece, and all options."""
    folder = tmp_path_factory.mktemp("several")
    lines = Path(few.data[0]).read_text(encoding="utf-8").splitlines()
    for number in range(6):
        (folder / f"{number}.txt").write_text("\n".join(lines[4 * number : 4 * number + 4]), encoding="utf-8")
    return replace(few, data=tuple(map(str, sorted(folder.iterdir()))), precision="fp32", shard_rows=32)


@pytest.fixture(scope="module")
def whole(several, tmp_path_factory):
    """The store that one process makes of it in a folder."""
    return content(extract_features.run(several, tmp_path_factory.mktemp("whole") / "features").path)


def content(place):
    """Every file of a store, by name."""
    paths = (path for path in place.rglob("*") if isinstance(path, ObjectPath) or path.is_file())
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in paths}


def test_machines_that_share_a_bucket_alone_tokenise_each_piece_once(start, several, whole, bucket, proxy, tmp_path):
    place = locate(f"{bucket}/features")
    arguments = ["extract-features", "--data", *several.data]
    for name in ("encoder", "seq_len", "validation_docs", "shard_rows", "batch_size", "precision", "device"):
        arguments += [f"--{name.replace('_', '-')}", str(getattr(several, name))]
    environments = [
        {"JOB_COMPLETION_INDEX": str(pod), "JOB_COMPLETIONS": "2", "XDG_CACHE_HOME": str(tmp_path / f"pod-{pod}")}
        for pod in (0, 1)
    ]
    workers = [start(arguments, place, environment=environment) for environment in environments]
    assert [worker.wait(timeout=patience()) for worker in workers] == [0, 0]
    assert uploads(proxy) == Counter(range(6))
    assert content(place) == whole
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_phases_are_jobs_of_machines_that_share_a_bucket_alone(several, whole, bucket, proxy, tmp_path, monkeypatch):
    place = locate(f"{bucket}/features")
    monkeypatch.setattr(digests, "LEAST", 1)
    monkeypatch.setattr(digests, "SETTLED", 0.0)

    def at(machine, only):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        return extract_features.run(several, place, launch=LaunchConfig(only=only))

    with pytest.raises(
        InputError, match=r"^the text of s3://\S+ is not packed; run the same command with --only pack first$"
    ):
        at("z", "encode")
    at("a", "pack")
    monkeypatch.setattr(digests, "_hashed", None)  # no file is hashed again
    at("b", "pack")
    assert uploads(proxy) == Counter(range(6))
    monkeypatch.setattr(pieces, "documents", None)  # and no text read
    for machine in "cd":
        assert not at(machine, "encode").complete
    assert at("e", "seal").complete
    assert content(place) == whole
    assert features.verify(place) == []


def test_a_store_that_was_half_packed_on_one_disk_goes_on(several, whole, bucket):
    """By a version that kept token rows of an object store in the user's cache."""
    place = locate(f"{bucket}/features")
    extraction, _ = prepare(several, place)
    old = replace(extraction.packing, folder=extraction.work / "packed", claims=extraction.work / "claims")
    planned = old.plan()
    old.share_pieces(dict(enumerate(planned[:4])), Tally(SILENT, "", dict.fromkeys(range(4), 1), set))
    assert old.kept.numbers() == {0, 1, 2, 3}
    assert extract_features.run(several, place).complete
    assert content(place) == whole
    assert not extraction.work.exists()


def test_a_folder_that_an_earlier_version_had_packed_goes_on(several, whole, tmp_path, monkeypatch):
    """Its record of the rows has no names, and its folder none of the store."""
    made = extract_features.run(several, tmp_path / "f", launch=LaunchConfig(only="pack")).path
    (folder,) = (made / "packed").iterdir()
    for path in list(folder.iterdir()):
        path.rename(made / "packed" / path.name)
    folder.rmdir()
    record = json.loads((made / "packed" / "rows.json").read_bytes())
    del record["names"]
    (made / "packed" / "rows.json").write_text(json.dumps(record))
    monkeypatch.setattr(pieces, "documents", None)  # no text is read again
    assert content(extract_features.run(several, made).path) == whole


def test_states_that_an_earlier_version_spooled_are_taken(several, whole, tmp_path, monkeypatch):
    """They lay in the folder of the spool itself."""
    with ExitStack() as held:
        made, _ = prepare(several, tmp_path / "f", held=held)
        made.pack(), made.encode_sample()
    for path in list(made.spool.folder.iterdir()):
        path.rename(tmp_path / "f" / "spool" / path.name)
    made.spool.folder.rmdir()
    monkeypatch.setattr(Spool, "write", None)  # none is made again
    assert content(extract_features.run(several, tmp_path / "f").path) == whole


def test_a_store_that_is_sealed_meanwhile_is_not_planned_again(few, bucket, monkeypatch):
    """Another machine seals it and removes the token rows, just when this one has looked whether it is sealed."""
    place = locate(f"{bucket}/features")
    late, _ = prepare(few, place)
    late.packing.plan(SIZE)
    real, looked = ObjectPath.size, []

    def overtaken(self):
        if self != place / "manifest.json" or looked:
            return real(self)
        looked.append(self)
        extract_features.run(few, place)
        raise FileNotFoundError(str(self))

    monkeypatch.setattr(ObjectPath, "size", overtaken)
    assert late.pack() is False
    assert not late.packing.folder.is_dir()
