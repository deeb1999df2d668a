"""Training that is told to stop, at any time: one checkpoint, exit status 75, and the same command ends as if never
stopped."""

import errno
import json
import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import forked
import pytest
import torch
from folders import metrics
from patience import patience

from ldlm import config as configs
from ldlm import files, locks
from ldlm.config import TrainConfig
from ldlm.errors import InputError, Stopped, StorageError
from ldlm.progress import Progress, Task
from ldlm.runtime import Stop
from ldlm.stages import extract_features, train
from ldlm.training import checkpoint
from ldlm.training.ema import EMA
from ldlm.training.log import MetricsFile


def final(run):
    """Every byte of the newest checkpoint, and the metrics without their timings."""
    newest = checkpoint.all_in(run / "checkpoints")[-1].path
    return {path.name: path.read_bytes() for path in newest.iterdir()}, metrics(run)


@pytest.fixture(scope="module")
def config(train_config):
    """More epochs than one (there are 200 rows and more), with a refresh of p every 3 steps."""
    return replace(train_config, steps=30, batch_size=16, eval_every=10, save_every=25, log_every=1)


@pytest.fixture(scope="module")
def whole(config, store, tmp_path_factory):
    """The run that nobody stopped."""
    return train.run(config, store, tmp_path_factory.mktemp("whole") / "run").path


# Step 1; inside the warm-up, which takes 4; on a refresh of p; before, on and after an evaluation; a checkpoint's own
# step; the last of an epoch and the one after; the step before the last, and the last.
@pytest.mark.parametrize(
    "at", [1, 20, 25, 30, *(pytest.param(at, marks=pytest.mark.slow) for at in (2, 3, 19, 21, 26, 27, 29))]
)
def test_a_stopped_run_ends_bit_for_bit_like_one_that_was_not(config, whole, store, tmp_path, stopped_at, at):
    with pytest.raises(Stopped, match=f"stopped by SIGTERM at step {at}, and saved"):
        train.run(config, store, tmp_path / "run", progress=stopped_at(at))
    saved = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert saved.step == at
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"], status["saved"]) == ("stopped", at, at)
    train.run(config, store, tmp_path / "run")
    assert final(tmp_path / "run") == final(whole)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "complete"


def test_the_epochs_end_is_among_the_steps_above(config, store):
    from ldlm.features.store import FeatureStore

    rows = FeatureStore(store).split("train").rows
    assert 25 <= rows // config.batch_size <= 26


def test_a_run_stopped_twice_ends_like_one_that_was_not(config, whole, store, tmp_path, stopped_at):
    for at in (5, 22):
        with pytest.raises(Stopped):
            train.run(config, store, tmp_path / "run", progress=stopped_at(at))
    train.run(config, store, tmp_path / "run")
    assert final(tmp_path / "run") == final(whole)


# A signal that comes between a file's opening and its `with` leaves the closing to the collector, which warns of it.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning")
def test_a_run_stopped_at_random_times_ends_like_one_that_was_not(train_config, store, tmp_path):
    """It evaluates at every step, so that most signals come while it evaluates, and some before its first step."""
    config = replace(train_config, steps=40, eval_every=1, save_every=1000)
    train.run(config, store, tmp_path / "whole")
    chance, stops = random.Random(0), 0
    for _ in range(200):
        timer = threading.Timer(chance.uniform(0, 0.4), os.kill, (os.getpid(), signal.SIGTERM))
        old = signal.signal(signal.SIGTERM, lambda *_: None)  # one that comes when the run is over does nothing
        timer.start()
        try:
            train.run(config, store, tmp_path / "run")
            break
        except Stopped:
            stops += 1
        finally:
            timer.cancel()
            timer.join()
            signal.signal(signal.SIGTERM, old)
    assert stops > 1
    assert final(tmp_path / "run") == final(tmp_path / "whole")


