"""Several processes on one batch: the rows, the losses and the timestep sampler are those of one process."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forks
from patience import patience

from ldlm import config as configs
from ldlm.config import TrainConfig
from ldlm.errors import InputError
from ldlm.features.shards import CHUNK_ROWS
from ldlm.features.store import FeatureStore
from ldlm.features.stream import RowOrder, Stream, places
from ldlm.runtime import World
from ldlm.stages import train
from ldlm.training import checkpoint
from ldlm.training.log import MetricsFile

CPU = torch.device("cpu")
TWO = {"launcher": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")}  # on a port that is free
QUICK = {"forks": Forks("job", 2)}  # where torchrun's own part is not the point


def lines(run, kind="train"):
    return [line for line in MetricsFile(run / "metrics.jsonl").read() if line["kind"] == kind]


def assert_same_losses(run, other):
    """To 1e-5, for sums of another order."""
    for kind in ("train", "eval"):
        mine, theirs = lines(run, kind), lines(other, kind)
        assert [line["step"] for line in mine] == [line["step"] for line in theirs]
        for one, two in zip(mine, theirs, strict=True):
            for name in ("l_diff", "l_h", "l_w", "token_accuracy", "latent_std", "latent_norm"):
                assert one[name] == pytest.approx(two[name], rel=1e-5), (one["step"], name)


# ----------------------------------------------------------------------------------------------------------------------
# Shares of a batch


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize(("batch_size", "shuffle_rows"), [(24, None), (48, None), (24, 32)])
def test_the_shares_of_all_processes_are_the_batch_of_one(store, world, batch_size, shuffle_rows):
    """Also over thirteen windows in an epoch, of some of which a process has no row."""
    opened = FeatureStore(store)
    split = opened.split("train")

    def batches(rank, size, steps=20):  # beyond the first epoch
        asked = {"batch_size": batch_size, "shuffle_rows": shuffle_rows}
        stream = Stream(split, **asked, seed=3, device=CPU, world=World(rank, size))
        stream.position = 2 * batch_size
        with stream:
            found = iter(stream)
            return [next(found) for _ in range(steps)]

    whole, shares = batches(0, 1), [batches(rank, world) for rank in range(world)]
    assert all(batch.index_B.tolist() == list(range(batch_size)) for batch in whole)
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        index_B = torch.cat([part.index_B for part in parts])
        assert sorted(index_B.tolist()) == list(range(batch_size))
        assert {len(part.tokens_BL) for part in parts} == {batch_size // world}
        assert {part.position for part in parts} == {batch.position}
        assert torch.equal(torch.cat([part.tokens_BL for part in parts]), batch.tokens_BL[index_B])
        assert torch.equal(torch.cat([part.hidden_BLD for part in parts]), batch.hidden_BLD[index_B])


def test_processes_read_few_chunks_in_common():
    rows = np.random.default_rng(0).permutation(512)  # a window of the paper's batch
    read = Counter(chunk for rank in range(8) for chunk in set(rows[places(rows, rank, 8)] // CHUNK_ROWS))
    assert len(read) == 512 // CHUNK_ROWS
    assert max(read.values()) == 1


def test_a_batch_goes_in_parts():
    from ldlm.features.batch import Batch

    batch = Batch(torch.arange(12.0).reshape(6, 2, 1), torch.arange(12).reshape(6, 2), torch.arange(6), 60)
    parts = batch.split(3)
    assert [part.index_B.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert torch.cat([part.hidden_BLD for part in parts]).equal(batch.hidden_BLD)
    assert {part.position for part in parts} == {60}
    assert [part.hidden_BLD for part in batch._replace(hidden_BLD=None).split(2)] == [None, None]


# ----------------------------------------------------------------------------------------------------------------------
# Parts of a step, and activations that are computed again


@pytest.fixture(scope="module")
def twenty(train_config, store, tmp_path_factory):
    """Twenty steps of one process."""
    return train.run(replace(train_config, steps=20), store, tmp_path_factory.mktemp("twenty") / "run").path


@pytest.mark.parametrize(
    "changes", [pytest.param({"accumulate": 2}, marks=pytest.mark.slow), {"accumulate": 8}, {"recompute": True}]
)
def test_what_saves_memory_changes_no_number(train_config, store, twenty, tmp_path, changes):
    made = train.run(replace(train_config, steps=20, **changes), store, tmp_path / "run").path
    assert_same_losses(made, twenty)
    if "recompute" in changes:  # the same sums in the same order
        weights = [checkpoint.latest(run / "checkpoints").tensors("model") for run in (made, twenty)]
        assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_recomputing_saves_activations(train_config, store):
    from ldlm.features.batch import Batch
    from ldlm.training.joint import start, train_step

    opened = FeatureStore(store)
    parts, tokens = opened.split("train").read(0, 8)
    tokens_BL = torch.from_numpy(tokens).long()
    batch = Batch(opened.split("train").states(parts, tokens_BL), tokens_BL, torch.arange(8), 0)
    saved = {}
    for recompute in (False, True):
        state = start(replace(train_config, recompute=recompute), opened.shapes, scratch=False, device=CPU)
        seen = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, seen=seen: (seen.append(t.nbytes), t)[1], lambda t: t):
            train_step(state, batch)
        saved[recompute] = sum(seen)
    assert saved[True] < 0.7 * saved[False]


def test_a_batch_that_can_not_be_divided_is_refused(train_config, store, tmp_path):
    refusal = r"batch_size=8 can't be divided evenly among 1 process with accumulate=3; choose a --batch-size that is a"
    with pytest.raises(InputError, match=refusal):
        train.run(replace(train_config, accumulate=3), store, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------------------
# torchrun


@pytest.fixture
def two(start, store, tiny_yaml):
    """Start a training of two processes, under torchrun unless told otherwise."""
    begun = []

    def begin(out, steps, *arguments, how=TWO):
        command = ["train", "--features", str(store), "--config", str(tiny_yaml), "--steps", str(steps), *arguments]
        begun.append(start(command, out, **how, stderr=subprocess.PIPE, start_new_session=True))
        return begun[-1]

    yield begin
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_lines(process, out, count):
    ends = time.monotonic() + patience()
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_text().count("\n") < count:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < ends
        time.sleep(0.1)


def workers(process):
    """Process ids of a job's processes."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in found]


