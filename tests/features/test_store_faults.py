"""What a feature store survives: kills, several writers, flipped bits; and the tools that look after it."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import forked
import numpy as np
import pytest
from folders import content
from patience import patience

from ldlm import files, locks
from ldlm.config import ExtractConfig, from_dict
from ldlm.errors import InputError, StorageError
from ldlm.evaluation import samples
from ldlm.features import ledger, shards, stream
from ldlm.features.begin import prepare
from ldlm.features.extraction import Extraction
from ldlm.features.store import FeatureStore
from ldlm.features.stream import RowOrder, default_window
from ldlm.hub import load_tokenizer
from ldlm.progress import Progress
from ldlm.stages import extract_features, features


@pytest.fixture(scope="module")
def arguments(corpus, gpt2, tmp_path_factory):
    """An extraction of a few shards, as the command line takes it."""
    text = tmp_path_factory.mktemp("text") / "few.txt"
    text.write_text("\n".join(corpus.read_text(encoding="utf-8").splitlines()[:60]) + "\n", encoding="utf-8")
    return [
        "extract-features", "--encoder", str(gpt2), "--data", str(text), "--seq-len", "16", "--validation-docs", "8",
        "--shard-rows", "16", "--batch-size", "8", "--device", "cpu",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(succeed, arguments, tmp_path_factory):
    """The extraction by one process that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "features"
    succeed(*arguments, "--output", out)
    return out


def test_several_processes_write_the_bytes_that_one_writes(start, arguments, whole, tmp_path):
    assert start(arguments, tmp_path / "f", forks=forked.Forks("alone", 3)).wait(timeout=patience()) == 0
    manifests = [json.loads((path / "manifest.json").read_text()) for path in (tmp_path / "f", whole)]
    assert manifests[0] == manifests[1]
    assert content(tmp_path / "f") == content(whole)


@pytest.mark.slow
def test_two_processes_of_torchrun_write_the_bytes_that_one_writes(start, arguments, whole, tmp_path):
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert start(arguments, tmp_path / "f", launcher=two).wait(timeout=patience()) == 0
    assert content(tmp_path / "f") == content(whole)