@pytest.mark.parametrize("swap", [1, 2])  # to the averaged weights, and back
def test_a_signal_between_two_swapped_weights_does_not_mix_them(config, whole, store, tmp_path, monkeypatch, swap):
    real, swaps = torch.nn.Module.named_parameters, 0

    def signalled(module, *arguments, **options):
        nonlocal swaps
        swapping = sys._getframe(1).f_code is EMA._swap.__wrapped__.__code__
        swaps += swapping
        for number, named in enumerate(real(module, *arguments, **options)):
            if swapping and (swaps, number) == (swap, 3):
                signal.raise_signal(signal.SIGTERM)
            yield named

    monkeypatch.setattr(torch.nn.Module, "named_parameters", signalled)
    with pytest.raises(Stopped, match="at step 10, and saved"):
        train.run(config, store, tmp_path / "run")
    train.run(config, store, tmp_path / "run")
    assert final(tmp_path / "run") == final(whole)


def test_a_signal_is_answered_at_once_where_nothing_happens():
    started, before = time.perf_counter(), signal.getsignal(signal.SIGINT)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with Stop() as stop:
        assert stop.interruptible(queue.Queue().get) is None  # data that never comes
        assert stop.interruptible(lambda: 1) is None  # nor is anything begun after it
    assert time.perf_counter() - started < patience()
    assert stop.wished == "SIGINT"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_read_that_hangs_does_not_keep_the_checkpoint_waiting(config, store, tmp_path, monkeypatch):
    """The checkpoint is there before the stream has come to an end."""
    from ldlm.features.store import Split

    out, real, calls, hangs = tmp_path / "run", Split.load, 0, threading.Event()

    def load(split, rows, into=None):
        nonlocal calls
        calls += into is not None
        if calls == 3:  # two windows are read ahead
            hangs.wait(patience())
        return real(split, rows, into)

    def stop_then_look():
        while not (out / "checkpoints" / "step-00000025").exists():
            time.sleep(0.01)
        time.sleep(0.5)  # it goes on to the end of what has been read
        os.kill(os.getpid(), signal.SIGTERM)
        ends = time.monotonic() + patience() / 2
        while json.loads((out / "status.json").read_text())["state"] != "stopped" and time.monotonic() < ends:
            time.sleep(0.01)
        seen.append(json.loads((out / "status.json").read_text()))
        hangs.set()

    seen = []
    monkeypatch.setattr(Split, "load", load)
    watcher = threading.Thread(target=stop_then_look)
    watcher.start()
    with pytest.raises(Stopped):
        train.run(replace(config, steps=400, eval_every=1000), store, out)
    watcher.join()
    (status,) = seen
    assert status["state"] == "stopped"
    assert checkpoint.latest(out / "checkpoints").step == status["step"] >= 25


def test_a_signal_in_the_last_evaluations_record_does_not_lose_it(config, whole, store, tmp_path, monkeypatch):
    real = MetricsFile.write

    def write(metrics, step, kind, figures, **timing):
        if (step, kind) == (30, "eval"):
            signal.raise_signal(signal.SIGTERM)
        real(metrics, step, kind, figures, **timing)

    monkeypatch.setattr(MetricsFile, "write", write)
    train.run(config, store, tmp_path / "run")
    assert final(tmp_path / "run") == final(whole)


