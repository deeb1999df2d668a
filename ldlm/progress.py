"""Progress reports of stages.

Stages call `task`, `advance` and `note`. The base class is silent; the command line passes one that draws on stderr.
"""

from __future__ import annotations

from types import TracebackType


class Task:
    """A countable piece of work, used as a context manager."""

    def advance(self, count: int, **figures: float | str) -> None:
        """Report `count` more finished units; `figures` are shown beside the rate."""

    def __enter__(self) -> Task:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the task, finished or not."""


class Progress:
    """Silent progress."""

    def task(self, name: str, total: int, unit: str, done: int = 0) -> Task:
        """Begin a task of `total` units, `done` of them by an earlier, interrupted run."""
        return Task()

    def note(self, text: str) -> None:
        """Show the user one line."""


SILENT = Progress()