# Under torchrun they train below as well, until one is killed.
@pytest.mark.parametrize("how", [QUICK, pytest.param(TWO, marks=pytest.mark.slow)], ids=["forked", "torchrun"])
def test_two_processes_train_as_one_does(two, twenty, tmp_path, how):
    process = two(tmp_path / "run", 20, how=how)
    error = process.communicate(timeout=patience())[1].decode()
    assert process.returncode == 0, error
    assert_same_losses(tmp_path / "run", twenty)
    states = [checkpoint.latest(run / "checkpoints").state["timesteps"] for run in (tmp_path / "run", twenty)]
    assert states[0]["p"] == pytest.approx(states[1]["p"], rel=1e-3)
    assert error.count("train  20/20 steps") == 1  # one of them reports


@pytest.mark.slow  # the two processes and the parts are tested each by themselves
def test_two_processes_with_parts_and_recomputation_train_as_one_does(two, twenty, tmp_path):
    process = two(tmp_path / "run", 20, "--accumulate", "2", "--recompute", "true")
    assert process.wait(timeout=patience()) == 0, process.stderr.read().decode()
    assert_same_losses(tmp_path / "run", twenty)


@pytest.mark.slow
def test_two_processes_train_both_phases_of_cosmos_as_one_does(two, tiny_yaml, store, tmp_path):
    cosmos = {"model": {"space": "cosmos"}, "cosmos": {"steps": 5}, "steps": 10}
    config = configs.from_dict(TrainConfig, configs.merge(json.loads(tiny_yaml.read_text()), cosmos))
    alone = train.run(config, store, tmp_path / "alone").path
    process = two(tmp_path / "run", 10, "--set", "model.space=cosmos", "--set", "cosmos.steps=5")
    assert process.wait(timeout=patience()) == 0, process.stderr.read().decode()
    assert_same_losses(tmp_path / "run", alone)


def test_batches_that_are_not_finite_end_a_job_as_they_end_one_process(two, tmp_path):
    broken = ("--set", "optimizer.lr=3e4", "--set", "optimizer.lr_warmup_steps=0", "--max-nonfinite", "1")
    process = two(tmp_path / "run", 60, *broken, how=QUICK)
    error = process.communicate(timeout=patience())[1].decode()
    assert process.returncode == 1
    assert error.count("2 such batches are too many (--max-nonfinite 1)") >= 1
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


