"""Training beside other work: training steps on an idle machine, and with a busy process on every core.

What decides is how OpenMP's threads wait, and that is read from the environment when torch is loaded; so each way is
measured in its own process. `python -m benchmarks.loaded SECONDS` is such a process: it prints its steps per second.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldlm import waiting
from ldlm.cli import show

SECONDS = 3.0  # of each measurement
# The program of a busy process, which ends after its parent, however that one ends.
COMPUTE = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    for _ in range(10**6):\n        pass"
TURNS = 3  # of all ways, one after the other, so that a machine that slows down does so for all
WAYS: dict[str, dict[str, str]] = {
    "torch's own": {},
    "as the commands": {"GOMP_SPINCOUNT": str(waiting.SPIN_COUNT)},
    "sleeping at once": {"OMP_WAIT_POLICY": "PASSIVE"},
}


def run(folder: Path) -> list[dict[str, Any]]:
    """Measure everything, on the CPU, whatever other device there is."""
    return rows(SECONDS)


def rows(seconds: float) -> list[dict[str, Any]]:
    """Steps per second for each way, idle and loaded, and the loaded rate relative to a fair share of the machine.

    With one busy process per core and as many threads as cores, half of the machine is a fair share.
    """
    found: dict[str, dict[str, list[float]]] = {name: {"idle": [], "loaded": []} for name in WAYS}
    for _ in range(TURNS):
        for name, variables in WAYS.items():
            found[name]["idle"].append(_steps_per_second(variables, seconds))
            with busy(len(os.sched_getaffinity(0))):
                found[name]["loaded"].append(_steps_per_second(variables, seconds))
    return [_row(name, found[name], found["torch's own"]["idle"]) for name in WAYS]


def _row(name: str, rates: dict[str, list[float]], reference: list[float]) -> dict[str, Any]:
    idle, loaded = (statistics.median(rates[kind]) for kind in ("idle", "loaded"))
    return {
        "waiting": name,
        "idle": idle,
        "of_torch": idle / statistics.median(reference),
        "loaded": loaded,
        "of_fair_share": loaded / (0.5 * idle),
    }


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Run `count` processes that compute, with one thread each, during the block."""
    begun = [subprocess.Popen([sys.executable, "-P", "-c", COMPUTE, str(os.getpid())]) for _ in range(count)]
    try:
        yield
    finally:
        for process in begun:
            process.kill()
            process.wait()


def _steps_per_second(variables: dict[str, str], seconds: float) -> float:
    left = {k: v for k, v in os.environ.items() if k not in (*waiting.CHOSEN_BY_THE_USER, "OMP_NUM_THREADS")}
    command = [sys.executable, "-m", "benchmarks.loaded", str(seconds)]
    done = subprocess.run(command, env={**left, **variables}, check=True, capture_output=True, text=True)
    return float(done.stdout)


def report(figures: list[dict[str, Any]]) -> str:
    """The figures as text."""
    rows = [
        (row["waiting"], *(f"{row[key]:,.2f}" for key in ("idle", "of_torch", "loaded", "of_fair_share")))
        for row in figures
    ]
    head = (
        "training steps a second of the tiny preset, by how idle threads wait: alone, and with a busy process on\n"
        "every core, where half of the machine is a fair share"
    )
    return f"{head}\n\n" + show.table(("", "alone", "of torch's", "loaded", "of fair share"), rows)


def main(seconds: float) -> None:
    """Print training steps per second of the tiny preset with cached states, over at least `seconds` seconds."""
    import torch

    from benchmarks.speed import PLAIN, bench_of

    bench = bench_of(torch.device("cpu"))
    step = bench.step(PLAIN, bench.batch(), None)
    for _ in range(2):
        step()
    steps, started = 0, time.perf_counter()
    while steps < 3 or time.perf_counter() - started < seconds:
        step()
        steps += 1
    print(steps / (time.perf_counter() - started))


if __name__ == "__main__":
    main(float(sys.argv[1]))
