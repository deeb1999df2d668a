"""Commands of ldlm as processes of their own, which no other process meets at work once their parent is gone.

A child holds the lock of its parent as well: if the parent is killed, the next process waits for the child. Signals to
the parent are passed on to the child, which gets them from nobody else: a terminal's Ctrl-C would come to it twice.
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
    child = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        pass_fds=[] if lock is None else [lock],
        start_new_session=True,  # where no signal of the terminal comes
    )
    with child, stop.passed_on(child.terminate):
        printed, _ = child.communicate()
    return Ended(child.returncode, printed, time.perf_counter() - started, cpu_seconds() - cpu)


def cpu_seconds() -> float:
    """CPU seconds of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
