"""How a stage says what it is doing, without knowing who listens.

Stages call `task` and `advance`; the base class is silent. The command line passes one that draws on stderr.
"""

from __future__ import annotations

from types import TracebackType


class Task:
    """A countable piece of work, used as a context manager."""

    def advance(self, count: int, **figures: float | str) -> None:
        """`count` more units are done; `figures` are worth showing beside the rate."""

    def __enter__(self) -> Task:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The work ended, done or not."""


class Progress:
    """Silent progress."""

    def task(self, name: str, total: int, unit: str, done: int = 0) -> Task:
        """Begin `name`: `total` units, `done` of them from an earlier, interrupted run."""
        return Task()

    def note(self, text: str) -> None:
        """One line that the user should see."""


SILENT = Progress()
