"""Processes that help another to tokenise, on its machine, for as long as it lives.

A tokenizer's own threads wait for Python between batches, the longer the more there are; one process per core doesn't.
Where there are fewer pieces than cores, each process has as many threads as its share of the cores.

A helper imports neither torch nor transformers. It claims pieces as any other process does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import IO, Any

from ldlm.errors import InputError, Unreadable
from ldlm.features.shards import CORES
from ldlm.launcher import number
from ldlm.progress import Progress

# Exit status of a helper that found bad input, and of one that could not read it; each says on stderr what was wrong.
REFUSED, COULD_NOT_READ = 3, 4
# They tell the library tokenizers not to use threads of its own, and with how many to begin.
OWN_THREADS, THREADS = "TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS"


def workers() -> int:
    """Number of processes that should tokenise for this one: one for each core that it has to itself.

    RAYON_NUM_THREADS, which tells the library tokenizers how many threads to use, may lower it.
    """
    processes, mine = number("LOCAL_WORLD_SIZE") or 1, number("LOCAL_RANK")
    # Cores that are left over go to the first processes, one each: who has more gets through more pieces.
    share = CORES // processes + (mine is not None and mine < CORES % processes)
    return max(1, min(share, number(THREADS) or share))


def divided(pieces: int) -> tuple[int, int]:
    """The number of processes for so many pieces, this one included, and of threads of the tokenizer in each."""
    cores = workers()
    processes = max(1, min(pieces, cores))
    return processes, cores // processes


@contextmanager
def own_threads(count: int | None) -> Iterator[None]:
    """Within the block, the tokenizer has `count` threads, here and in processes that are started; None: as it has.

    A tokenizer that has used threads in this process before keeps as many: here only a count of 1 can change that.
    """
    before = {name: os.environ.get(name) for name in (OWN_THREADS, THREADS)}
    if count is not None:
        os.environ[THREADS] = str(count)
    if count == 1:
        os.environ[OWN_THREADS] = "false"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class Helpers:
    """Within a block, `count` processes that help with a task of `packing`.

    One that dies is reported, and the others do its part.
    """

    def __init__(self, count: int, task: Mapping[str, Any], progress: Progress) -> None:
        self.count, self.task, self.progress = count, task, progress
        self._running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def __enter__(self) -> Helpers:
        share = self.task["share"]  # this machine's; the process that is helped has the first part
        try:
            for number in range(1, self.count + 1):
                part = share and share.part(number, self.count + 1)
                self._start(json.dumps({**self.task, "share": part}).encode())
        except OSError as error:  # the machine has no memory or processes left
            self.progress.note(f"{len(self._running)} of {self.count} tokenisation helpers started ({error})")
        return self

    def _start(self, task: bytes) -> None:
        said = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the helper runs
        command = [sys.executable, "-P", "-m", "ldlm.features.helping"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said)
        self._running.append((process, said))
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # its end is reported like any other
            process.stdin.write(task + b"\n")
            process.stdin.flush()

    def check(self) -> None:
        """`InputError` for bad input that a helper has found; a note about one that has died."""
        for process, said in list(self._running):
            if (status := process.poll()) is not None:
                self._running.remove((process, said))
                _end(process)
                said.seek(0)
                with said:
                    last = (said.read().decode(errors="replace").strip().splitlines() or [""])[-1]
                if status in (REFUSED, COULD_NOT_READ):
                    raise (InputError if status == REFUSED else Unreadable)(last)
                if status:
                    reason = f" ({last})" if last else ""
                    self.progress.note(f"a tokenisation helper ended with {status}{reason}; others do its part")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.check()
        finally:
            for process, said in self._running:
                _end(process)
                said.close()
            self._running.clear()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close a helper's stdin, which ends it, and wait for that."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.wait()