def damage_for_rank_1(store, batch_size, shuffle_rows):
    """Flip a byte of a chunk that rank 1 of 2 reads at the fifth step or later, and rank 0 long after it."""
    split = FeatureStore(store).split("train")
    order, first = RowOrder(split.rows, 0, shuffle_rows), ({}, {})
    for step in range(split.rows // batch_size):
        rows = order.rows_at(step * batch_size, batch_size)
        for rank in (0, 1):
            for chunk in (rows[places(rows, rank, 2)] // CHUNK_ROWS).tolist():
                first[rank].setdefault(chunk, step)
    chunk = next(c for c, step in first[1].items() if step > 5 and first[0].get(c, 1000) > step + 10)
    shard, chunk = divmod(chunk, split.shard_rows // CHUNK_ROWS)
    path = store / f"features.zarr/hidden/c/{shard}/0/0"
    data = bytearray(path.read_bytes())
    index = np.frombuffer(data[-4 - 16 * (split.shard_rows // CHUNK_ROWS) : -4], "<u8").reshape(-1, 2)
    data[int(index[chunk, 0]) + 20] ^= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("how", [QUICK, pytest.param(TWO, marks=pytest.mark.slow)], ids=["forked", "torchrun"])
def test_what_one_process_can_not_read_is_saved_and_said_by_all(start, tiny_yaml, store_copy, tmp_path, how):
    path = damage_for_rank_1(store_copy, 8, 32)
    command = ["train", "--features", str(store_copy), "--config", str(tiny_yaml), "--steps", "1000"]
    once = ("--shuffle-rows", "32", "--save-every", "1000", "--eval-every", "1000")
    process = start([*command, *once], tmp_path / "run", **how, stderr=subprocess.PIPE)
    error = process.communicate(timeout=patience())[1].decode()
    assert process.returncode == 1
    reason = f"{path} is damaged: a checksum is wrong; run `ldlm features repair` on the store"
    assert f"Error: {reason}" in error
    if how is QUICK:  # torchrun adds a traceback of its own, and may end one process before it says anything
        assert (error.count(f"Error: {reason}"), error.count("Traceback")) == (2, 0), error
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("failed", f"InputError: {reason}")
    assert checkpoint.latest(tmp_path / "run" / "checkpoints").step == status["step"] == status["saved"] >= 5


def test_a_refusal_is_said_once_by_all_processes(two, train_config, store, tmp_path):
    train.run(replace(train_config, steps=2), store, tmp_path / "run")
    process = two(tmp_path / "run", 4, "--seed", "1", how=QUICK)
    error = process.communicate(timeout=patience())[1].decode()
    assert process.returncode == 1
    assert "seed: 0 -> 1" in error
    assert (
        error.count(f"Error: {tmp_path / 'run'} was made with other settings") == 2
    )  # each process says it in one line


def test_one_then_two_then_one_process_go_on_from_each_other(two, train_config, store, twenty, tmp_path):
    out = tmp_path / "run"
    train.run(replace(train_config, steps=6), store, out)
    process = two(out, 13, how=QUICK)
    assert process.wait(timeout=patience()) == 0, process.stderr.read().decode()
    train.run(replace(train_config, steps=20), store, out)
    for one, other in zip(lines(out), lines(twenty), strict=True):
        for name in ("l_diff", "l_h", "l_w"):
            assert one[name] == pytest.approx(other[name], rel=1e-5)


def test_a_stopped_job_leaves_one_checkpoint_and_goes_on(two, train_config, store, tmp_path):
    out = tmp_path / "run"
    process = two(out, 1_000_000, how=QUICK)
    wait_for_lines(process, out, 3)
    os.kill(workers(process)[1], signal.SIGTERM)  # not the one that writes
    assert process.wait(timeout=patience()) != 0
    status = json.loads((out / "status.json").read_text())
    assert status["state"] == "stopped"
    assert checkpoint.latest(out / "checkpoints").step == status["step"]
    steps = status["step"] + 2
    train.run(replace(train_config, steps=steps), store, out)
    train.run(replace(train_config, steps=steps), store, tmp_path / "alone")
    for one, other in zip(lines(out), lines(tmp_path / "alone"), strict=True):
        assert one["l_w"] == pytest.approx(other["l_w"], rel=1e-3)


@pytest.mark.parametrize("whom", ["both workers", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_whoever_is_told_to_stop_the_checkpoint_is_there(two, train_config, store, tmp_path, whom):
    out = tmp_path / "run"
    how = TWO if whom == "torchrun" else QUICK
    process = two(out, 1_000_000, "--eval-every", "1", how=how)  # so that it may well be evaluating
    wait_for_lines(process, out, 3)
    for pid in [process.pid] if whom == "torchrun" else workers(process):
        os.kill(pid, signal.SIGTERM)
    assert process.wait(timeout=patience()) != 0
    status = json.loads((out / "status.json").read_text())
    assert status["state"] == "stopped"
    assert checkpoint.latest(out / "checkpoints").step == status["step"] == status["saved"]
    assert not list((out / "checkpoints").glob(".*"))


def test_a_killed_process_ends_the_job(two, train_config, store, tmp_path):
    out = tmp_path / "run"
    process = two(out, 1_000_000)
    wait_for_lines(process, out, 8)
    os.kill(workers(process)[1], signal.SIGKILL)
    assert process.wait(timeout=patience()) != 0  # and not after the half hour that gloo would wait for it
    saved = checkpoint.latest(out / "checkpoints")
    assert saved is not None
    train.run(replace(train_config, steps=saved.step + 2), store, out)
