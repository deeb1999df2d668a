"""The share of one of several processes: which items of an extraction it takes first.

A share decides only an order. Every process works until all items are done, whoever does them, so a share that is
wrong, or belongs to a process that never starts, costs only time.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from ldlm import launcher
from ldlm.errors import InputError

Item = TypeVar("Item")


class Share(NamedTuple):
    """Process number `number`, from 0, of `of` processes."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def part(self, number: int, of: int) -> Share:
        """Part `number` of `of` equal parts of it."""
        return Share(self.number * of + number, self.of * of)


def share_of(text: str) -> Share:
    """The share that `text` gives as I/N; `InputError` if it does not."""
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip(), re.ASCII)
    if found is None:
        raise InputError(f"--share takes I/N, like 0/8 for the first of 8 processes, and not {text!r}")
    share = Share(int(found[1]), int(found[2]))
    if not share.of:
        raise InputError(f"--share {text}: there is at least one process, so N is at least 1")
    if share.number >= share.of:
        raise InputError(f"--share {text}: shares are numbered from 0, and the last of {share.of} is {share.of - 1}")
    return share


def share_of_environment(environment: Mapping[str, str] = os.environ) -> Share | None:
    """The share that a launcher's variables give this process; None without them, or if it is the only process.

    Launchers are torchrun (RANK and WORLD_SIZE); SLURM arrays, the tasks of a SLURM step, and steps within an array;
    and an indexed Kubernetes job, which knows its index but not how many there are: JOB_COMPLETIONS must say that.
    """
    found = _pair(environment, "RANK", "WORLD_SIZE")
    if found is None:
        array, step = _of_array(environment), _pair(environment, "SLURM_PROCID", "SLURM_NTASKS")
        if array is not None and step is not None:
            found = Share(array.number * step.of + step.number, array.of * step.of)
        else:
            found = array or step or _pair(environment, "JOB_COMPLETION_INDEX", "JOB_COMPLETIONS")
    return found if found is not None and found.of > 1 else None


def _pair(environment: Mapping[str, str], number: str, of: str) -> Share | None:
    first, count = launcher.number(number, environment), launcher.number(of, environment)
    return Share(first, count) if first is not None and count is not None and first < count else None


def _of_array(environment: Mapping[str, str]) -> Share | None:
    """The share of a task of a SLURM array, whose numbers may begin anywhere, have steps and have gaps."""
    names = (f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "MAX"))
    number, of, least, most = (launcher.number(name, environment) for name in names)
    if number is None or not of:
        return None
    least = least or 0
    most = least + of - 1 if most is None else most
    if not least <= number <= most:
        return None
    return Share((number - least) * of // (most - least + 1), of)  # exact for equal steps, and close for others


def in_turn(items: list[Item], share: Share | None, *, apart: bool = False) -> list[Item]:
    """The items in the order in which a process takes them.

    Each does its own stretch first, and then helps with the others' from their ends. Without a share it takes them as
    they come or, with `apart`, from a random one on, which spreads processes that no lock keeps apart.
    """
    if share is None:
        start = random.randrange(len(items)) if apart and items else 0
        return items[start:] + items[:start]
    first, last = (len(items) * number // share.of for number in (share.number, share.number + 1))
    return items[first:last] + (items[last:] + items[:first])[::-1]
