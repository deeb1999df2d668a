"""What a feature store survives: kills, several writers, flipped bits; and the tools that look after it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ldlm.stages import extract_features, features

from ldlm import store as stores
from ldlm.config import ExtractConfig, from_dict
from ldlm.errors import InputError, StorageError
from ldlm.store import FeatureStore


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
def whole(start, arguments, tmp_path_factory):
    """The extraction by one process that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "features"
    assert start(arguments, out).wait() == 0
    return out


def content(path):
    """Every file of a store, by name."""
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_several_processes_write_the_bytes_that_one_writes(start, arguments, whole, tmp_path):
    workers = [start(arguments, tmp_path / "f") for _ in range(3)]
    assert [process.wait(timeout=120) for process in workers] == [0, 0, 0]
    manifests = [json.loads((path / "manifest.json").read_text()) for path in (tmp_path / "f", whole)]
    assert manifests[0] == manifests[1]
    assert content(tmp_path / "f") == content(whole)


@pytest.mark.slow
def test_a_store_killed_a_hundred_times_is_the_store_that_nothing_disturbed(start, arguments, whole, tmp_path):
    """Half of the kills leave the store as it was found, to be killed again; a finished one begins anew."""
    chance = random.Random(0)
    out, kills, longest = tmp_path / "features", 0, 6.0
    while kills < 100:
        process = start(arguments, out)
        try:
            assert process.wait(timeout=chance.uniform(0, longest)) == 0
            assert content(out) == content(whole)
            shutil.rmtree(out)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    assert start(arguments, out).wait() == 0
    assert content(out) == content(whole)


def killed_at_every(step, start, arguments, tmp_path) -> int:
    """How many points `kill_points.py` found in an extraction of three shards, of which it tried every `step`-th."""
    text = Path(arguments[arguments.index("--data") + 1])
    few = tmp_path / "fewer.txt"
    few.write_text("".join(text.read_text(encoding="utf-8").splitlines(keepends=True)[:14]), encoding="utf-8")
    arguments = [str(few) if argument == str(text) else argument for argument in arguments]
    arguments[arguments.index("--validation-docs") + 1] = "4"
    whole = tmp_path / "whole"
    assert start(arguments, whole).wait() == 0
    (tmp_path / "scratch").mkdir()
    script = Path(__file__).parent / "kill_points.py"
    command = [sys.executable, str(script), str(whole), str(tmp_path / "scratch"), str(step), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_kill_at_some_renames_and_fsyncs(start, arguments, tmp_path):
    assert killed_at_every(83, start, arguments, tmp_path) > 100


@pytest.mark.slow
def test_a_kill_at_every_rename_and_fsync(start, arguments, tmp_path):
    assert killed_at_every(1, start, arguments, tmp_path) > 100


def test_torchrun_shares_the_work_and_a_store_may_change_hands(start, arguments, whole, tmp_path):
    """One process, killed; then two under torchrun, killed; then one to the end."""
    out = tmp_path / "features"

    def killed_after(process, shards):
        """Wait until that many shards are done, then kill the process and its children."""
        deadline = time.monotonic() + 120
        while len(list(out.glob("ledger/*.json"))) < shards:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2"]
    killed_after(start(arguments, out, start_new_session=True), 2)
    killed_after(start(arguments, out, launcher=launcher, start_new_session=True), 5)
    assert not (out / "manifest.json").exists()
    assert start(arguments, out).wait(timeout=120) == 0
    assert content(out) == content(whole)
    both = tmp_path / "both"
    assert start(arguments, both, launcher=launcher).wait(timeout=120) == 0
    assert content(both) == content(whole)


def test_a_full_disk_leaves_finished_shards_and_the_same_command_goes_on(arguments, whole, tmp_path):
    """A file-size limit below a shard of states stands for a full disk: the kernel refuses the write half-way."""
    out = tmp_path / "features"
    sizes = [path.stat().st_size for path in whole.rglob("hidden/c/*/0/0")]
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({max(sizes) - 1}, {max(sizes) - 1})); "
    command = [*arguments, "--output", str(out)]
    # The spool is larger than a shard, so the limit falls once it stands.
    code = (
        "import sys; from ldlm.cli import main; from ldlm.stages.extract_features import Extraction\n"
        "real = Extraction.write_shards\n"
        f"def write(self):\n    {limited}real(self)\n"
        "Extraction.write_shards = write\n"
        "main(sys.argv[1:])"
    )
    failed = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert failed.returncode == 1, failed.stderr
    (line,) = (line for line in failed.stderr.splitlines() if line.startswith("Error: "))
    assert "File too large" in line and "hidden/c/" in line and "run the same command again" in line
    done = {path.stem for path in (out / "ledger").iterdir()}
    for name in done:
        for entry, facts in json.loads((out / "ledger" / f"{name}.json").read_text())["files"].items():
            assert stores.fault(out / entry, facts["sha256"]) is None
    assert len(done) < len(list((whole / "ledger").iterdir()))
    assert subprocess.run([sys.executable, "-m", "ldlm.cli", *command], capture_output=True).returncode == 0
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


