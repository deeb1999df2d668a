"""Extracts a store on two nodes that see no lock of each other's, and whose leases last a second.

    main(["together", REFERENCE, SCRATCH, ARGUMENT, …])
    main(["stopped", REFERENCE, SCRATCH, POINT, ARGUMENT, …])
    main(["replaced", REFERENCE, SCRATCH, POINT, POINT, ARGUMENT, …])

Both at once; or one that stops before it gives a file its name, one that ends with POINT, until the other has sealed
the store, and then goes on. Or the other overwrites the store meanwhile, with `--layer -2`, stops at the second POINT
until the first has ended, and then goes on. A POINT may also be a function, like `ldlm.files:fsync_tree`. The nodes are
forks of this process, with folders of locks of their own. REFERENCE is the store of one process, which they must end
with.
"""

import importlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from folders import content

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
            _arm(point)
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


def _arm(point: str) -> None:
    """Stop this process at a point."""
    module, is_function, names = point.partition(":")
    if not is_function:
        for name in ("link", "replace"):
            setattr(os, name, _stopping(getattr(os, name), lambda source, target: str(target).endswith(point)))
        return
    owner: Any = importlib.import_module(module)
    *outer, name = names.split(".")
    for one in outer:
        owner = getattr(owner, one)
    setattr(owner, name, _stopping(getattr(owner, name), lambda *given, **options: True))


def _stopping(real: Callable[..., Any], here: Callable[..., bool]) -> Callable[..., Any]:
    stopped = []

    def call(*given: Any, **options: Any) -> Any:
        if not stopped and here(*given, **options):
            stopped.append(given)
            os.kill(os.getpid(), signal.SIGSTOP)
        return real(*given, **options)

    return call


def together(command: list[str], scratch: Path) -> None:
    """Both nodes at once."""
    children = [node(name, scratch, command) for name in ("one", "two")]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def stopped(command: list[str], scratch: Path, point: str) -> None:
    """One node, stopped at a point until the other is done."""
    with ExitStack() as ending:
        one = node("one", scratch, command, point)
        ending.callback(_kill, one)
        assert os.WIFSTOPPED(os.waitpid(one, os.WUNTRACED)[1]), point
        two = node("two", scratch, command)
        assert os.waitpid(two, 0)[1] == 0
        ending.pop_all()
    os.kill(one, signal.SIGCONT)
    assert os.waitpid(one, 0)[1] == 0, (scratch / "said-one").read_text()


def replaced(command: list[str], scratch: Path, first: str, second: str) -> None:
    """One node, stopped at a point until the other is at one with the store that replaces the first's."""
    with ExitStack() as ending:
        one = node("one", scratch, command, first)
        ending.callback(_kill, one)
        assert os.WIFSTOPPED(os.waitpid(one, os.WUNTRACED)[1]), first
        two = node("two", scratch, [*command, "--overwrite", "--layer", "-2"], second)
        ending.callback(_kill, two)
        assert os.WIFSTOPPED(os.waitpid(two, os.WUNTRACED)[1]), (second, (scratch / "said-two").read_text())
        ending.pop_all()
    os.kill(one, signal.SIGCONT)
    try:
        _ended(os.waitpid(one, 0)[1], (scratch / "said-one").read_text())
    finally:
        os.kill(two, signal.SIGCONT)
        status = os.waitpid(two, 0)[1]
    assert status == 0, (scratch / "said-two").read_text()


def _ended(status: int, said: str) -> None:
    """Asserts that a node whose store was replaced ended in good order: it was done, or says so in one line."""
    refused = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert status == 0 or (os.waitstatus_to_exitcode(status) == 1 and len(refused) == 1), (status, said)
    assert "Traceback" not in said, said


def _kill(child: int) -> None:
    """End a node that may be stopped, so that none outlives a test that failed."""
    with suppress(ChildProcessError):  # it had ended, and that was seen
        if os.waitpid(child, os.WNOHANG) == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def main(given: list[str]) -> None:
    """For a process without threads, which the nodes are forks of."""
    how, reference, scratch, rest = given[0], content(Path(given[1])), Path(given[2]), given[3:]
    points = [rest.pop(0) for _ in range({"together": 0, "stopped": 1, "replaced": 2}[how])]
    out = scratch / "features"
    command = [*rest, "--output", str(out)]
    name = command[command.index("--encoder") + 1]
    load_tokenizer(name)
    FrozenEncoder(name)(torch.zeros(1, 4))  # what transformers imports late
    started = time.monotonic()
    {"together": together, "stopped": stopped, "replaced": replaced}[how](command, scratch, *points)
    found = content(out)
    assert found == reference, sorted(key for key in found.keys() | reference if found.get(key) != reference.get(key))
    shutil.rmtree(out)
    print(f"{time.monotonic() - started:.1f} s")
