"""An extraction that Ray hands out: the bytes of one process, also when workers, a node and the head are lost."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray_cluster
from folders import content
from patience import patience

from ldlm import config as configs
from ldlm import presence
from ldlm.config import ExtractConfig, LaunchConfig
from ldlm.errors import InputError, StorageError, Unreadable
from ldlm.features import pieces, ray_engine, ray_worker
from ldlm.features.begin import prepare
from ldlm.features.packing import Packing
from ldlm.location import locate
from ldlm.progress import SILENT, Progress, Task
from ldlm.stages import extract_features

WITHOUT = "Ray is in the extra `ray`"


@pytest.fixture(scope="module")
def arguments(few):
    """The extraction of `few`, as the command line takes it."""
    made = ["extract-features", "--data", *few.data]
    for name in ("encoder", "seq_len", "validation_docs", "shard_rows", "batch_size", "device"):
        made += [f"--{name.replace('_', '-')}", str(getattr(few, name))]
    return made


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory):
    """The store that one process makes of it."""
    return extract_features.run(few, tmp_path_factory.mktemp("whole") / "features").path


# ----------------------------------------------------------------------------------------------------------------------
# Without a cluster


def test_without_ray_one_line_says_how_to_install_it(refuse, arguments, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    said = refuse(*arguments, "--engine", "ray", "--output", tmp_path / "f")
    assert said == "--engine ray needs Ray on every node: pip install 'ldlm[ray]', or -e '.[ray]' in a checkout"
    assert not (tmp_path / "f").exists()


def test_an_address_where_nobody_listens_is_refused_at_once(refuse, arguments, tmp_path):
    pytest.importorskip("ray", reason=WITHOUT)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        said = refuse(*arguments, "--engine", "ray", "--address", address, "--output", tmp_path / "f")
        assert said.startswith(f"--address {address}: no Ray cluster for this command there (")
    assert not (tmp_path / "f").exists()


def handed(extraction, **changed):
    """The task of a worker, as the engine gives it."""
    ray_worker._packing.cache_clear()
    task = {
        "config": configs.to_dict(extraction.config),
        "out": str(extraction.out),
        "fingerprints": extraction.fingerprints,
        "mark": extraction.own_seal.mark,
        "at": os.getcwd(),
    }
    return json.dumps({**task, **changed})


def to_tokenize(extraction, **changed):
    """The task of a piece, as the engine gives it."""
    task = extraction.packing.task()
    return json.dumps({**task, "out": str(extraction.out), "at": os.getcwd(), **changed})


def test_a_worker_s_receipts_make_the_store_of_one_process(few, whole, tmp_path, monkeypatch):
    """The functions that Ray calls, here in this process, with the strings and numbers that pass through it."""
    real = pieces.plan
    monkeypatch.setattr(pieces, "plan", lambda config, size: real(config, 512))
    extraction, result = prepare(few, tmp_path / "f")

    def tokenize(wanted, tally):
        task = to_tokenize(extraction)
        for number, piece in wanted.items():
            made, again = (json.loads(ray_worker.tokenize(task, number, json.dumps(piece))) for _ in range(2))
            assert made == {"bytes": 4 * extraction.packing.kept.found([number])[0].tokens}
            assert again == {"bytes": 0}  # a task may be tried again
        assert len(wanted) > 3

    assert extraction.pack(tokenize)
    worker = ray_worker.Worker(handed(extraction))
    assert json.loads(worker.ready())["out"] == str(tmp_path / "f")
    extraction.encode_sample(lambda blocks, tally: [worker.block(block) for block in blocks])
    assert extraction.spool.blocks() == set(extraction.sample())
    assert worker.describe() == "{}"
    receipts = []
    extraction.write_shards(lambda shards, tally: receipts.extend(json.loads(worker.shard(*one)) for one in shards))
    assert len(receipts) == 6
    assert min(receipt["bytes"] for receipt in receipts) > 1000
    assert json.loads(worker.shard("train", 0)) == {"bytes": 0}  # it is done
    extraction.seal(result)
    assert content(tmp_path / "f") == content(whole)
    # The store is sealed, and its rows are gone.
    assert json.loads(ray_worker.tokenize(to_tokenize(extraction), 0, "null")).keys() == {ray_worker.GONE}
    assert json.loads(ray_worker.Worker(handed(extraction)).shard("train", 0)).keys() == {ray_worker.GONE}
    (tmp_path / "f" / "ledger" / "train-00000.json").unlink()  # as a worker saw it that looked before it was there
    assert json.loads(worker.shard("train", 0)).keys() == {ray_worker.GONE}


def test_a_worker_with_another_encoder_or_folder_says_so_in_its_receipt(few, other_gpt2, tmp_path):
    extraction, _ = prepare(few, tmp_path / "f")
    extraction.pack()
    other = configs.to_dict(replace(few, encoder=str(other_gpt2)))
    for changed, message in (
        ({"config": other}, rf"^on .+: the encoder of {other_gpt2} here is not that of {tmp_path / 'f'}$"),
        ({"at": "/nowhere"}, r"^on .+: /nowhere, in which the command was given, can't be entered \(No such file"),
        ({"out": str(tmp_path / "g")}, r"^on .+: there is no folder .*/g"),
    ):
        receipt = json.loads(ray_worker.Worker(handed(extraction, **changed)).ready())
        assert receipt.keys() == {ray_worker.UNREADABLE}
        assert re.match(message, receipt[ray_worker.UNREADABLE]), receipt
    assert not (tmp_path / "g").exists()


def test_nodes_need_no_disk_in_common_where_the_store_is_in_an_object_store(few, whole, bucket, tmp_path, monkeypatch):
    extraction, result = prepare(few, locate(f"{bucket}/f"))

    def tokenize(wanted, tally):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
        task = to_tokenize(extraction)
        receipts = [ray_worker.tokenize(task, number, json.dumps(piece)) for number, piece in wanted.items()]
        assert [json.loads(receipt).keys() for receipt in receipts] == [{"bytes"}] * len(wanted)

    assert extraction.pack(tokenize)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a third"))
    worker = ray_worker.Worker(handed(extraction))
    extraction.encode_sample(lambda blocks, tally: [worker.block(block) for block in blocks])
    assert worker.describe() == "{}"
    extraction.write_shards(lambda shards, tally: [worker.shard(*one) for one in shards])
    extraction.seal(result)
    assert {name: (extraction.out / name).read_bytes() for name in extraction.out.sizes()} == content(whole)


def test_a_node_that_lacks_something_does_not_say_that_the_text_is_bad(few, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_bytes(b"a\n" * 999)
    extraction, _ = prepare(replace(few, data=(str(text),)), tmp_path / "f")
    (piece,) = extraction.packing.plan()

    def said(**changed):
        ray_worker._packing.cache_clear()
        ((key, message),) = json.loads(
            ray_worker.tokenize(to_tokenize(extraction, **changed), 0, json.dumps(piece))
        ).items()
        return key, message.partition(": ")[2]

    assert said(at="/nowhere")[0] == ray_worker.UNREADABLE
    key, message = said(folder=str(tmp_path / "elsewhere"))
    assert key == ray_worker.UNREADABLE
    assert message.endswith("elsewhere, can't be seen; all nodes must see that folder")
    text.rename(tmp_path / "away")
    assert said() == (ray_worker.UNREADABLE, f"there is no file {text}; all nodes need the text under the same path")
    text.write_bytes(b"a\n" * 998 + b"b\n")
    other = (ray_worker.UNREADABLE, f"{text} is not the text that the command has hashed; all nodes need the same text")
    assert said() == other
    text.write_bytes(b"a\n" * 999)  # a copy, with times of its own
    ray_worker._packing.cache_clear()
    assert json.loads(ray_worker.tokenize(to_tokenize(extraction), 0, json.dumps(piece))).keys() == {"bytes"}


def test_a_node_says_that_the_text_is_bad(few, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(b"a\n" * 998 + b"a\xff")
    extraction, _ = prepare(replace(few, data=(str(text),)), tmp_path / "f")
    (piece,) = extraction.packing.plan()
    ray_worker._packing.cache_clear()
    receipt = ray_worker.tokenize(to_tokenize(extraction), 0, json.dumps(piece))
    assert json.loads(receipt).keys() == {ray_worker.REFUSED}


def test_a_call_is_at_work_in_the_store_and_does_not_wait_for_one_who_waits_for_its_command(few, tmp_path, monkeypatch):
    extraction, _ = prepare(few, tmp_path / "f")
    extraction.pack()
    worker = ray_worker.Worker(handed(extraction))
    seen = []

    def share_blocks(*_):
        seen.append(presence.leases(extraction.out).places.names(presence.WORKER))

    worker.ready()
    monkeypatch.setattr(worker.extraction, "share_blocks", share_blocks)
    worker.block(0)
    assert len(seen[0]) == 1
    waits = presence.leases(extraction.out)
    with waits.claim(presence.ALONE):
        assert json.loads(worker.block(0)) == {"bytes": 0}
    assert not presence.leases(extraction.out).places.names(presence.WORKER)


def test_workers_have_the_cores_that_the_smallest_node_has_for_each():
    assert ray_engine.cores_of_one([4, 64], 2) == 4
    assert ray_engine.cores_of_one([0, 8, 8], 2) == 8  # a head that does no work
    assert ray_engine.cores_of_one([8, 16], 3) == 4
    assert ray_engine.cores_of_one([2], 5) == 1
    assert ray_engine.cores_of_one([], 1) == 1


def test_what_the_storage_does_to_a_worker_is_no_fault_of_the_input(few, tmp_path, monkeypatch):
    extraction, _ = prepare(few, tmp_path / "f")
    extraction.pack()
    worker = ray_worker.Worker(handed(extraction))
    worker.ready()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker.extraction.spool, "write", full)
    receipt = json.loads(worker.block(0))
    assert receipt.keys() == {ray_worker.FAILED}
    assert re.match(r"on .+: \[Errno 28\] No space left on device", receipt[ray_worker.FAILED])


# ----------------------------------------------------------------------------------------------------------------------
# With Ray


@pytest.fixture
def environment():
    """The variables of processes that use Ray, which is there."""
    pytest.importorskip("ray", reason=WITHOUT)
    with ray_cluster.folder_for_ray() as found:
        yield found


def test_ray_on_this_machine_makes_the_store_of_one_process(start, arguments, whole, environment, tmp_path):
    command = [*arguments, "--engine", "ray", "--workers", "1"]
    assert start(command, tmp_path / "f", environment=environment).wait(timeout=patience()) == 0
    assert content(tmp_path / "f") == content(whole)


class Ending(Progress, Task):
    """Progress that ends one of the workers of a cluster once both are there and some states are made."""

    def __init__(self, cluster) -> None:
        self.cluster, self.ended = cluster, []

    def task(self, name, total, unit, done=0):
        self.name = name
        return self

    def advance(self, count, **figures):
        if self.name != "tokenize" and not self.ended and len(workers := self.cluster.workers()) == 2:
            self.ended.append(workers[0])
            ray_cluster.end(workers[0])


def test_a_worker_that_is_lost_on_one_of_two_nodes_costs_no_byte(few, whole, tmp_path, monkeypatch, environment):
    """In small; slowly below also with a node lost, and with a text of hundreds of shards."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with ray_cluster.nodes() as cluster:
        ending = Ending(cluster)
        launch = LaunchConfig(engine="ray", address=cluster.address, workers=2)
        extract_features.run(few, tmp_path / "f", launch=launch, progress=ending)
    assert len(ending.ended) == 1
    assert content(tmp_path / "f") == content(whole)


