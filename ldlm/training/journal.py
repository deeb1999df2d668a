"""Metrics, checkpoints, `status.json` and notes to the user, written during training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ldlm import files
from ldlm.artifact import Artifact
from ldlm.errors import InputError
from ldlm.features.stream import Stream
from ldlm.progress import Progress
from ldlm.training.learner import Learner, Step
from ldlm.training.log import MetricsFile
from ldlm.training.speed import Speedometer

Warn = Callable[[Sequence[Mapping[str, Any]]], str | None]  # all evaluations so far → what the user should know


class Journal:
    """The record of a learner's training in the folder `out`, which the main process of a job writes.

    It begins after the learner has loaded its newest checkpoint (`saved` if there is one): lines of the metrics beyond
    that step are dropped.
    """

    def __init__(
        self,
        out: Path,
        learner: Learner,
        speed: Speedometer,
        progress: Progress,
        *,
        saved: bool,
        warn: Warn = lambda evaluations: None,
    ) -> None:
        self.out, self.learner, self.speed, self.progress, self.warn = out, learner, speed, progress, warn
        self.started = time.perf_counter() - (self._spent() if saved else 0)
        self.metrics = MetricsFile(out / "metrics.jsonl", tensorboard=out / "tensorboard", on_fault=progress.note)
        evaluated_at = 0
        if learner.world.main:
            self.metrics.truncate(learner.step)
            evaluated_at = max((line["step"] for line in self.evaluations()), default=0)
        self.evaluated_at = learner.world.from_main(evaluated_at)
        self.saved_at = learner.step if saved else 0

    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluations so far, as recorded in the metrics."""
        return [line for line in self.metrics.read() if line["kind"] == "eval"]

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those of earlier calls included."""
        return round(time.perf_counter() - self.started, 1)

    def _spent(self) -> float:
        """Seconds that earlier calls trained; 0 if they were of a version that did not record it.

        They are not in the checkpoint, since equal trainings make equal checkpoints.
        """
        try:
            return float(files.read_json(self.out / "status.json")["seconds"])
        except (InputError, KeyError, TypeError, ValueError):
            return 0.0

    # What is due. Steps are counted from 1.

    def should_log(self, step: int) -> bool:
        """Whether the figures of a step are to be logged."""
        return step % self.learner.config.log_every == 0 or step == 1

    def should_evaluate(self) -> bool:
        """Whether an evaluation is due after this step, and has not been logged."""
        learner = self.learner
        due = learner.step % learner.config.eval_every == 0 or learner.done
        return learner.step > 0 and due and learner.step > self.evaluated_at

    def should_save(self) -> bool:
        """Whether a checkpoint of this step is due."""
        return self.learner.step > 0 and (self.learner.step % self.learner.config.save_every == 0 or self.learner.done)

    # What is written.

    def log_step(self, figures: dict[str, float]) -> None:
        """Log the figures of this step, with the speed since the last logged step."""
        if self.learner.world.main:
            self.metrics.write(self.learner.step, "train", figures, **self.speed.look(self.learner.step))

    def log_evaluation(self, figures: dict[str, Any]) -> None:
        """Log an evaluation, and warn the user if it gives reason to."""
        learner = self.learner
        self.evaluated_at = learner.step
        if not learner.world.main:
            return
        self.metrics.write(learner.step, "eval", figures)
        broken = [name for name, figure in self.metrics.last("eval").items() if figure is None]
        if broken:
            self.progress.note(f"step {learner.step:,}: {', '.join(broken)} on held-out rows is not finite")
        warning = self.warn(self.evaluations())
        if warning is not None:
            self.progress.note(f"step {learner.step:,}: {warning}")

    def report_skipped(self, step: Step, stream: Stream) -> None:
        """Report the batch of a step that updated nothing; `InputError` if there have been too many.

        All processes call it, since the rows that are not finite may belong to another process.
        """
        learner = self.learner
        losses, loss_B = learner.losses_of(step)
        bad_B = torch.zeros(stream.batch_size, dtype=torch.float64)
        bad_B[step.index_B] = (~loss_B.cpu().isfinite()).double()
        found = torch.stack([loss.detach().double().mean().cpu() for loss in losses.values()])
        bad_B, means = learner.world.sum(bad_B), learner.world.sum(found) / learner.world.size

        rows = stream.order.rows_at(step.position, stream.batch_size)
        suspects = rows[bad_B.numpy() > 0] if bad_B.any() else rows
        named = ", ".join(map(str, suspects[:8])) + " …" * (len(suspects) > 8)
        values = ", ".join(f"{name} {mean:.4g}" for name, mean in zip(losses, means.tolist(), strict=True))
        cause = "the gradient is" if means.isfinite().all() else "the loss is"
        what = f"step {step.number + 1:,}: {cause} not finite ({values}) in rows {named} of the store, nothing updated"
        most = learner.config.max_nonfinite
        if learner.skipped > most:
            raise InputError(
                f"{what}; {learner.skipped} such batches are too many (--max-nonfinite {most}); the checkpoints are "
                f"intact: continue from the newest with a larger --max-nonfinite, or start again: {learner.remedy}"
            )
        self.progress.note(what)

    def save(self) -> None:
        """Save a checkpoint of this step, unless there is one."""
        if self.learner.step == self.saved_at:
            return
        if self.learner.world.main:
            with self.speed.paused():
                self.metrics.sync()
                self.learner.save(self.out / "checkpoints")
        self.saved_at = self.learner.step
        self.write_status("running")

    def tell_saved(self) -> None:
        """Tell the user where a training that an error is about to end can be continued."""
        if self.saved_at:
            self.progress.note(f"{self.out}: saved at step {self.saved_at:,}, from where the same command continues")

    def finish(self, result: Artifact, **facts: Any) -> None:
        """Complete the artefact: its manifest has the `facts`, and those of every training."""
        self.write_status("complete")
        result.finish(
            step=self.learner.step,
            **facts,
            attention=self.learner.compute.attention,
            held_out=self.metrics.last("eval"),
            skipped=self.learner.skipped,
            seconds=self.seconds,
        )

    def write_status(self, state: str, **more: str) -> None:
        """Write `status.json`, for those who monitor many runs."""
        learner = self.learner
        if learner.world.main:
            record = {"state": state, "step": learner.step, "steps": learner.steps, "saved": self.saved_at, **more}
            record |= {"attention": learner.compute.attention, "seconds": self.seconds}
            record["time"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            files.write_json(self.out / "status.json", record)

    @contextmanager
    def status_of(self) -> Iterator[None]:
        """Within the block the status is "running"; if an error ends it, "failed"."""
        self.write_status("running")
        try:
            yield
        except Exception as error:
            with suppress(OSError):  # perhaps it failed because the disk is full
                self.write_status("failed", reason=f"{type(error).__name__}: {error}")
            raise
