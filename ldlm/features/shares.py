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
    """The share that launchers' variables give this process; None without them, or if it is the only process.

    Launchers start processes (torchrun with RANK and WORLD_SIZE, or the tasks of a SLURM step), and tasks within which
    that happens: those of a SLURM array, or of an indexed Kubernetes job, which knows its index but not how many there
    are: JOB_COMPLETIONS must say that. A launcher of one process leaves the share to the others.
    """
    process = _pair(environment, "RANK", "WORLD_SIZE") or _pair(environment, "SLURM_PROCID", "SLURM_NTASKS")
    task = _of_array(environment)
    if task is None and not _spans_machines(environment):
        task = _pair(environment, "JOB_COMPLETION_INDEX", "JOB_COMPLETIONS")
    if task is not None and process is not None:
        return task.part(process.number, process.of)
    return task or process


def _spans_machines(environment: Mapping[str, str]) -> bool:
    """Whether torchrun has processes elsewhere too, as it has if the pods of a job are its machines."""
    here, all_ = (launcher.number(name, environment) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    return here is not None and all_ is not None and here < all_


def _pair(environment: Mapping[str, str], number: str, of: str) -> Share | None:
    return _one_of_several(launcher.number(number, environment), launcher.number(of, environment))


def _one_of_several(number: int | None, of: int | None) -> Share | None:
    return Share(number, of) if number is not None and of is not None and of > max(1, number) else None


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
    share = (number - least) * of // (most - least + 1)  # exact for equal steps, and close for others
    return _one_of_several(share, of)


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