@pytest.mark.slow
def test_bad_text_leaves_nothing_and_a_node_s_fault_leaves_what_is_there(few, tmp_path, monkeypatch, environment):
    """On one Ray cluster, of which this process is the driver."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    text, real, begun = tmp_path / "text.txt", Packing.plan, []
    good = Path(few.data[0]).read_bytes()
    text.write_bytes(good + b"\xff\n" + good)
    config = replace(few, data=(str(text),))

    def plan(packing):
        planned = real(packing, 512)
        assert len(planned) > 3
        if begun:
            text.unlink()
        return planned

    monkeypatch.setattr(Packing, "plan", plan)
    with ray_cluster.nodes() as cluster:
        launch = LaunchConfig(engine="ray", address=cluster.address)
        with pytest.raises(InputError, match=r"text\.txt") as refused:
            extract_features.run(config, tmp_path / "f", launch=launch)
        assert not isinstance(refused.value, Unreadable)
        time.sleep(1)  # what would still be at work would write
        assert not (tmp_path / "f").exists()
        text.write_bytes(good)
        begun.append(True)
        with pytest.raises(Unreadable, match=r"^on .+: there is no file .*text\.txt"):
            extract_features.run(config, tmp_path / "f", launch=launch)
        assert list((tmp_path / "f" / "packed").rglob("plan.json"))
        assert not presence.leases(tmp_path / "f").places.names(presence.WORKER)


@pytest.mark.slow
def test_the_user_is_told_of_pieces_and_workers_that_wait_for_room(
    few, whole, tmp_path, monkeypatch, environment, notes
):
    """Three workers on two nodes of one core: the third never comes, and the others do all."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ray_engine, "PATIENCE", 0.01)
    with ray_cluster.nodes() as cluster:
        launch = LaunchConfig(engine="ray", address=cluster.address, workers=3)
        extract_features.run(few, tmp_path / "f", launch=launch, progress=notes)
    assert content(tmp_path / "f") == content(whole)
    said = "\n".join(notes.lines)
    assert "no piece of the text came back for a minute; the Ray cluster may have no room" in said
    assert "3 of 3 workers are not ready; waiting for room in the Ray cluster, or for them to load the encoder" in said
    assert len([line for line in notes.lines if re.match("[12] of 3 workers are not ready", line)]) == 1


