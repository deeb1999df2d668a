"""Devices, threads, the processes of a job, and signals that ask it to stop."""

from __future__ import annotations

import datetime
import gc
import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ldlm import launcher
from ldlm.errors import InputError, Stopped

Result = TypeVar("Result")


def device(name: str) -> torch.device:
    """The device called `name`; `auto` is cuda if there is one. `InputError` if it is not available.

    Under torchrun or `srun` each process on a machine gets its own GPU, unless `name` has a number. On CPUs torchrun's
    get their shares of the cores.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (number := launcher.local_rank()) is not None:
        # Modulo, since a launcher may show each process only its own GPU, as number 0.
        name = f"cuda:{number % max(1, torch.cuda.device_count())}"
    try:
        found = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name!r} is not a device; use cpu, cuda, cuda:N or auto") from None
    if found.type == "cuda" and (not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here; use cpu")
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name} is not supported; use cpu, cuda, cuda:N or auto")
    if found.index is not None:
        torch.cuda.set_device(found)  # for collectives and libraries, which use the current device
    if found.type == "cpu":
        _share_cores()
    return found


def hardware() -> str:
    """The GPU, or the processor if there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


def occasion(device: torch.device | None = None) -> dict[str, str]:
    """The date, and the hardware on which something is measured now, for its record; no device means any of here."""
    on_processor = device is not None and device.type == "cpu"
    return {"date": datetime.date.today().isoformat(), "hardware": processor() if on_processor else hardware()}


def processor() -> str:
    """The processor and the number of its cores that this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"


def _share_cores() -> None:
    """Use each process's share of the cores: torchrun sets one thread per process, unless the user has set more."""
    processes = launcher.number("LOCAL_WORLD_SIZE") or 1
    if processes > 1 and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))


class LoneThread(threading.Thread):
    """A thread that carries out its torch operations on a CPU alone.

    If torch shared them with threads of its own, those would take cores from other work, and this one would wait for
    the last of them.
    """

    def start(self) -> None:
        """Start the thread; return when its torch operations stay in it."""
        self._alone, before = threading.Event(), torch.get_num_threads()
        super().start()
        self._alone.wait()
        torch.set_num_threads(before)  # the number of a thread is also that of threads that start later

    def run(self) -> None:
        torch.get_num_threads()  # the first call in a thread gives it the number of the others
        torch.set_num_threads(1)
        self._alone.set()
        super().run()


# ----------------------------------------------------------------------------------------------------------------------
# The processes of a job


@dataclass(frozen=True)
class World:
    """The processes of a job, as torchrun started them; without torchrun there is one."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place; float64 on the CPU is exact if all but one process add zeros."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))))

    def main_only(self, work: Callable[[], Result]) -> Result | None:
        """The result of `work` in the main process, and None in the others; all raise the main one's `InputError`.

        Otherwise the others would wait in vain for the main one.
        """
        result, refusal = None, None
        if self.main:
            try:
                result = work()
            except InputError as error:
                if self.size == 1:
                    raise
                refusal = str(error)
        refusal = self.from_main(refusal)
        if refusal is not None:
            raise InputError(refusal)
        return result

    def from_main(self, value: Any) -> Any:
        """Broadcast the main process's value, as JSON, since torch would send objects as pickles."""
        return self._sent(0, value)

    def first(self, value: Any) -> Any:
        """The value of the first process whose value is not None, as JSON, in all of them; None if there is none."""
        has = torch.zeros(self.size, dtype=torch.int64)
        has[self.rank] = value is not None
        ranks = self.sum(has).nonzero().flatten().tolist()
        return self._sent(ranks[0], value) if ranks else None

    def _sent(self, rank: int, value: Any) -> Any:
        """Broadcast the value of one process."""
        if self.size == 1:
            return value
        data = json.dumps(value).encode()
        count = torch.tensor(len(data))
        dist.broadcast(count, src=rank)
        sent = torch.zeros(int(count), dtype=torch.uint8)
        if self.rank == rank:
            sent[:] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(sent, src=rank)
        return json.loads(sent.numpy().tobytes())


ALONE = World()


@contextmanager
def world() -> Iterator[World]:
    """Join the job that this process is part of, and leave it at the end of the block.

    `InputError` if the launcher's variables don't say which part that is.
    """
    launcher.rank()
    if launcher.processes() == 1:
        yield ALONE
        return
    cuda = torch.cuda.is_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        gc.collect()  # a released DistributedDataParallel is a reference cycle, which holds the group until collected
        dist.destroy_process_group()


# ----------------------------------------------------------------------------------------------------------------------
# Signals


REPEATED = 0.3  # seconds; a launcher signalled together with its workers passes the signal on to them again


class Stop:
    """Records SIGTERM and SIGINT as a wish to stop; a second signal has its usual effect. Use as a context manager."""

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.wished: str | None = None  # name of the signal
        self._since = 0.0
        self._waiting = False
        self._pass_on: Callable[[], None] = lambda: None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # only the main thread may
            self._old = {number: signal.signal(number, self._note) for number in self.signals}
        return self

    def __exit__(self, *error: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wished is None:
            self.wished, self._since = signal.Signals(number).name, time.monotonic()
            self._pass_on()
            if self._waiting:
                raise Stopped
        elif time.monotonic() - self._since > REPEATED:
            self._pass_on()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    @contextmanager
    def passed_on(self, tell: Callable[[], None]) -> Iterator[None]:
        """Within the block, `tell` is called for the first signal, even if that came before, and for the second."""
        self._pass_on = tell
        try:
            if self.wished is not None:
                tell()
            yield
        finally:
            self._pass_on = lambda: None

    def interruptible(self, work: Callable[[], Result]) -> Result | None:
        """The result of `work`; None if a signal came before it, or interrupted it.

        `work` must not leave state half-changed, wherever it is interrupted.
        """
        with suppress(Stopped):
            self._waiting = True
            try:
                return work() if self.wished is None else None
            finally:
                self._waiting = False
        return None
