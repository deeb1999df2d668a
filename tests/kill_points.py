"""Kills an extraction, and resumes it.

    main(["every", STEP, REFERENCE, SCRATCH, ARGUMENT, …])
    main(["random", KILLS, REFERENCE, SCRATCH, ARGUMENT, …])

Before every STEP-th of its renames, links, fsyncs and unlinks in turn; or at that many random moments, where a killed
store is taken up to be killed again, and a finished one begins anew. REFERENCE is the store that nothing disturbed;
ARGUMENTS are the command's. Each attempt is a fork of this process, which has imported everything and has no threads,
so that its time is the work's. Prints the number of points; or how many kills found a partial store, and how many a
shard in it.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from folders import content

from ldlm.cli import main as ldlm
from ldlm.features.encoder import FrozenEncoder
from ldlm.hub import load_tokenizer
from ldlm.stages import extract_features  # noqa: F401  imported before the forks

POINTS = ("replace", "rename", "link", "fsync", "unlink")


def run(arguments: list[str], *, kill_at: int | None = None, kill_after: float | None = None) -> int:
    """Exit status of the command in a child; -9 when it came to the point, or the seconds, at which it is killed."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if kill_at is not None:
            _arm(kill_at)
        try:
            ldlm(arguments)
        except SystemExit as ended:
            os._exit(int(ended.code or 0))  # without the seconds that torch takes to leave
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)  # which does nothing to one that has ended: nobody has waited for it yet
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _arm(kill_at: int) -> None:
    passed = 0

    def armed(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            nonlocal passed
            passed += 1
            if passed == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    for name in POINTS:
        setattr(os, name, armed(getattr(os, name)))


def kill_at_every(step: int, command: list[str], out: Path, reference: dict[str, bytes]) -> int:
    """The number of points at which it was killed or could have been."""
    point = 1
    while (status := run(command, kill_at=point)) == -signal.SIGKILL:
        assert not (out / "manifest.json").exists() or content(out).keys() >= reference.keys(), point
        assert run(command) == 0, point
        compare(out, reference, point)
        point += step
    assert status == 0, (point, status)
    return point - step


def kill_at_random(kills: int, command: list[str], out: Path, reference: dict[str, bytes]) -> tuple[int, int]:
    """How many of the kills found a partial store, and how many one with a shard."""
    chance, partial, with_shard = random.Random(0), 0, 0
    started = time.monotonic()
    assert run(command) == 0
    longest = time.monotonic() - started
    compare(out, reference, "undisturbed")
    while kills:
        status = run(command, kill_after=chance.uniform(0, longest))
        if status == 0:
            compare(out, reference, kills)
            continue
        assert status == -signal.SIGKILL, status
        kills -= 1
        unsealed = (out / "artifact.json").exists() and not (out / "manifest.json").exists()
        partial += unsealed
        with_shard += unsealed and any((out / "ledger").glob("*.json"))
    assert run(command) == 0
    compare(out, reference, "at last")
    return partial, with_shard


def compare(out: Path, reference: dict[str, bytes], when: object) -> None:
    """Asserts that a store is the undisturbed one, without litter beside it, and removes it."""
    found = content(out)
    assert found == reference, (when, sorted(found.keys() ^ reference.keys()))
    assert [p.name for p in out.parent.iterdir()] == ["features"], when
    shutil.rmtree(out)


def main(given: list[str]) -> None:
    """For a process without threads, which the attempts are forks of."""
    how, count, reference, scratch = given[0], int(given[1]), content(Path(given[2])), Path(given[3])
    command = [*given[4:], "--output", str(scratch / "features")]
    name = command[command.index("--encoder") + 1]
    load_tokenizer(name)
    FrozenEncoder(name)(torch.zeros(1, 4))  # what transformers imports late
    kill = {"every": kill_at_every, "random": kill_at_random}[how]
    print(kill(count, command, scratch / "features", reference))
