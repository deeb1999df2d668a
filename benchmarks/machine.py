"""Measured limits of a machine, of which other figures are shares; and how calls are timed."""

from __future__ import annotations

import ctypes
import gc
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ldlm.compute import DTYPES
from ldlm.training import cost

COPY_BYTES, FILE_BYTES = 2**28, 2**28


def card() -> str:
    """The first GPU with its memory and driver, as the driver's own tool names them; CUDA is not started.

    The tool may be absent or fail even if torch sees the GPU.
    """
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    return said.partition("\n")[0].strip() or "a GPU that nvidia-smi does not name"


def version(package: str) -> str | None:
    """Version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Limits:
    """Measured limits of one device."""

    flops: dict[str, float]  # FLOP/s of square matrix products by precision
    copy: float  # bytes/s that a copy within the device's memory reads and writes
    read: float  # bytes/s of a file that was just written, from the page cache

    def of(self, name: str) -> float:
        """The limit of that name: `read`, or matrix products in a precision."""
        return self.read if name == "read" else self.flops[name]

    def best(self, other: Limits) -> Limits:
        """The higher of each: a machine with other work is slow at times, and a limit is the most that it can do."""
        flops = {name: max(rate, other.flops[name]) for name, rate in self.flops.items()}
        return Limits(flops, max(self.copy, other.copy), max(self.read, other.read))


class Share(NamedTuple):
    """A rate as a share of a limit, which is final only when everything has been measured."""

    rate: float
    of: str


def settled(figures: Any, limits: Limits) -> Any:
    """Figures with every `Share` replaced by a number."""
    if isinstance(figures, Share):
        return figures.rate / limits.of(figures.of)
    if isinstance(figures, dict):
        return {name: settled(value, limits) for name, value in figures.items()}
    return [settled(value, limits) for value in figures] if isinstance(figures, list) else figures


def limits(device: torch.device, seconds: float = 1.0) -> Limits:
    """Measure the limits of this machine."""
    flops = {name: cost.matmul_flops(device, dtype, seconds) for name, dtype in DTYPES.items()}
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    copy = 2 * COPY_BYTES / timed(lambda: target.copy_(source), device, seconds).fastest
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        file.write_bytes(bytes(FILE_BYTES))
        memory = bytearray(FILE_BYTES)

        def read() -> None:
            with open(file, "rb", buffering=0) as opened:
                opened.readinto(memory)

        return Limits(flops, copy, FILE_BYTES / timed(read, torch.device("cpu"), seconds).fastest)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median: float  # for calls of several kinds, the mean of their kinds' medians
    fastest: float
    mean: float


def timed(
    work: Callable[[], Any],
    device: torch.device,
    seconds: float,
    *,
    warm: int = 2,
    count: int = 0,
    kinds: Sequence[bool] = (),
) -> Timing:
    """Time a call for about that many seconds, or exactly `count` times, after `warm` calls that don't count.

    `kinds` gives the kind of each call, and so their number.
    """
    for _ in range(warm):
        work()
    spent: list[float] = []
    count, ends = len(kinds) or count, time.perf_counter() + seconds
    while len(spent) < (count or 3) or (not count and time.perf_counter() < ends):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        spent.append(time.perf_counter() - started)
    kinds = kinds or [False] * len(spent)
    median = {kind: statistics.median(s for s, k in zip(spent, kinds, strict=True) if k == kind) for kind in set(kinds)}
    return Timing(statistics.mean(median[kind] for kind in kinds), min(spent), statistics.mean(spent))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Peak:
    """Peak bytes of the device's memory or, on a CPU, of the process."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Peak memory during the block beyond that before it, in bytes; None if the kernel doesn't tell."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # freed memory that glibc keeps would be reused without being counted
    found = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current size
        before = _status("VmRSS")
    except OSError:
        yield found
        return
    yield found
    found.bytes = _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