def test_the_status_says_what_became_of_the_run(train_config, store, tmp_path, stopped_at):
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train.run(replace(train_config, steps=60), store, out, progress=stopped_at(5))
    assert json.loads((out / "status.json").read_text())["state"] == "stopped"
    config = poisoned(train_config, steps=60, max_nonfinite=0)
    with pytest.raises(InputError):
        train.run(config, store, tmp_path / "failed")
    status = json.loads((tmp_path / "failed" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "not finite" in status["reason"]
    assert status["saved"] == 0  # as docs/files.md says


def test_the_time_is_that_of_all_calls(train_config, store, tmp_path, stopped_at):
    """An hour before the signal, and one before more steps were wanted; earlier versions wrote no `seconds`."""
    status, config = tmp_path / "run" / "status.json", replace(train_config, steps=20)

    def an_hour_earlier():
        files.write_json(status, {**(told := files.read_json(status)), "seconds": told["seconds"] + 3600})

    with pytest.raises(Stopped):
        train.run(config, store, tmp_path / "run", progress=stopped_at(5))
    assert 0 <= files.read_json(status)["seconds"] < 3600
    an_hour_earlier()
    once = train.run(config, store, tmp_path / "run").manifest["seconds"]
    assert 3600 <= once < 7200
    an_hour_earlier()
    assert once + 3600 <= train.run(replace(config, steps=21), store, tmp_path / "run").manifest["seconds"] < 10800

    files.write_json(status, {key: value for key, value in files.read_json(status).items() if key != "seconds"})
    assert train.run(replace(config, steps=22), store, tmp_path / "run").manifest["seconds"] < 3600
    status.write_text("{")
    assert train.run(replace(config, steps=23), store, tmp_path / "run").manifest["seconds"] < 3600


def test_a_plot_that_fails_stops_no_run(train_config, store, tmp_path, notes, monkeypatch):
    from ldlm.pages import plots

    monkeypatch.setattr(plots, "dynamics", lambda *_: 1 / 0)
    assert train.run(replace(train_config, plots=True), store, tmp_path / "run", progress=notes).complete
    assert [line for line in notes.lines if "no plots (ZeroDivisionError" in line]


@pytest.fixture
def endless(start, store, tmp_path, tiny_yaml):
    """Start a training of very many steps as a process of its own; waits until it has logged some."""
    begun = []

    def begin(*arguments):
        out = tmp_path / "run"
        command = ["train", "--features", str(store), "--config", str(tiny_yaml), "--steps", "1000000", *arguments]
        begun.append(start(command, out, stderr=subprocess.PIPE))
        ends = time.monotonic() + patience(300)
        while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_text().count("\n") < 3:
            assert begun[-1].poll() is None, begun[-1].stderr.read().decode()
            assert time.monotonic() < ends
            time.sleep(0.05)
        return begun[-1], out

    yield begin
    for process in begun:
        process.kill()
        if not process.stderr.closed:
            process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_leaves_with_status_75_and_one_line(endless, number):
    process, out = endless()
    process.send_signal(number)
    error = process.communicate(timeout=patience())[1].decode()
    assert process.returncode == 75
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith(f"{out}: stopped by {number.name} at step ")
    assert error.splitlines()[-1].endswith("and saved; the same command continues from there")
    status = json.loads((out / "status.json").read_text())
    assert checkpoint.latest(out / "checkpoints").step == status["step"] > 0


SIGNALS_IN_A_LONG_STEP = """
import os, signal, sys, threading, time
from pathlib import Path
from ldlm import config, files
from ldlm.progress import Progress, Task
from ldlm.runtime import REPEATED
from ldlm.stages import train

settings, store, out, still = map(Path, sys.argv[1:5])

def signals():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(REPEATED / 3)
    os.kill(os.getpid(), signal.SIGTERM)  # the launcher's repetition of the first, which is nothing new
    time.sleep(2 * REPEATED)
    still.touch()
    while True:  # on a loaded machine the first may have been heard late, and the next count with it
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2 * REPEATED)

class LongStep(Task):
    def advance(self, count, **figures):
        threading.Thread(target=signals).start()
        time.sleep(float(sys.argv[5]))

class LongSteps(Progress):
    def task(self, name, *given, **named):
        return LongStep() if name == "train" else Task()

train.run(config.stored_training(files.read_yaml(settings)), store, out, progress=LongSteps())
"""


def test_a_second_signal_leaves_at_once(tiny_yaml, store, tmp_path):
    out, still = tmp_path / "run", tmp_path / "still"
    arguments = (tiny_yaml, store, out, still, patience())
    assert forked.run(SIGNALS_IN_A_LONG_STEP, *map(str, arguments)).returncode == -signal.SIGTERM
    assert still.exists()  # the repetition ended nothing
    assert checkpoint.all_in(out / "checkpoints") == []


def test_two_processes_do_not_train_in_one_folder(endless, refuse, store, tiny_yaml):
    process, out = endless()
    command = ("train", "--features", store, "--config", tiny_yaml, "--steps", 1000000, "--output", out)
    for arguments in (command, (*command, "--overwrite")):
        assert f"another process is at work in {out}" in refuse(*arguments)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=patience()) == 75


def test_a_lock_goes_with_its_process(tmp_path):
    busy = pytest.raises(InputError, match="another process")
    with locks.exclusive_lock(tmp_path), busy, locks.exclusive_lock(tmp_path):
        pass
    with locks.exclusive_lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------------------
# Rows that can't be read


@pytest.fixture(scope="module")
def in_windows(config):
    """Of two chunks each, with a checkpoint at the end only."""
    return replace(config, shuffle_rows=32, save_every=1000)


@pytest.fixture(scope="module")
def whole_in_windows(in_windows, store, tmp_path_factory):
    """The run whose rows could all be read."""
    return train.run(in_windows, store, tmp_path_factory.mktemp("windows") / "run").path


def assert_failed_and_saved(out, reason):
    status = files.read_json(out / "status.json")
    assert (status["state"], status["reason"]) == ("failed", reason)
    assert checkpoint.latest(out / "checkpoints").step == status["step"] == status["saved"] > 0
    assert metrics(out, "train")[-1]["step"] == status["step"]


@pytest.mark.parametrize("rows", ["train", "validation"])
def test_a_damaged_chunk_costs_no_step(in_windows, whole_in_windows, store_copy, tmp_path, notes, rows):
    """Neither in a batch nor in an evaluation, and once it is mended the run ends as if it had been whole."""
    name = "hidden/c/4/0/0" if rows == "train" else "validation/hidden/c/0/0/0"
    path, out = store_copy / "features.zarr" / name, tmp_path / "run"
    good = path.read_bytes()
    path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    reason = f"{path} is damaged: a checksum is wrong; run `ldlm features repair` on the store"
    with pytest.raises(InputError, match=re.escape(reason)):
        train.run(in_windows, store_copy, out, progress=notes)
    assert_failed_and_saved(out, f"InputError: {reason}")
    step = files.read_json(out / "status.json")["step"]
    assert step == 10 or rows == "train"
    assert notes.lines[-1] == f"{out}: saved at step {step}, from where the same command continues"
    path.write_bytes(good)
    train.run(in_windows, store_copy, out)
    assert final(out) == final(whole_in_windows)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), StorageError("the service is away")])
