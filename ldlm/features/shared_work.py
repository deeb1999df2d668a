"""How processes divide work: each takes a lock before it does an item."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from ldlm.locks import claim
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
    """Do every item that is not done, together with whoever else is at it; returns when all are done.

    First the ones that nobody holds; then wait for those that were held, and do what their holders left undone.
    `finish` takes what `work` made of an item, in a thread of its own while the next item is worked on; one item at a
    time, which stays claimed until then. What goes wrong in it is raised here, after that next item.
    """
    held: list[Item] = []
    finishing: Future[None] = Future()
    finishing.set_result(None)

    def attempt(item: Item, wait: bool) -> bool:
        """False when somebody else holds it."""
        nonlocal finishing
        with ExitStack() as mine:
            if not mine.enter_context(claim(lock(item), wait=wait)):
                return False
            if not done(item):
                made = work(item)
                if finish is not None:
                    finishing.result()
                    finishing = thread.submit(_finish, partial(finish, item, made), mine.pop_all())
        return True

    with ThreadPoolExecutor(1, thread_name_prefix="ldlm-finish") as thread:
        for item in items:
            if not done(item) and not attempt(item, wait=False):
                held.append(item)
        for item in held:
            attempt(item, wait=True)
        finishing.result()


def _finish(work: Callable[[], None], claimed: ExitStack) -> None:
    with claimed:
        work()


class Tally(Generic[Item]):
    """Tells a task of items that several processes share how many of their tokens are done, and the bytes so made.

    Those of this process as it goes, and those of the others by what is recorded, looked up now and then.
    """

    def __init__(
        self, progress: Progress, name: str, sizes: Mapping[Item, int], recorded: Callable[[], Set[Item]]
    ) -> None:
        self.sizes, self.recorded = sizes, recorded
        self.before = frozenset(recorded() & sizes.keys())
        self.counted = set(self.before)
        self.task = progress.task(name, sum(sizes.values()), "token", done=sum(map(sizes.__getitem__, self.before)))
        self.own = self.others = self.bytes = 0
        self.started = self.looked = time.monotonic()

    def advance(self, item: Item, tokens: int) -> None:
        """This process has done so many more tokens of an item."""
        self.counted.add(item)
        self.own += tokens
        others = self._others() if time.monotonic() - self.looked > LOOK_EVERY else 0
        self._tell(tokens + others)

    def _others(self) -> int:
        """Tokens of what others have recorded since the last look."""
        self.looked = time.monotonic()
        new = (self.recorded() & self.sizes.keys()) - self.counted
        self.counted |= new
        found = sum(map(self.sizes.__getitem__, new))
        self.others += found
        return found

    def _tell(self, tokens: int) -> None:
        # The others' bytes are as many per token as one's own, of which alone the number is known here.
        written = self.bytes * (self.own + self.others) / max(1, self.own)
        seconds = max(1e-9, time.monotonic() - self.started)
        self.task.advance(tokens, written=f"{written / 1e6 / seconds:.1f} MB/s")

    def __enter__(self) -> Tally[Item]:
        self.task.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._tell(self._others())
        self.task.__exit__(*error)