@pytest.fixture(scope="module")
def short(succeed, arguments, tmp_path_factory):
    """The arguments of an extraction of few shards, and the store that they make when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("short")
    text, few = Path(arguments[arguments.index("--data") + 1]), folder / "fewer.txt"
    few.write_text("".join(text.read_text(encoding="utf-8").splitlines(keepends=True)[:14]), encoding="utf-8")
    shorter = [str(few) if argument == str(text) else argument for argument in arguments]
    shorter[shorter.index("--validation-docs") + 1] = "4"
    succeed(*shorter, "--output", folder / "whole")
    return shorter, folder / "whole"


def killed(how, count, short, tmp_path) -> str:
    """What `kill_points.py` prints."""
    arguments, whole = short
    program = (
        "import os, sys, kill_points; from ldlm.features import pieces; plan = pieces.plan\n"
        "pieces.plan = lambda config, size: plan(config, 600)  # several, which no helper makes\n"
        "os.environ['RAYON_NUM_THREADS'] = '1'\n"
        "kill_points.main(sys.argv[1:])"
    )
    done = forked.run(program, how, str(count), str(whole), str(tmp_path), *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_a_store_killed_many_times_is_the_store_that_nothing_disturbed(short, tmp_path, kills):
    partial, with_shard = json.loads(killed("random", kills, short, tmp_path).replace("(", "[").replace(")", "]"))
    # Not vacuous: most of the kills left something to take up. Of a few, on a busy machine, any number may.
    if kills > 10:
        assert partial > kills / 2
        assert with_shard > kills / 10


@pytest.mark.parametrize("step", [58, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_a_rename_or_fsync_is_made_good(short, tmp_path, step):
    """Slowly at every one, else at some."""
    assert int(killed("every", step, short, tmp_path)) > 100


def on_two_nodes(how, *given) -> None:
    """Run `blind_nodes.py`, which asserts that what a node does after a long stop harms nothing."""
    program = "import sys, blind_nodes; blind_nodes.main(sys.argv[1:])"
    done = forked.run(program, how, *map(str, given))
    assert done.returncode == 0, done.stderr


def test_two_nodes_that_see_no_lock_of_each_other_write_the_bytes_that_one_writes(short, tmp_path):
    arguments, whole = short
    on_two_nodes("together", whole, tmp_path, *arguments)


@pytest.mark.parametrize(
    "point",
    [
        "train-00000.decided",
        "hidden/c/1/0/0",
        *(
            pytest.param(point, marks=pytest.mark.slow)
            for point in ("artifact.json", "config.yaml", "plan.json", "000000.tokens", "rows.json", "store.json",
                "statistics.safetensors", "train-00001.json", "tokens/c/0/0", "manifest.json")
        ),
    ],
)  # fmt: skip
def test_a_node_that_was_stopped_past_its_lease_goes_on_and_harms_nothing(short, tmp_path, point):
    arguments, whole = short
    on_two_nodes("stopped", whole, tmp_path, point, *arguments)


def test_a_record_stands_once_what_it_names_is_on_the_disk(few, tmp_path, monkeypatch):
    """No test can cut the power. It can look at the order: file, its name, its folder, and the record after them."""
    out, events = tmp_path / "features", []
    real = {name: getattr(os, name) for name in ("fsync", "replace", "link", "mkdir")}

    def fsync(descriptor):
        real["fsync"](descriptor)
        events.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))

    def replace(source, target):
        events.append(("replace", str(source), str(target)))
        real["replace"](source, target)

    def link(source, target):
        real["link"](source, target)
        events.append(("replace", str(source), str(target)))

    def mkdir(folder, *mode):
        real["mkdir"](folder, *mode)
        events.append(("mkdir", str(folder)))

    for name, noted in {"fsync": fsync, "replace": replace, "link": link, "mkdir": mkdir}.items():
        monkeypatch.setattr(os, name, noted)
    extract_features.run(few, out)
    monkeypatch.undo()

    def renamed(path):
        return next(i for i, event in enumerate(events) if event[0] == "replace" and event[2] == str(path))

    def synced(name, before):
        """Whether the content of a file was on the disk by then, under this name or the one before."""
        came = [event[1] for event in events[:before] if event[0] == "replace" and event[2] == name]
        return ("fsync", name) in events[:before] or any(synced(source, before) for source in came)

    def durable(path):
        """When it is: after the fsync of its folder, which comes after its renaming, and that after its own fsync."""
        at = renamed(path)
        assert synced(events[at][1], at), path
        return events.index(("fsync", str(path.parent)), at)

    records = sorted((out / "ledger").iterdir())
    assert len(records) > 2
    folders = {Path(event[1]): i for i, event in enumerate(events) if event[0] == "mkdir"}
    for record in records:
        for name in json.loads(record.read_text())["files"]:
            assert durable(out / name) < renamed(record)
            above = [folder for folder in (out / name).parents if folder.is_relative_to(out / "features.zarr")]
            for folder in above:
                assert events.index(("fsync", str(folder.parent)), folders[folder]) < renamed(record)
    for path in (*records, out / "store.json", out / "statistics.safetensors", out / "features.zarr" / "std/c/0"):
        assert durable(path) < renamed(out / "manifest.json")
    assert durable(out / "store.json") < renamed(records[0])
    assert durable(out / "manifest.json")


def test_a_job_shares_the_work_and_a_store_may_change_hands(start, arguments, whole, tmp_path):
    """One process, killed; then the two of a job, killed; then one to the end."""
    out, longest = tmp_path / "features", patience()  # it is measured before a process starts: that takes seconds

    def killed_after(process, shards):
        """Wait until that many shards are done, then kill the process and its children."""
        deadline = time.monotonic() + longest
        while len(list(out.glob("ledger/*.json"))) < shards:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    job = forked.Forks("job", 2)
    killed_after(start(arguments, out, start_new_session=True), 2)
    killed_after(start(arguments, out, forks=job, start_new_session=True), 5)
    assert not (out / "manifest.json").exists()
    assert start(arguments, out).wait(timeout=patience()) == 0
    assert content(out) == content(whole)
    both = tmp_path / "both"
    assert start(arguments, both, forks=job).wait(timeout=patience()) == 0
    assert content(both) == content(whole)


def test_a_full_disk_leaves_finished_shards_and_the_same_command_goes_on(start, arguments, whole, tmp_path):
    """A file-size limit below a shard of states stands for a full disk: the kernel refuses the write half-way."""
    out = tmp_path / "features"
    sizes = [path.stat().st_size for path in whole.rglob("hidden/c/*/0/0")]
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({max(sizes) - 1}, {max(sizes) - 1})); "
    command = [*arguments, "--output", str(out)]
    # The spool is larger than a shard, so the limit falls once it stands.
    code = (
        "import sys; from ldlm.cli import main; from ldlm.features.extraction import Extraction\n"
        "real = Extraction.write_shards\n"
        f"def write(self, hand_out=None):\n    {limited}real(self, hand_out)\n"
        "Extraction.write_shards = write\n"
        "main(sys.argv[1:])"
    )
    failed = forked.run(code, *command)
    assert failed.returncode == 1, failed.stderr
    (line,) = (line for line in failed.stderr.splitlines() if line.startswith("Error: "))
    assert "File too large" in line and "hidden/c/" in line and "run the same command again" in line
    done = {path.stem for path in (out / "ledger").iterdir()}
    for name in done:
        for entry, facts in json.loads((out / "ledger" / f"{name}.json").read_text())["files"].items():
            assert ledger.fault(out / entry, facts["sha256"]) is None
    assert len(done) < len(list((whole / "ledger").iterdir()))
    assert start(arguments, out).wait(timeout=patience()) == 0
    assert content(out) == content(whole)


def peak_memory(arguments, out) -> int:
    """Bytes of resident memory that the command had at most.

    The process itself reads it: what wait4 tells of a child begins with the memory of the process that started it.
    """
    code = (
        "import pathlib, re, sys; from ldlm.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print(re.search(r'VmHWM:\\s*(\\d+) kB', pathlib.Path('/proc/self/status').read_text())[1])"
    )
    command = [sys.executable, "-c", code, *arguments, "--output", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1]) * 1024


@pytest.mark.slow
def test_memory_stays_flat_with_ten_times_the_text(corpus, gpt2, tmp_path):
    peaks = {}
    for times in (10, 100):
        text = tmp_path / f"{times}.txt"
        text.write_text(corpus.read_text(encoding="utf-8") * times, encoding="utf-8")
        arguments = [
            "extract-features", "--encoder", str(gpt2), "--data", str(text), "--seq-len", "16", "--stats-tokens", "all",
            "--batch-size", "256", "--shard-rows", "1024", "--codec", "fp32", "--device", "cpu",
        ]  # fmt: skip
        peaks[times] = peak_memory(arguments, tmp_path / str(times))
    stored = sum(path.stat().st_size for path in (tmp_path / "100").rglob("*") if path.is_file())
    assert stored > 25e6
    assert len(list((tmp_path / "10" / "ledger").iterdir())) > 2  # more shards than are in memory at a time
    assert peaks[100] - peaks[10] < 12 * 2**20, peaks  # two runs of the same differ by half of that


def damaged_at(path, offset_of):
    data = bytearray(path.read_bytes())
    offset, bit = offset_of(len(data))
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def everything(path, **options):
    """Every value that a store gives to those who read it, as JSON."""
    opened = FeatureStore(path, **options)
    values = {"statistics": [vector.tolist() for vector in opened.statistics()]}
    for name in sorted({record["split"] for record in opened.records.values()}):
        split = opened.split(name)
        parts, tokens = split.read(0, split.rows)
        values[name] = [split.shards, tokens.tolist(), {key: array.tolist() for key, array in parts.items()}]
    return json.dumps([opened.fingerprint, opened.manifest["shapes"], values])


@contextmanager
def flipped(path, chance):
    """One random bit of a file is another within the block."""
    data = path.read_bytes()
    damaged_at(path, lambda size: (chance.randrange(size), chance.randrange(8)))
    yield
    path.write_bytes(data)


@pytest.mark.parametrize("flips", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_flipped_bit_anywhere_is_noticed_and_never_read(whole, tmp_path, flips):
    chance, path = random.Random(1), shutil.copytree(whole, tmp_path / "copy")
    names, unharmed = sorted(content(whole)), everything(whole)
    for _ in range(flips):
        name = chance.choice(names)
        with flipped(path / name, chance):
            assert features.verify(path), name
            with suppress(InputError):
                assert everything(path) == unharmed, name
    assert features.verify(path) == []


@pytest.mark.parametrize("flips", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_a_flipped_bit_before_the_seal_is_noticed_or_made_good(whole, config, unsealed, tmp_path, flips):
    """By who reads the shards that are there, and by the same command when it goes on."""
    chance, sealed = random.Random(2), content(whole)
    names, unharmed = sorted(content(unsealed)), everything(unsealed, allow_partial=True)
    for _ in range(flips):
        name = chance.choice(names)
        with flipped(unsealed / name, chance):
            with suppress(InputError):
                assert everything(unsealed, allow_partial=True) == unharmed, name
            taken_up = shutil.copytree(unsealed, tmp_path / "copy")
        try:
            extract_features.run(config, taken_up)
        except InputError:
            assert not (taken_up / "manifest.json").exists(), name
        else:
            assert content(taken_up) == sealed or features.verify(taken_up), name
        shutil.rmtree(taken_up)


def test_repair_makes_the_bad_shards_again_and_nothing_else(whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "features")
    damaged_at(path / "features.zarr/hidden/c/1/0/0", lambda size: (size // 2, 0))
    (path / "features.zarr/validation/tokens/c/0/0").unlink()
    kept = path / "features.zarr/hidden/c/0/0/0"
    before = kept.stat().st_mtime_ns
    assert {fault["shard"] for fault in features.verify(path)} == {"train-00001", "validation-00000"}
    bad, _ = features.repair(path, device="cpu")
    assert bad == ["train-00001", "validation-00000"]
    assert features.verify(path) == []
    assert content(path) == content(whole)
    assert kept.stat().st_mtime_ns == before


def test_a_repair_that_lost_its_lease_removes_nothing(whole, tmp_path, monkeypatch):
    """It was stopped for long after it had looked for damage; another process has the store by now."""
    path = shutil.copytree(whole, tmp_path / "f")
    damaged_at(path / "features.zarr/hidden/c/0/0/0", lambda size: (size // 2, 0))
    before, real = content(path), ledger.faults

    def stopped(place):
        found = real(place)
        (place / "claims" / "alone.lease").unlink()  # as the other took it
        return found

    monkeypatch.setattr(ledger, "faults", stopped)
    with pytest.raises(StorageError, match="another took its place"):
        features.repair(path, device="cpu")
    assert content(path) == before


def test_repair_restores_metadata_and_statistics(whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "features")
    for name in ("features.zarr/hidden/zarr.json", "features.zarr/std/c/0", "statistics.safetensors"):
        damaged_at(path / name, lambda size: (size // 2, 3))
    features.repair(path, device="cpu")
    assert content(path) == content(whole)


def test_verify_exits_with_3_and_names_the_shard(whole, tmp_path, ldlm):
    path = shutil.copytree(whole, tmp_path / "features")
    assert ldlm("features", "verify", path).exit_code == 0
    damaged_at(path / "features.zarr/tokens/c/0/0", lambda size: (3, 1))
    found = ldlm("features", "verify", path)
    assert found.exit_code == 3
    assert "train-00000" in found.stdout
    assert ldlm("features", "repair", path, "--device", "cpu").exit_code == 0
    assert ldlm("features", "verify", path, "--json").stdout.strip() == "[]"


def test_verify_says_of_a_store_that_is_not_sealed_how_much_is_missing(unsealed, whole, tmp_path, ldlm):
    found = ldlm("features", "verify", unsealed)
    shards = len(list((whole / "ledger").iterdir()))
    assert (found.exit_code, f"not sealed: 1 of {shards} shards missing" in found.stdout) == (3, True)
    path = shutil.copytree(whole, tmp_path / "other")
    (path / "manifest.json").unlink()
    (path / "features.zarr/hidden/zarr.json").unlink()
    found = ldlm("features", "verify", path)
    assert found.exit_code == 3
    assert f"not sealed: 0 of {shards} shards missing" in found.stdout
    assert "features.zarr/hidden/zarr.json is missing" in found.stdout


@pytest.mark.parametrize("damage", ["", '{"kind": "feat', '{"kind": "run"}'])
def test_verify_exits_with_3_where_a_store_does_not_say_any_more_what_it_is(whole, tmp_path, ldlm, damage):
    path = shutil.copytree(whole, tmp_path / "features")
    (path / "artifact.json").write_text(damage)
    found = ldlm("features", "verify", path)
    assert (found.exit_code, "store: artifact.json" in found.stdout) == (3, True)
    assert ldlm("features", "verify", tmp_path / "absent").exit_code == 1


@pytest.mark.parametrize(
    ("name", "old", "new"), [("config.yaml", "seed: 0", "seed: 1"), ("artifact.json", ": 2", ": 3")]
)
def test_repair_leaves_the_seal_on_what_it_can_not_make_again(whole, tmp_path, refuse, name, old, new):
    path = shutil.copytree(whole, tmp_path / "features")
    replace_in(path / name, old, new)
    before = content(path)
    complaint = refuse("features", "repair", path, "--device", "cpu")
    assert f"{path / name} has other bytes than were written" in complaint
    assert "restore it from a copy" in complaint
    assert content(path) == before


def test_a_damaged_manifest_is_mended_as_its_error_says(whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "features")
    damaged_at(path / "manifest.json", lambda size: (size // 2, 0))
    with pytest.raises(InputError, match=r"manifest.json is damaged.*; run `ldlm features repair"):
        FeatureStore(path)
    features.repair(path, device="cpu")
    assert content(path) == content(whole)


def test_verify_reads_several_files_at_once(whole, monkeypatch):
    both, pair = threading.Barrier(2, timeout=patience()), ("hidden/c/0/0/0", "hidden/c/1/0/0")

    def fault(path, digest):
        if str(path).removeprefix(f"{whole}/features.zarr/") in pair:
            both.wait()  # neither comes through without the other
        return None

    monkeypatch.setattr(shards, "CORES", 3)
    monkeypatch.setattr(ledger, "fault", fault)
    assert features.verify(whole) == []


def test_info_says_what_a_store_is_and_what_is_missing(whole, tmp_path, ldlm):
    shown = json.loads(ldlm("features", "info", whole, "--json").stdout)
    assert (shown["state"], shown["codec"]) == ("sealed", "fp16")
    assert shown["bytes_per_token"] > 0
    path = shutil.copytree(whole, tmp_path / "features")
    ledger.forget(path, [("train-00000", "")])
    shown = json.loads(ldlm("features", "info", path, "--json").stdout)
    assert shown["state"].startswith(f"1 of {shown['shards'] + 1} shards")


def test_held_out_rows_become_texts_like_samples(whole, tmp_path, ldlm, refuse):
    out, other = tmp_path / "real.jsonl", tmp_path / "other.jsonl"
    for _ in range(2):  # the second time it is there already
        ldlm("features", "texts", whole, "--rows", 3, "--output", out)
    held_out = FeatureStore(whole).held_out()
    real = samples.read(out)
    assert [row.tolist() for row in real.tokens] == held_out.read(0, 3)[1].tolist()
    tokenizer = load_tokenizer(str(FeatureStore(whole).tokenizer_path))
    assert real.texts == [tokenizer.decode(row) for row in real.tokens]
    assert f"{held_out.rows:,} validation rows" in refuse(
        "features", "texts", whole, "--rows", held_out.rows + 1, "--output", other
    )
    other.write_text("mine")
    assert "holds something else" in refuse("features", "texts", whole, "--rows", 3, "--output", other)
    assert other.read_text() == "mine"
    before = out.read_bytes()
    line = refuse("features", "texts", whole, "--rows", 2, "--output", out)
    assert line.startswith(f"{out} holds 3 texts of this store already, and --rows 2 asks for fewer; take its first 2")
    assert out.read_bytes() == before
    assert ldlm("features", "texts", whole, "--rows", 4, "--output", out).exit_code == 0
    assert out.read_bytes().startswith(before)


def test_repair_loses_nothing_when_the_text_is_gone(whole, few_lines, tmp_path, refuse, few):
    text = tmp_path / "text.txt"
    text.write_bytes(few_lines.read_bytes())
    path = extract_features.run(replace(few, data=(str(text),)), tmp_path / "features").path
    shard = next((path / "features.zarr" / "tokens").rglob("c/0/0"))
    shard.write_bytes(b"x")
    text.unlink()
    before = sorted(file for file in path.rglob("*"))
    assert f"there is no file {text}" in refuse("features", "repair", path, "--device", "cpu")
    assert sorted(file for file in path.rglob("*")) == before


def test_repair_of_metadata_keeps_the_statistics(whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "features")
    statistics = (path / "statistics.safetensors").stat()
    (path / "features.zarr" / "hidden" / "zarr.json").write_text("{")
    assert features.repair(path, device="cpu")[0] == ["store"]
    assert (path / "statistics.safetensors").stat().st_ino == statistics.st_ino
    assert content(path) == content(whole)


def test_bench_compares_with_a_memory_map(whole, monkeypatch):
    monkeypatch.setattr(features, "MAP_ROWS", 48)  # so that the map is written in parts
    shown = features.bench(whole, batch_size=4, seconds=0.05)
    assert 0 < shown["ratio"] == pytest.approx(shown["rows_per_second"] / shown["memory_map_rows_per_second"])


def test_bench_shuffles_as_a_training_does_and_compares_whole_windows(whole, monkeypatch):
    split = FeatureStore(whole).split("train")

    def windows(shuffle_rows=None, rows=1):
        found = features.bench(
            whole, batch_size=4, shuffle_rows=shuffle_rows, seconds=0.01, most_bytes=rows * split.row_bytes
        )
        return found["shuffle_rows"], found["rows"]

    assert windows() == (default_window(split, 4), split.rows) == (split.rows, split.rows)
    assert split.rows > 3 * 48
    monkeypatch.setattr(stream, "WINDOW_BYTES", 48 * split.row_bytes)
    assert windows() == (default_window(split, 4), 48) == (48, 48)
    assert windows(rows=143) == (48, 2 * 48)
    assert windows(rows=10**6) == (48, split.rows)
    assert windows(shuffle_rows=70) == (70, 80)  # in whole blocks of 16
    assert windows(shuffle_rows=10**6) == (split.rows, split.rows)


def test_bench_times_whole_windows(whole, monkeypatch):
    """By the batches that are taken from the memory map: five to a window of 48 rows, in each turn."""
    taken = []

    class Noted(RowOrder):
        def rows_at(self, position, count):
            taken.append(position // count)
            return super().rows_at(position, count)

    monkeypatch.setattr(features, "RowOrder", Noted)
    features.bench(whole, batch_size=10, shuffle_rows=48, seconds=0.01)
    starts = [number for number, batch in enumerate(taken) if batch == 0]
    assert len(starts) == 5  # what warms the page cache, and four turns
    assert {int(count) % 5 for count in np.diff([*starts, len(taken)])} == {0}


def test_bench_takes_no_more_room_than_there_is(whole, monkeypatch, notes):
    split = FeatureStore(whole).split("train")
    monkeypatch.setattr(stream, "WINDOW_BYTES", 48 * split.row_bytes)
    real = shutil.disk_usage(tempfile.gettempdir())

    def rows(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=free))
        return features.bench(whole, batch_size=4, seconds=0.01, progress=notes)["rows"]

    assert rows(2 * 48 * split.row_bytes) == 2 * 48
    said = f"a memory map of 96 rows takes {files.amount(96 * split.row_bytes)} of {tempfile.gettempdir()}"
    assert notes.lines == [said]
    assert rows(48 * split.row_bytes) == 48
    line = (
        f"a memory map of 48 rows takes {files.amount(48 * split.row_bytes)} and {tempfile.gettempdir()} has "
        f"{files.amount(48 * split.row_bytes - 1)} free; set TMPDIR to a folder with room, or give a "
        "smaller --shuffle-rows"
    )
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        rows(48 * split.row_bytes - 1)


@pytest.mark.parametrize("missing", [1, 20_000])
def test_a_disk_that_fills_up_ends_bench_in_a_line(whole, ldlm, missing):
    """A limit on the size of files stands for the full disk: the largest file of the map has so many bytes more."""
    split = FeatureStore(whole).split("train")
    size = split.rows * split.arrays["hidden"].empty(1).nbytes
    assert size > missing
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, hard))
    try:
        shown = ldlm("features", "bench", whole)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (shown.exit_code, type(shown.exception)) == (1, SystemExit), repr(shown.exception)
    line = shown.stderr.splitlines()[-1]
    assert re.fullmatch(r"Error: /\S+/hidden: File too large; make room and run the same command again", line), line


def test_a_partial_store_is_read_when_it_is_allowed_and_has_the_rows_that_are_there(whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "features")
    ledger.forget(path, [("train-00001", "")])
    with pytest.raises(InputError, match=r"1 of \d+ shards .* are missing.*--allow-partial"):
        FeatureStore(path)
    partial, sealed = FeatureStore(path, allow_partial=True).split("train"), FeatureStore(whole).split("train")
    there = np.delete(np.arange(sealed.rows), np.arange(16, 32))
    assert partial.rows == len(there)
    order = np.random.default_rng(0).permutation(len(there))
    parts, tokens = partial.read_rows(order)
    wanted_parts, wanted_tokens = sealed.read_rows(there[order])
    assert np.array_equal(tokens, wanted_tokens)
    assert np.array_equal(parts["hidden"], wanted_parts["hidden"])


def test_int8_is_refused_when_a_channel_loses_too_much(whole, tmp_path):
    made_with = FeatureStore(whole).artifact.config
    config = ExtractConfig(
        encoder=made_with["encoder"], data=tuple(made_with["data"]), seq_len=16, shard_rows=16, batch_size=8,
        codec="int8-token", max_channel_error=1e-4, device="cpu",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"--codec int8-token loses .* use --overwrite --codec fp16"):
        extract_features.run(config, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_bad_states_in_a_late_shard_lose_none_of_the_earlier_ones(arguments, whole, tmp_path, monkeypatch):
    """Extraction that has just begun leaves nothing behind when it refuses; one with finished shards keeps them."""
    made_with = {**FeatureStore(whole).artifact.config, "device": "cpu"}
    config = from_dict(ExtractConfig, made_with)
    real = Extraction._shard_parts

    def fails_at_the_third(self, split, shard, *rest):
        if shard == 2:
            raise InputError("states of up to 7e4 don't fit in fp16")
        return real(self, split, shard, *rest)

    monkeypatch.setattr(Extraction, "_shard_parts", fails_at_the_third)
    with pytest.raises(InputError, match="don't fit"):
        extract_features.run(config, tmp_path / "f")
    assert len(list((tmp_path / "f" / "ledger").iterdir())) == 2
    monkeypatch.undo()
    extract_features.run(config, tmp_path / "f")
    assert payload_of(tmp_path / "f") == payload_of(whole)


def payload_of(path):
    """What does not tell the device it was made on."""
    return {name: data for name, data in content(path).items() if name.startswith(("features.zarr", "ledger"))}


@pytest.fixture(scope="module")
def config(whole):
    """What `whole` was made with."""
    return from_dict(ExtractConfig, {**FeatureStore(whole).artifact.config, "device": "cpu"})


@pytest.fixture
def unsealed(whole, tmp_path):
    """A copy of `whole` that lacks its last shard."""
    path = shutil.copytree(whole, tmp_path / "features")
    ledger.forget(path, [("validation-00000", "")])
    return path


def replace_in(path, old, new):
    written = path.read_text()
    assert written.count(old) == 1
    path.write_text(written.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"), [('"shard": 1', '"shard": 0'), ('"rows": 16', '"rows": 17'), ('{\n  "split"', '[\n  "split"')]
)
def test_a_record_that_was_changed_before_the_seal_serves_nothing_and_is_made_again(config, whole, unsealed, old, new):
    replace_in(unsealed / "ledger" / "train-00001.json", old, new)
    with pytest.raises(InputError, match=r"train-00001.json is damaged; run `ldlm features repair"):
        FeatureStore(unsealed, allow_partial=True)
    extract_features.run(config, unsealed)
    assert content(unsealed) == content(whole)


def test_shards_that_are_gone_before_the_seal_are_all_made_again_by_one_run(config, whole, unsealed):
    """Of one a file is gone, of one it is short, of one the record is torn, of one there is nothing."""
    (unsealed / "features.zarr/hidden/c/1/0/0").unlink()
    (unsealed / "features.zarr/tokens/c/0/0").write_bytes(b"short")
    (unsealed / "ledger/train-00002.json").write_text('{"split": "tr')
    extract_features.run(config, unsealed)
    assert content(unsealed) == content(whole)


@pytest.mark.parametrize("name", ["std/c/0", "mean/c/0", "zarr.json", "hidden/zarr.json", "tokens/zarr.json"])
@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_metadata_and_statistics_that_were_damaged_before_the_seal_are_refused_until_repaired(
    config, whole, unsealed, notes, name, damage
):
    path = unsealed / "features.zarr" / name
    if damage == "missing":
        path.unlink()
    else:
        damaged_at(path, lambda size: (size // 2, 0))
    complaint = rf"{path} .*; run `ldlm features repair"
    with pytest.raises(InputError, match=complaint):
        FeatureStore(unsealed, allow_partial=True)
    with pytest.raises(InputError, match=complaint):
        extract_features.run(config, unsealed, progress=notes)
    assert "encode" not in notes.begun  # it is said before the work, and not after it
    assert features.repair(unsealed, device="cpu")[1].complete
    assert content(unsealed) == content(whole)


def test_a_description_that_was_damaged_before_the_seal_is_refused_until_repaired(config, whole, unsealed):
    replace_in(unsealed / "store.json", '"vocab_size": 320', '"vocab_size": 321')
    with pytest.raises(InputError, match=r"store.json is damaged.*; run `ldlm features repair"):
        FeatureStore(unsealed, allow_partial=True)
    with pytest.raises(InputError, match=r"store.json is damaged.*; run `ldlm features repair"):
        extract_features.run(config, unsealed)
    assert features.repair(unsealed, device="cpu")[1].complete
    assert content(unsealed) == content(whole)


def test_statistics_that_vanish_after_the_store_was_opened_are_not_zeros(whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "features")
    opened = FeatureStore(path)
    (path / "features.zarr/std/c/0").unlink()
    with pytest.raises(InputError, match=r"features.zarr/std .*; run `ldlm features repair"):
        opened.statistics()


def test_a_shard_of_an_extraction_that_was_overwritten_is_not_sealed_with_the_others(few, tmp_path):
    """Its process comes to life again when another has begun, with another layer, in the same place."""
    out, other = tmp_path / "features", replace(few, layer=-1)
    late, _ = prepare(few, out)
    late.pack(), late.encode_sample(), late.describe()
    begun, _ = prepare(other, out, overwrite=True)
    begun.pack(), begun.encode_sample(), begun.describe()
    late._in_turn, late.spool.read = lambda items: items[1:2], lambda block, shape: None
    late.own_seal.check = lambda: None  # it was stopped right after its last look
    late.tokens = begun.tokens  # the same rows, which it had read before they went
    late.write_shards()
    assert [path.name for path in (out / "ledger").iterdir()] == ["train-00001.json"]
    extract_features.run(other, out)
    assert payload_of(out) == payload_of(extract_features.run(other, tmp_path / "alone").path)


def test_a_process_that_finds_the_token_rows_removed_finds_the_store_sealed(few, whole, tmp_path, monkeypatch):
    out = tmp_path / "features"

    def overtaken(self, hand_out=None):
        """Another process does it all, as if no lock had kept it from this one's part."""
        monkeypatch.undo()
        extract_features.run(few, out)
        self.tokens["train"].read(0, 1)

    monkeypatch.setattr(Extraction, "encode_sample", overtaken)
    assert extract_features.run(few, out).complete
    assert features.verify(out) == []
    with pytest.raises(FileNotFoundError), monkeypatch.context() as patched:
        patched.setattr(Extraction, "encode_sample", lambda self, hand_out: (tmp_path / "absent").stat())
        extract_features.run(few, tmp_path / "other")