def test_a_disk_or_a_service_that_fails_costs_no_step(in_windows, store, tmp_path, monkeypatch, error):
    from ldlm.features.store import Split

    out, real, windows = tmp_path / "run", Split.load, []

    def load(split, rows, into=None):
        windows.extend([rows] * (into is not None))
        if len(windows) == 5:
            raise error
        return real(split, rows, into)

    monkeypatch.setattr(Split, "load", load)
    with pytest.raises(type(error)):
        train.run(in_windows, store, out)
    assert_failed_and_saved(out, f"{type(error).__name__}: {error}")


@dataclass
class Swap(Progress):
    """Another store takes the place of one when the fifth step is reported."""

    store: Path
    other: Path
    seen: int = 0

    def task(self, name, total, unit, done=0):
        return SwapTask(self)


@dataclass
class SwapTask(Task):
    owner: Swap

    def advance(self, count, **figures):
        self.owner.seen += 1
        if self.owner.seen == 5:
            self.owner.store.rename(self.owner.store.with_name("before"))
            self.owner.other.rename(self.owner.store)


@pytest.mark.parametrize("method", ["ldlm", "mdlm"])
def test_a_store_that_replaces_another_is_not_evaluated(
    config, token_config, extract_config, other_gpt2, store_copy, tmp_path, method
):
    """All of training is read ahead here, in one window, so that an evaluation is the first to read the other."""
    config = config if method == "ldlm" else replace(token_config(method), steps=30, batch_size=16, eval_every=10)
    other = extract_features.run(replace(extract_config, encoder=str(other_gpt2)), tmp_path / "other").path
    out = tmp_path / "run"
    with pytest.raises(InputError, match=f"{store_copy} was replaced while it was read"):
        train.run(config, store_copy, out, progress=Swap(store_copy, other))
    assert checkpoint.latest(out / "checkpoints").step == files.read_json(out / "status.json")["step"] == 10
    assert metrics(out, "eval") == []
    store_copy.rename(tmp_path / "other")
    (tmp_path / "before").rename(store_copy)
    assert train.run(config, store_copy, out).manifest["step"] == 30


