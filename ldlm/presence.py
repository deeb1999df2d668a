"""Who is at work in a folder that several processes share: many that add to it, or one that deletes.

A process that works there holds a lease of its own (`present`), and one that deletes must be the only one (`alone`).
Each makes its lease first and then looks for the others', so that two never miss each other. A kernel lock on the
folder accompanies the leases, for the processes of one machine and for earlier versions, which know nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from ldlm import files
from ldlm.errors import InputError
from ldlm.lease_places import described
from ldlm.leases import Lease, Leases
from ldlm.location import Location
from ldlm.locks import NoLocks, exclusive_lock, shared_lock

CLAIMS = "claims"  # the folder of leases, in the shared folder
ALONE, WORKER = "alone", "worker-"
LOOK_EVERY = 0.2  # seconds
# What to do about others: give up; wait for those that show no sign of life, until they count as dead; or wait for all.
Patience = Literal["none", "dead", "all"]


def unheard(line: str) -> None:
    """A note that nobody hears."""


def unlimited() -> None:
    """The check of a process that has a folder to itself until it ends, by the kernel's lock or as its only user."""


def leases(folder: Location) -> Leases:
    """The leases of the processes that work in a folder."""
    claims = folder / CLAIMS
    return Leases(claims, claims if isinstance(claims, Path) else None)


@contextmanager
def present(folder: Location, patience: Patience = "dead", held: Leases | None = None) -> Iterator[Lease]:
    """Work in a folder beside others. `InputError` if a process has it to itself, unless all are waited for."""
    held = held or leases(folder)
    with ExitStack() as stack:
        if isinstance(folder, Path):
            with suppress(NoLocks):
                stack.enter_context(shared_lock(folder, wait=patience == "all"))
        name = WORKER + files.unique()
        stack.callback(_tidy, held, name)
        lease = _claimed(held, name)
        at_work = f"has {folder} to itself, to repair or replace it; wait for it"
        while patience == "all" and held.places.read(ALONE) is not None:
            lease.release()  # that process may wait for this lease, and each would wait for the other for ever
            _settle(held, [ALONE], patience, at_work)
            lease = _claimed(held, name)
        stack.enter_context(lease)
        _settle(held, [ALONE], patience, at_work)
        yield lease


def _claimed(held: Leases, name: str) -> Lease:
    """A lease that nobody else claims."""
    lease = held.claim(name)
    assert lease is not None
    return lease


@contextmanager
def alone(
    folder: Location, patience: Patience = "dead", held: Leases | None = None, note: Callable[[str], None] = unheard
) -> Iterator[Lease]:
    """Be the only one at work in a folder. `InputError` if others are.

    A process on another machine that shows no sign of life is waited for, and counts as dead after five minutes; `note`
    reports the wait.
    """
    held = held or leases(folder)
    with ExitStack() as stack:
        if isinstance(folder, Path):
            with suppress(NoLocks):
                stack.enter_context(exclusive_lock(folder, wait=patience == "all"))
        at_work = f"is at work in {folder}; wait for it, or stop it first"
        while (lease := held.claim(ALONE)) is None:
            _settle(held, [ALONE], patience, at_work, note)
        stack.callback(_tidy, held, ALONE)
        stack.enter_context(lease)
        _settle(held, held.places.names(WORKER), patience, at_work, note)
        yield lease


def _tidy(held: Leases, name: str) -> None:
    """Remove the lock beside a lease that is over, which nobody on this machine waits for, and an empty folder."""
    if held.locks is not None:
        with suppress(OSError):
            (held.locks / name).unlink(missing_ok=True)
            held.locks.rmdir()


def _settle(
    held: Leases, names: list[str], patience: Patience, doing: str, note: Callable[[str], None] = unheard
) -> None:
    """Wait until these leases are gone, taking away those of the dead. `InputError` for one that won't go."""
    found = {name: body for name in names if (body := held.places.read(name)) is not None}
    told = False
    while True:
        for name, body in list(found.items()):
            now = held.places.read(name)
            taken = None if now is None else held.claim(name)
            if taken is not None:
                taken.release()
            if now is None or taken is not None:
                del found[name]
            elif patience == "none" or (patience == "dead" and now != body):
                raise InputError(f"another process{_who(now)} {doing}")
        if not found:
            return
        if not told:
            who = ", ".join(_who(body).strip(" ()") for body in found.values())
            note(f"waiting for a sign of life from {who}; without one it counts as dead in {held.expiry / 60:.0f} min")
            told = True
        held.sleep(LOOK_EVERY)


def _who(body: bytes) -> str:
    """Host and process number of a lease's holder, in brackets."""
    found = described(body)
    return f" ({found['host']}, process {found['process']})" if {"host", "process"} <= found.keys() else ""


# ----------------------------------------------------------------------------------------------------------------------
# Beginning and replacing an artefact


@contextmanager
def turn(path: Location, shared: bool) -> Iterator[None]:
    """Keep other processes on this machine from beginning outputs beside this one: they may begin the same one.

    Those on other machines, which a `shared` output may have, are kept apart by what they find there.
    """
    with ExitStack() as stack:
        if isinstance(path, Path):
            try:
                stack.enter_context(exclusive_lock(_outside(path), wait=True))
            except NoLocks:
                if not shared:
                    raise
        yield


def _outside(path: Path) -> Path:
    """The closest parent folder that isn't an artefact, made if need be; it is locked while one below it is begun."""
    found = next(folder for folder in files.target(path).parents if not (folder / "artifact.json").is_file())
    files.make_folder(found)
    return found


@contextmanager
def replacing(path: Location, shared: bool, note: Callable[[str], None] = unheard) -> Iterator[Callable[[], None]]:
    """Have a folder to oneself, to delete what is there. `InputError` if others are at work.

    Yields a check to call before each removal, which raises `StorageError` once another process has the folder.
    """
    with ExitStack() as stack:
        check = unlimited
        if shared:
            check = stack.enter_context(alone(path, note=note)).check
        elif isinstance(path, Path):
            stack.enter_context(exclusive_lock(path))
        yield check
