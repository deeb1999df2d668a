"""Training beside other work: a step on an idle machine and one with a busy process on every core.

How OpenMP's threads wait decides it, and they read that from the environment when torch is loaded; so each way is
measured in a process of its own. `python -m benchmarks.loaded SECONDS` is such a process: it prints its steps a second.
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
TURNS = 3  # of each way, one after the other, so that a machine that grows slower does so for all
WAYS: dict[str, dict[str, str]] = {
    "torch's own": {},
    "as the commands": {"GOMP_SPINCOUNT": str(waiting.SPIN_COUNT)},
    "sleeping at once": {"OMP_WAIT_POLICY": "PASSIVE"},
}


def run(folder: Path) -> list[dict[str, Any]]:
    """Measure everything, on a CPU, whatever other device there is."""
    return rows(SECONDS)


def rows(seconds: float) -> list[dict[str, Any]]:
    """Steps a second of each way, idle and loaded, and the share of the fair share that the loaded one is.

    With one busy process per core and as many threads as cores, half of the machine is fair.
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
    """So many processes that compute within the block, one thread each."""
    begun = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
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
    """Print the training steps a second of the tiny preset with cached states, over at least so many seconds."""
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
