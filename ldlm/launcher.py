"""Numbers in the variables of launchers, such as torchrun and SLURM.

An empty variable counts as unset. So does one that holds no whole number where it decides only the order or the speed
of the work (`number`). Where it decides what a process does, it is refused (`counted`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from ldlm.errors import InputError


def number(name: str, environment: Mapping[str, str] = os.environ) -> int | None:
    """The whole number in a variable; None if there is none."""
    text = environment.get(name, "")
    return int(text) if re.fullmatch(r"\d+", text, re.ASCII) else None


def counted(name: str, least: int = 0, below: int | None = None) -> int | None:
    """The whole number in a variable; None if that is unset or empty, and `InputError` for anything else in it."""
    text, found = os.environ.get(name, ""), number(name)
    if text and (found is None or found < least or (below is not None and found >= below)):
        most = "" if below is None else f" to {below - 1}"
        bound = f"a whole number from {least}{most}"
        raise InputError(f"{name} is {text!r} and must be {bound}; torchrun sets it, and without torchrun unset it")
    return found


def processes() -> int:
    """Number of processes that torchrun started; 1 without it. `InputError` if WORLD_SIZE is no such number."""
    return counted("WORLD_SIZE", least=1) or 1


def rank() -> int:
    """The number of this process among them; `InputError` if that, or where the first one listens, is not given."""
    size = processes()
    if size == 1:
        return 0
    found = counted("RANK", below=size)
    counted("MASTER_PORT")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise InputError(
                f"WORLD_SIZE is {size} and {name} is not set; start the processes with torchrun, which sets both, or "
                f"unset WORLD_SIZE"
            )
    assert found is not None
    return found


def local_rank() -> int | None:
    """The number of this process on its machine, as torchrun or `srun` counts; None without them."""
    found = counted("LOCAL_RANK")
    return number("SLURM_LOCALID") if found is None else found


def reports() -> bool:
    """Whether this process shows results to the user: the first of a launcher's processes."""
    return not number("RANK")