class Lost(Exception):
    """Stands in for the error that Ray raises when a worker died."""


class LosingRay:
    """Stands in for Ray: workers load the encoder, and die of each item that they are given."""

    exceptions = SimpleNamespace(RayTaskError=type("RayTaskError", (Exception,), {}), RayError=Lost)

    def get(self, call):
        if call.startswith("ready"):
            return "{}"
        raise Lost

    def wait(self, calls, **_):
        return calls[:1], calls[1:]

    def cancel(self, call):
        """Nothing is under way."""


class LosingWorker:
    """A handle of such a worker; calls are names."""

    def __init__(self):
        self.calls = 0
        self.ready = self.shard = self.block = self.describe = self

    def options(self, **_):
        return SimpleNamespace(remote=lambda: f"ready {id(self)} {self.remote()}")

    def remote(self, *_):
        self.calls += 1
        return f"{id(self)} {self.calls}"


@pytest.mark.parametrize(
    ("kind", "items", "named"),
    [("shards", [("train", 3)], "shard train-00003"), ("blocks", [7], "block 7"), ("describe", None, "the merging of")],
)
def test_what_workers_are_lost_at_is_named(kind, items, named):
    engine = ray_engine.RayEngine(LosingRay(), ExtractConfig(device="cpu"), LaunchConfig(engine="ray"), SILENT)
    engine._workers = [LosingWorker(), LosingWorker()]
    engine._live = [*engine._workers]
    with pytest.raises(StorageError, match=f"^{named}.* was given to 4 workers, and all were lost"):
        getattr(engine, kind)(*([] if items is None else [items, None]))


