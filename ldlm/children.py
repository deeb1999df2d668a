"""Commands of ldlm as processes of their own, which no other process meets at work once their parent is gone.

A child holds the lock of its parent as well: if the parent is killed, the next process waits for the child. A signal
to the parent is passed on to the child.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldlm.runtime import Stop

LOOK_EVERY = 0.2  # seconds


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit status, what it printed, and what it took."""

    status: int
    printed: str
    seconds: float
    cpu_seconds: float


def run(words: Sequence[str], folder: Path, lock: int | None, stop: Stop) -> Ended:
    """Run an `ldlm` command in a folder; its child holds the `lock`, the descriptor of one that is `passed_on`."""
    started, cpu = time.perf_counter(), cpu_seconds()
    command = [sys.executable, "-P", "-m", "ldlm.cli", *words]
    with subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        pass_fds=[] if lock is None else [lock],
    ) as child:
        printed = _printed(child, stop)
    return Ended(child.returncode, printed, time.perf_counter() - started, cpu_seconds() - cpu)


def _printed(child: subprocess.Popen[str], stop: Stop) -> str:
    """The output of a child. A request to stop is passed on to it, once."""
    asked = False
    while True:
        try:
            printed, _ = child.communicate(timeout=LOOK_EVERY)
            return printed
        except subprocess.TimeoutExpired:
            if stop.wished and not asked:
                asked = True
                child.terminate()


def cpu_seconds() -> float:
    """CPU seconds of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
