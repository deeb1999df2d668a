"""The training loop of every `Learner`: evaluate, save, read, step, log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ldlm.errors import Stopped
from ldlm.features.batch import Batch
from ldlm.features.stream import Stream
from ldlm.progress import Progress, Task
from ldlm.runtime import Stop
from ldlm.training.journal import Journal
from ldlm.training.learner import Learner, Step

AnyLearner = TypeVar("AnyLearner", bound=Learner[Any])


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

    A signal ends it with `Stopped`. Either way, a checkpoint of the last step taken is saved.
    """
    with stream, progress.task(name, learner.steps, "step", done=learner.step) as task, journal.status_of():
        launched = ReadLate(lambda step: _read(learner, step, stream, journal, task))
        while True:
            if journal.should_evaluate() and not _evaluate(learner, journal, stop, evaluate):
                break
            if journal.should_save():
                journal.save()
            if learner.done:
                break

            batch = _next_batch(stream, journal, stop)
            if learner.world.any(stop.wished is not None):  # so that all processes end at the same step
                break
            assert batch is not None

            launched.add(take_step(learner, stream.complete(batch)))
            if _must_read(learner, journal):
                launched.read_last()
        launched.read_last()
        _close(learner, journal, stop)  # before the stream closes: a read that hangs must not delay the checkpoint


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


def _next_batch(stream: Stream, journal: Journal, stop: Stop) -> Batch | None:
    """The next batch as read; None if a signal ended the wait for it."""
    with journal.speed.waiting():
        return stop.interruptible(stream.read)


def _evaluate(learner: Learner, journal: Journal, stop: Stop, evaluate: Callable[[], dict[str, Any]]) -> bool:
    """Evaluate the averaged weights and log the result; False if a signal came first.

    Only the main process evaluates; the others wait for it.
    """
    found = None
    if learner.world.main:
        # A signal may cut the evaluation short, but not the exchange of the weights around it.
        with journal.speed.paused(), learner.ema.applied_to(learner.model):
            found = stop.interruptible(evaluate)
    if learner.world.any(stop.wished is not None):
        return False
    journal.log_evaluation(found or {})
    return True


def _close(learner: Learner, journal: Journal, stop: Stop) -> None:
    """Save what is new after the loop; `Stopped` if a signal ended it early."""
    journal.save()
    if learner.done and not journal.should_evaluate():
        return
    journal.write_status("stopped")
    # A launcher ends the others when the first process leaves, so none leaves before the checkpoint is written.
    learner.world.from_main(None)
    saved = ", and saved" if learner.step else ""
    by = stop.wished or "another process"
    raise Stopped(f"{journal.out}: stopped by {by} at step {learner.step:,}{saved}")