@pytest.fixture(scope="module")
def long(corpus, arguments, tmp_path_factory):
    """An extraction of hundreds of small shards as the command line takes it, and the store that one process makes."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "long.txt").write_text(corpus.read_text(encoding="utf-8") * 12, encoding="utf-8")
    place = arguments.index("--data") + 1
    longer = [*arguments[:place], str(folder / "long.txt"), *arguments[place + 1 :]]
    program = [sys.executable, "-m", "ldlm.cli", *longer, "--output", str(folder / "whole")]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return longer, folder / "whole"


@pytest.fixture
def two_nodes(environment, monkeypatch):
    """A cluster of two nodes, and how to start the command on it."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with ray_cluster.nodes() as made:
        yield made


def on(nodes, command, out, start):
    """The command, at work on a cluster."""
    options = ["--engine", "ray", "--address", nodes.address, "--workers", "2"]
    quick = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}  # until a process gives a lost head up
    return start([*command, *options], out, environment=quick, stderr=subprocess.PIPE)


def begun(process, out, shards=5):
    """Wait for some shards."""
    ledger = out / "ledger"
    ends = time.monotonic() + patience()
    while not ledger.exists() or len(list(ledger.iterdir())) < shards:
        assert process.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.01)
    assert not (out / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["a worker", "a node"])
