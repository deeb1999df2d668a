"""How processes divide the items of an extraction: blocks and shards.

On a file system each process takes a lock before it works on an item. Machines that share an object store have no
locks: each begins elsewhere (`shares.in_turn`). A lock never tells whether an item is done; the item's record does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from ldlm.locks import file_lock
from ldlm.progress import Progress

LOOK_EVERY = 30.0  # seconds between looks at what other processes have done
Item = TypeVar("Item")
Made = TypeVar("Made")


def share(
    items: Iterable[Item],
    *,
    done: Callable[[Item], bool],
    work: Callable[[Item], Made],
    lock: Callable[[Item], Path],
    finish: Callable[[Item, Made], None] | None = None,
) -> None:
    """Work on every item that is not done, together with other processes; returns when all items are done.

    First the items that no other process has locked; then it waits for the locked ones, and works on those that their
    holders left undone. `lock` names an item's lock file.
    `finish` takes the result of `work` in a thread of its own, while the next item is worked on; it has one item at a
    time, which stays locked until then. Its errors are raised here, after that next item.
    """
    held: list[Item] = []
    finishing: Future[None] = Future()
    finishing.set_result(None)

    def attempt(item: Item, wait: bool) -> bool:
        """Work on an item unless it is done; False when another process has it locked."""
        nonlocal finishing
        with ExitStack() as locked:
            if not locked.enter_context(file_lock(lock(item), wait=wait)):
                return False
            if not done(item):
                made = work(item)
                if finish is not None:
                    finishing.result()
                    finishing = thread.submit(_finish, partial(finish, item, made), locked.pop_all())
        return True

    with ThreadPoolExecutor(1, thread_name_prefix="ldlm-finish") as thread:
        for item in items:
            if not done(item) and not attempt(item, wait=False):
                held.append(item)
        for item in held:
            attempt(item, wait=True)
        finishing.result()


def _finish(work: Callable[[], None], locked: ExitStack) -> None:
    with locked:
        work()


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
        self.before = frozenset(recorded() & sizes.keys())
        self.counted = set(self.before)
        self.task = progress.task(name, sum(sizes.values()), unit, done=sum(map(sizes.__getitem__, self.before)))
        self.own = self.others = self.bytes = 0
        self.started = self.looked = time.monotonic()

    def advance(self, item: Item, units: int) -> None:
        """Count so many units more of an item as done by this process."""
        self.counted.add(item)
        self.own += units
        others = self._others() if time.monotonic() - self.looked > LOOK_EVERY else 0
        self._tell(units + others)

    def _others(self) -> int:
        """Units of the items that others have recorded since the last look."""
        self.looked = time.monotonic()
        new = (self.recorded() & self.sizes.keys()) - self.counted
        self.counted |= new
        found = sum(map(self.sizes.__getitem__, new))
        self.others += found
        return found

    def _tell(self, units: int) -> None:
        # Only this process's bytes are known here. The others are taken to write as many per unit.
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