def test_an_error_of_the_program_in_the_stream_saves_nothing(in_windows, store, tmp_path, monkeypatch):
    from ldlm.features.stream import Stream

    real = Stream._batch
    monkeypatch.setattr(Stream, "_batch", lambda stream, position: real(stream, position) if position < 80 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.run(in_windows, store, tmp_path / "run")
    assert checkpoint.all_in(tmp_path / "run" / "checkpoints") == []


# ----------------------------------------------------------------------------------------------------------------------
# Batches that are not finite


def poisoned(config, **overrides):
    """Decaying weights by 60 % and more a step, without bound: some losses overflow."""
    data = {"steps": 60, "eval_every": 1000, "optimizer": {"lr": 3e4, "lr_warmup_steps": 0}, **overrides}
    return configs.from_dict(TrainConfig, configs.merge(configs.to_dict(config), data))


def test_a_batch_that_is_not_finite_changes_nothing_and_is_named(train_config, store, tmp_path, notes):
    config = poisoned(train_config, steps=8, max_nonfinite=60, save_every=1, keep=60)
    made = train.run(config, store, tmp_path / "run", progress=notes)
    skipped = [line for line in notes.lines if "is not finite" in line]
    assert made.manifest["skipped"] == len(skipped) > 2
    assert re.search(r"(loss|gradient) is not finite \(l_diff .*, l_h .*, l_w .*\) in rows \d+, ", skipped[0])
    step = int(skipped[0].split(":")[0].removeprefix("step "))
    before, after = (checkpoint.Checkpoint(tmp_path / f"run/checkpoints/step-{s:08d}") for s in (step - 1, step))
    for name in ("model", "ema", "optimizer"):
        old, new = before.tensors(name), after.tensors(name)
        assert all(old[key].equal(new[key]) for key in old)
    assert after.state["skipped"] == before.state["skipped"] + 1
    assert before.state["timesteps"] == after.state["timesteps"]


@pytest.mark.parametrize("most", [0, 3])
def test_too_many_of_them_end_the_run(train_config, store, tmp_path, notes, most):
    with pytest.raises(InputError, match=rf"{most + 1} such batches are too many \(--max-nonfinite {most}\)"):
        train.run(poisoned(train_config, max_nonfinite=most), store, tmp_path / "run", progress=notes)
    assert sum("is not finite" in line for line in notes.lines) == most


# ----------------------------------------------------------------------------------------------------------------------
# Trackers


def test_scalars_go_to_tensorboard_where_it_is_installed(train_config, store, tmp_path):
    pytest.importorskip("tensorboard", reason="it is the extra `tensorboard`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train.run(train_config, store, tmp_path / "run").path
    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    lines = [line for line in MetricsFile(run / "metrics.jsonl").read() if line["kind"] == "train"]
    events = found.Scalars("train/l_h")
    assert [event.step for event in events] == [line["step"] for line in lines]
    assert [event.value for event in events] == pytest.approx([line["l_h"] for line in lines])


def test_a_tracker_that_fails_stops_no_run(trained, train_config, store, tmp_path, notes):
    pytest.importorskip("tensorboard", reason="it is the extra `tensorboard`")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "artifact.json").write_bytes((trained / "artifact.json").read_bytes())
    (tmp_path / "run" / "tensorboard").write_text("a file where its folder should be")
    (tmp_path / "run" / "config.yaml").write_bytes((trained / "config.yaml").read_bytes())
    train.run(train_config, store, tmp_path / "run", progress=notes)
    assert sum("tensorboard is left out from here on" in line for line in notes.lines) == 1
    assert final(tmp_path / "run") == final(trained)