def test_what_is_lost_at_work_costs_no_byte(start, long, two_nodes, tmp_path, lost):
    process = on(two_nodes, long[0], tmp_path / "f", start)
    begun(process, tmp_path / "f")
    if lost == "a worker":
        found = two_nodes.workers()
        assert len(found) == 2  # one on each node
        ray_cluster.end(found[0])
    else:
        two_nodes.lose_a_node()
    _, said = process.communicate(timeout=patience())
    assert process.returncode == 0
    times = said.count(b"a worker was lost, and others do its part\n")
    assert times == 1 if lost == "a node" else times
    assert content(tmp_path / "f") == content(long[1])


@pytest.mark.slow
def test_the_same_command_goes_on_when_the_head_was_restarted(start, long, two_nodes, tmp_path):
    process = on(two_nodes, long[0], tmp_path / "f", start)
    begun(process, tmp_path / "f")
    two_nodes.close()
    process.communicate(timeout=patience())
    assert process.returncode != 0
    # Records alone: beside them a kill may leave a file by which a shard was being decided, which then goes.
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "f" / "ledger").glob("*-*.json")}
    assert kept
    assert not (tmp_path / "f" / "manifest.json").exists()
    with ray_cluster.nodes() as again:
        process = on(again, long[0], tmp_path / "f", start)
        process.communicate(timeout=patience())
    assert process.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # nothing is made twice
    assert content(tmp_path / "f") == content(long[1])


@pytest.mark.slow
def test_workers_that_are_always_lost_end_the_command_with_one_line(start, long, two_nodes, tmp_path):
    process = on(two_nodes, long[0], tmp_path / "f", start)
    begun(process, tmp_path / "f", shards=1)
    ends = time.monotonic() + patience()
    while process.poll() is None and time.monotonic() < ends:
        for pid in two_nodes.workers():
            ray_cluster.end(pid)
        time.sleep(0.05)
    _, said = process.communicate(timeout=patience())
    assert process.returncode == 1
    while_loading = b"Error: every worker of the Ray cluster was lost while it loaded the encoder"
    at_work = rb"Error: (the merging|block \d+|shard train-\d{5}).* was given to 4 workers, and all were lost"
    assert said.splitlines()[-1].startswith(while_loading) or re.match(at_work, said.splitlines()[-1])
    assert b"Traceback" not in said
    assert not (tmp_path / "f" / "manifest.json").exists()