def test_a_flipped_bit_anywhere_is_noticed(whole, tmp_path):
    chance = random.Random(1)
    names = [name for name in content(whole) if not name.startswith("tokenizer/")]
    for _ in range(200):
        name = chance.choice(names)
        data = (whole / name).read_bytes()
        copy = tmp_path / "copy"
        shutil.copytree(whole, copy)
        damaged_at(copy / name, lambda size: (chance.randrange(size), chance.randrange(8)))
        try:
            found = features.verify(copy)
        except InputError:  # damage to artifact.json or the manifest, which say what it is
            found = [name]
        assert found, f"{name} of {len(data)} bytes"
        shutil.rmtree(copy)


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


def test_info_says_what_a_store_is_and_what_is_missing(whole, tmp_path, ldlm):
    shown = json.loads(ldlm("features", "info", whole, "--json").stdout)
    assert (shown["state"], shown["codec"]) == ("sealed", "fp16")
    assert shown["bytes_per_token"] > 0
    path = shutil.copytree(whole, tmp_path / "features")
    stores.forget(path, [("train-00000", "")])
    shown = json.loads(ldlm("features", "info", path, "--json").stdout)
    assert shown["state"].startswith(f"1 of {shown['shards'] + 1} shards")


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


def test_bench_compares_with_a_memory_map(whole):
    shown = features.bench(whole, batch_size=4, seconds=0.05)
    assert 0 < shown["ratio"] == pytest.approx(shown["rows_per_second"] / shown["memory_map_rows_per_second"])


def test_a_partial_store_is_read_when_it_is_allowed_and_has_the_rows_that_are_there(whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "features")
    stores.forget(path, [("train-00001", "")])
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
    with pytest.raises(InputError, match=r"--codec int8-token loses .* use --codec fp16"):
        extract_features.run(config, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_bad_states_in_a_late_shard_lose_none_of_the_earlier_ones(arguments, whole, tmp_path, monkeypatch):
    """Extraction that has just begun leaves nothing behind when it refuses; one with finished shards keeps them."""
    made_with = {**FeatureStore(whole).artifact.config, "device": "cpu"}
    config = from_dict(ExtractConfig, made_with)
    real = extract_features.Extraction._shard_parts

    def fails_at_the_third(self, split, shard, *rest):
        if shard == 2:
            raise InputError("states of up to 7e4 don't fit in fp16")
        return real(self, split, shard, *rest)

    monkeypatch.setattr(extract_features.Extraction, "_shard_parts", fails_at_the_third)
    with pytest.raises(InputError, match="don't fit"):
        extract_features.run(config, tmp_path / "f")
    assert len(list((tmp_path / "f" / "ledger").iterdir())) == 2
    monkeypatch.undo()
    extract_features.run(config, tmp_path / "f")
    assert payload_of(tmp_path / "f") == payload_of(whole)


def payload_of(path):
    """What does not tell the device it was made on."""
    return {name: data for name, data in content(path).items() if name.startswith(("features.zarr", "ledger"))}


def test_a_store_is_not_sealed_over_a_recorded_shard_that_is_gone(whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "features")
    (path / "manifest.json").unlink()
    (path / "features.zarr/hidden/c/1/0/0").unlink()
    made_with = {**FeatureStore(whole).artifact.config, "device": "cpu"}
    config = from_dict(ExtractConfig, made_with)
    with pytest.raises(StorageError, match=r"hidden/c/1/0/0 is not what was written; run the same command again"):
        extract_features.run(config, path)
    assert not (path / "manifest.json").exists()
    extract_features.run(config, path)
    assert payload_of(path) == payload_of(whole)


def test_more_shards_than_five_digits_are_in_the_order_of_their_numbers(whole):
    opened = FeatureStore(whole)
    record = opened.records["train-00000"]
    opened.records = {f"train-{n:05d}": {**record, "shard": n} for n in (100000, 99999)}
    opened.records = dict(sorted(opened.records.items()))
    assert list(opened.records) == ["train-100000", "train-99999"]
    assert opened.split("train").shards == (99999, 100000)


def test_a_worker_that_comes_late_finds_the_store_complete(start, arguments, whole):
    before, started = content(whole), time.monotonic()
    assert start(arguments, whole).wait(timeout=60) == 0
    assert content(whole) == before
    assert time.monotonic() - started < 60
