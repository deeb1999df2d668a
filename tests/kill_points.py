"""Kills an extraction before each of its renames, fsyncs and unlinks in turn, and resumes it.

    python tests/kill_points.py REFERENCE SCRATCH STEP ARGUMENT…

Every STEP-th point is tried. REFERENCE is the store that nothing disturbed; ARGUMENTS are the command's. Each attempt
is a fork of this process, which has imported everything and has no threads. Prints the number of points.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from ldlm.cli import main
from ldlm.stages import extract_features  # noqa: F401  imported before the forks

from ldlm.encoder import FrozenEncoder, load_tokenizer

POINTS = ("replace", "rename", "fsync", "unlink")


def run(arguments: list[str], kill_at: int | None) -> int:
    """Exit status of the command in a child that kills itself at that point; -9 when it came to it."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if kill_at is not None:
            _arm(kill_at)
        main(arguments)  # exits
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


def content(path: Path) -> dict[str, bytes]:
    """Every file of a store, by name."""
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


if __name__ == "__main__":
    reference, out, step = content(Path(sys.argv[1])), Path(sys.argv[2]) / "features", int(sys.argv[3])
    command = [*sys.argv[4:], "--output", str(out)]
    name = command[command.index("--encoder") + 1]
    load_tokenizer(name)
    FrozenEncoder(name)(torch.zeros(1, 4))  # what transformers imports late
    point = 1
    while (status := run(command, point)) == -signal.SIGKILL:
        assert not (out / "manifest.json").exists() or content(out).keys() >= reference.keys(), point
        assert run(command, None) == 0, point
        found = content(out)
        assert found == reference, (point, sorted(found.keys() ^ reference.keys()))
        assert [p.name for p in out.parent.iterdir()] == ["features"], point
        shutil.rmtree(out)
        point += step
    assert status == 0, (point, status)
    print(point - step)
