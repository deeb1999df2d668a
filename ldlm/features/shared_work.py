"""How processes divide the items of an extraction: files to hash, pieces of text, blocks and shards.

Each process takes a lease (`leases`) before it works on an item. On an object store, where that takes a request, each
begins at a different item (`shares.in_turn`). A lease never tells whether an item is done; the item's record does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

from ldlm.leases import Lease, waits
from ldlm.progress import Progress

LOOK_EVERY = 30.0  # seconds between looks at what other processes have done
LOOK_SHARE = 0.05  # the most of the time that looks may take: an object store lists a thousand names at a time
AT_ONCE = 32  # items of others that are looked at in one round: a thousand workers may wait for a thousand items
Item = TypeVar("Item")
Made = TypeVar("Made")


def share(
    items: Iterable[Item],
    *,
    done: Callable[[Item], bool],
    work: Callable[[Item], Made],
    claim: Callable[[Item], Lease | None],
    finish: Callable[[Item, Made], None] | None = None,
    recorded: Callable[[], Set[Item]] = frozenset,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Work on every item that is not done, together with other processes; returns when all items are done.

    It works first on the items that no other process has; then it waits for the others, and works on those that their
    holders left undone. `claim` takes an item's lease, `recorded` lists what is done, and `done` looks at one item.
    `finish` takes the result of `work` in a thread of its own, while the next item is worked on; it has one item at a
    time, which stays claimed until it is finished. Its errors are raised here, after that next item.

    The lease may be lost by then. The item is finished all the same, since the first result is the one that is kept:
    otherwise two processes that take an item from each other would never finish it.
    """
    held: list[Item] = []
    finishing: Future[None] = Future()
    finishing.set_result(None)
    known = _Known(recorded, clock)

    def attempt(item: Item) -> bool:
        """Work on an item unless it is done; False when another process has it."""
        nonlocal finishing
        lease = claim(item)
        if lease is None:
            return False
        try:
            if not done(item):
                made = work(item)
                if finish is not None:
                    finishing.result()
                    finishing = thread.submit(_finish, partial(finish, item, made), lease)
                    lease = None
        finally:
            if lease is not None:
                lease.release()
        return True

    with ThreadPoolExecutor(1, thread_name_prefix="ldlm-finish") as thread:
        for item in items:
            if not known(item) and not attempt(item):
                held.append(item)
        pauses = waits()
        while held:
            left = [item for item in held if not known(item)]
            now, later = left[:AT_ONCE], left[AT_ONCE:]
            left = later + [item for item in now if not done(item) and not attempt(item)]
            pauses = pauses if len(left) == len(held) else waits()
            held = left
            if held:
                sleep(next(pauses))
        finishing.result()


def _finish(work: Callable[[], None], lease: Lease) -> None:
    with lease:
        work()


class _Known(Generic[Item]):
    """The items that were done at the last look: looking at each one would cost hours in a large store."""

    def __init__(self, recorded: Callable[[], Set[Item]], clock: Callable[[], float]) -> None:
        self.recorded, self.clock = recorded, clock
        self._look()

    def _look(self) -> None:
        began = self.clock()
        self.items = self.recorded()
        self.next = _next_look(began, self.clock())

    def __call__(self, item: Item) -> bool:
        if item in self.items:
            return True
        if self.clock() > self.next:
            self._look()
        return item in self.items


def _next_look(began: float, ended: float) -> float:
    """When to look again, after a look that began and ended then."""
    return ended + max(LOOK_EVERY, (ended - began) / LOOK_SHARE)


class Tally(Generic[Item]):
    """The progress of items that several processes share: units done so far, and bytes written per second.

    This process reports as it goes. What the others did is looked up in their records now and then.
    """

    def __init__(
        self,
        progress: Progress,
        name: str,
        sizes: Mapping[Item, int],
        recorded: Callable[[], Set[Item]],
        *,
        unit: str = "token",
    ) -> None:
        """`sizes`: units of each item; `recorded`: the items that are done."""
        self.sizes, self.recorded = sizes, recorded
        began = time.monotonic()
        self.before = frozenset(recorded() & sizes.keys())
        self.started = time.monotonic()
        self.next = _next_look(began, self.started)
        self.counted = set(self.before)
        self.task = progress.task(name, sum(sizes.values()), unit, done=sum(map(sizes.__getitem__, self.before)))
        self.own = self.others = self.bytes = 0

    def advance(self, item: Item, units: int) -> None:
        """Count `units` more of an item as done by this process."""
        self.counted.add(item)
        self.own += units
        others = self._others() if time.monotonic() > self.next else 0
        self._tell(units + others)

    def _others(self) -> int:
        """Units of the items that others have recorded since the last look."""
        began = time.monotonic()
        new = (self.recorded() & self.sizes.keys()) - self.counted
        self.next = _next_look(began, time.monotonic())
        self.counted |= new
        found = sum(map(self.sizes.__getitem__, new))
        self.others += found
        return found

    def _tell(self, units: int) -> None:
        # Only this process's bytes are known here. The others are assumed to write as many per unit.
        written = self.bytes * (self.own + self.others) / max(1, self.own)
        seconds = max(1e-9, time.monotonic() - self.started)
        self.task.advance(units, written=f"{written / 1e6 / seconds:.1f} MB/s")

    def __enter__(self) -> Tally[Item]:
        self.task.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._tell(self._others())
        self.task.__exit__(*error)