def test_nobody_overwrites_or_repairs_what_a_process_writes(few, tmp_path):
    out, tried = tmp_path / "features", []

    class Meddler(Progress):
        """Somebody else, while the shards are encoded."""

        def task(self, name, total, unit, done=0):
            if name == "encode":
                for meddle in (
                    lambda: extract_features.run(replace(few, layer=-1), out, overwrite=True),
                    lambda: features.repair(out, device="cpu"),
                ):
                    with pytest.raises(InputError, match=f"another process is at work in {out}"):
                        meddle()
                    tried.append(meddle)
            return super().task(name, total, unit, done)

    extract_features.run(few, out, progress=Meddler())
    assert len(tried) == 2
    assert features.verify(out) == []
    assert FeatureStore(out).encoder["layer"] == -3


def test_nobody_writes_what_is_being_repaired(few, tmp_path):
    out = tmp_path / "features"
    prepare(few, out)
    with locks.exclusive_lock(out), pytest.raises(InputError, match=f"another process has {out} to itself"):
        extract_features.run(few, out)


def test_more_shards_than_five_digits_are_in_the_order_of_their_numbers(whole):
    opened = FeatureStore(whole)
    record = opened.records["train-00000"]
    opened.records = {f"train-{n:05d}": {**record, "shard": n} for n in (100000, 99999)}
    opened.records = dict(sorted(opened.records.items()))
    assert list(opened.records) == ["train-100000", "train-99999"]
    assert opened.split("train").shards == (99999, 100000)


def test_a_worker_that_comes_late_finds_the_store_complete(start, arguments, whole):
    before = content(whole)
    assert start(arguments, whole).wait(timeout=patience()) == 0
    assert content(whole) == before
