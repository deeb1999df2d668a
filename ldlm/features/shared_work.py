"""How processes divide work: each takes a lock before it does an item."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

from ldlm.locks import claim

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
