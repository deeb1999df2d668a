"""Extracts a store on two nodes that see no lock of each other's, and whose leases last a second.

    main(["together", REFERENCE, SCRATCH, ARGUMENT, …])
    main(["stopped", REFERENCE, SCRATCH, POINT, ARGUMENT, …])

Both at once; or one that stops before it gives a file its name, one that ends with POINT, until the other has sealed
the store, and then goes on. The nodes are forks of this process, with folders of locks of their own. REFERENCE is the
store of one process, which both must end with.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from kill_points import content

from ldlm import leases, presence
from ldlm.cli import main as ldlm
from ldlm.features.encoder import FrozenEncoder
from ldlm.hub import load_tokenizer
from ldlm.stages import extract_features  # noqa: F401  imported before the forks


def node(name: str, scratch: Path, arguments: list[str], point: str | None = None) -> int:
    """The id of a process on a node of its own."""
    child = os.fork()
    if child == 0:
        _blind(name, scratch / f"locks-{name}")
        os.environ["RAYON_NUM_THREADS"] = "1"  # a helper would be on a third
        quiet = os.open(scratch / f"said-{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if point is not None:
            for call in ("link", "replace"):
                setattr(os, call, _stopping(getattr(os, call), point))
        try:
            ldlm(arguments)
        except SystemExit as ended:
            os._exit(int(ended.code or 0))
    return child


def _blind(name: str, own: Path) -> None:
    real = leases.Leases.__init__

    def init(self: leases.Leases, folder: Path, locks: Path | None) -> None:
        real(self, folder, own, here=name, heartbeat=0.05, expiry=1.0)

    leases.Leases.__init__ = init
    for lock in ("exclusive_lock", "shared_lock"):
        setattr(presence, lock, lambda folder, *, wait=False: nullcontext())


def _stopping(real: Callable[..., None], point: str) -> Callable[..., None]:
    stopped = []

    def call(source: object, target: object) -> None:
        if str(target).endswith(point) and not stopped:
            stopped.append(target)
            os.kill(os.getpid(), signal.SIGSTOP)
        real(source, target)

    return call


def together(command: list[str], scratch: Path) -> None:
    """Both nodes at once."""
    children = [node(name, scratch, command) for name in ("one", "two")]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def stopped(command: list[str], scratch: Path, point: str) -> None:
    """One node, stopped at a point until the other is done."""
    one = node("one", scratch, command, point)
    assert os.WIFSTOPPED(os.waitpid(one, os.WUNTRACED)[1]), point
    try:
        two = node("two", scratch, command)
        assert os.waitpid(two, 0)[1] == 0
    finally:
        os.kill(one, signal.SIGCONT)
    assert os.waitpid(one, 0)[1] == 0, (scratch / "said-one").read_text()


def main(given: list[str]) -> None:
    """For a process without threads, which the nodes are forks of."""
    how, reference, scratch, rest = given[0], content(Path(given[1])), Path(given[2]), given[3:]
    points = [rest.pop(0)] if how == "stopped" else []
    out = scratch / "features"
    command = [*rest, "--output", str(out)]
    name = command[command.index("--encoder") + 1]
    load_tokenizer(name)
    FrozenEncoder(name)(torch.zeros(1, 4))  # what transformers imports late
    started = time.monotonic()
    {"together": together, "stopped": stopped}[how](command, scratch, *points)
    found = content(out)
    assert found == reference, sorted(key for key in found.keys() | reference if found.get(key) != reference.get(key))
    shutil.rmtree(out)
    print(f"{time.monotonic() - started:.1f} s")
