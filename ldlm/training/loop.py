"""The training loop of every `Learner`: evaluate, save, read, step, log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ldlm.errors import InputError, Stopped, StorageError
from ldlm.features.batch import Batch
from ldlm.features.stream import Stream
from ldlm.progress import Progress, Task
from ldlm.runtime import Stop, World
from ldlm.training.journal import Journal
from ldlm.training.learner import Learner, Step

AnyLearner = TypeVar("AnyLearner", bound=Learner[Any])
Result = TypeVar("Result")
UNREADABLE = (InputError, StorageError, OSError)  # damaged rows, a disk or a service that fails; others are bugs


def train(
    learner: AnyLearner,
    take_step: Callable[[AnyLearner, Batch], Step],
    stream: Stream,
    journal: Journal,
    stop: Stop,
    progress: Progress,
    *,
    name: str,
    evaluate: Callable[[], dict[str, Any]],
) -> None:
    """Train to the last step; `take_step` launches a step, and `evaluate` returns figures on held-out rows.

    A signal ends it with `Stopped`, and rows that can't be read with their error, in all processes at the same step.
    In each case a checkpoint of the last step taken is saved.
    """
    ending = Ending(learner.world, stop)
    with stream, progress.task(name, learner.steps, "step", done=learner.step) as task, journal.status_of():
        launched = ReadLate(lambda step: _read(learner, step, stream, journal, task))
        while True:
            if journal.should_evaluate() and not _evaluate(learner, journal, ending, evaluate):
                break
            if journal.should_save():
                journal.save()
            if learner.done:
                break

            batch = _next_batch(stream, journal, ending)
            if ending.has_come():
                break
            assert batch is not None

            launched.add(take_step(learner, stream.complete(batch)))
            if _must_read(learner, journal):
                launched.read_last()
        launched.read_last()
        _close(learner, journal, ending)  # before the stream closes: a read that hangs must not delay the checkpoint


class Ending:
    """The end of a training before its last step, in all processes at once: a signal, or rows that can't be read."""

    def __init__(self, world: World, stop: Stop) -> None:
        self.world, self.stop = world, stop
        self._error: Exception | None = None

    def unless(self, read: Callable[[], Result]) -> Result | None:
        """The result of `read`; None if a signal came, or something could not be read."""
        try:
            return self.stop.interruptible(read)
        except UNREADABLE as error:  # to be raised once all processes know of it and the weights are saved
            self._error = error
            return None

    def has_come(self) -> bool:
        """Whether the training ends here, because of this process or of another."""
        return self.world.any(self.stop.wished is not None or self._error is not None)

    def error(self) -> Exception | None:
        """The error that ended it, here or in the first process that has one; None if none has. For all to call."""
        first = self.world.first(None if self._error is None else str(self._error))
        return None if first is None else self._error or InputError(first)


class ReadLate:
    """Reads each step when the next has been launched, so that the device need not wait for the host."""

    def __init__(self, read: Callable[[Step], None]) -> None:
        self._read = read
        self._unread: Step | None = None

    def add(self, step: Step) -> None:
        """Add the step just launched, and read the previous one."""
        self.read_last()
        self._unread = step

    def read_last(self) -> None:
        """Read the step added last, unless it has been read."""
        if self._unread is not None:
            step, self._unread = self._unread, None
            self._read(step)


def _must_read(learner: Learner, journal: Journal) -> bool:
    """Whether the step just launched must be read before the next: to log it, or for what follows it."""
    due = journal.should_log(learner.step) or journal.should_evaluate() or journal.should_save()
    return due or learner.next_step_depends_on_last


def _read(learner: Learner, step: Step, stream: Stream, journal: Journal, task: Task) -> None:
    """Wait for a step, log its figures if that is due, and report it if it updated nothing."""
    shown: dict[str, float] = {}
    if not learner.read_step(step):
        journal.report_skipped(step, stream)
    elif journal.should_log(step.number + 1):
        figures = learner.figures(step)
        journal.log_step(figures)
        shown = {name: figures[name] for name in learner.shown}
    task.advance(1, **shown)


def _next_batch(stream: Stream, journal: Journal, ending: Ending) -> Batch | None:
    """The next batch as read; None if there is none because the training ends."""
    with journal.speed.waiting():
        return ending.unless(stream.read)


def _evaluate(learner: Learner, journal: Journal, ending: Ending, evaluate: Callable[[], dict[str, Any]]) -> bool:
    """Evaluate the averaged weights and log the result; False if the training ends instead.

    Only the main process evaluates; the others wait for it.
    """
    found = None
    if learner.world.main:
        # A signal may cut the evaluation short, but not the exchange of the weights around it.
        with journal.speed.paused(), learner.ema.applied_to(learner.model):
            found = ending.unless(evaluate)
    if ending.has_come():
        return False
    journal.log_evaluation(found or {})
    return True


def _close(learner: Learner, journal: Journal, ending: Ending) -> None:
    """Save what is new after the loop; if that ended early, raise the error that ended it, or `Stopped`."""
    journal.save()
    if learner.done and not journal.should_evaluate():
        return
    # A launcher ends the others when the first process leaves, so none leaves before the checkpoint is written.
    if (error := ending.error()) is not None:
        journal.tell_saved()
        raise error
    journal.write_status("stopped")
    learner.world.from_main(None)
    saved = ", and saved" if learner.step else ""
    by = ending.stop.wished or "another process"
    raise Stopped(f"{journal.out}: stopped by {by} at step {learner.step:,}{saved}")
