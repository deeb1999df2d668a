"""What a training leaves behind while it runs, and how it is taken up again: metrics, checkpoints, `status.json`.

The training loops themselves stand in `stages/train.py` and `stages/finetune_decoder.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldlm import artifact, files, locks
from ldlm.artifact import Artifact
from ldlm.config import TrainConfig
from ldlm.errors import InputError, Stopped
from ldlm.features.stream import Batch, Stream
from ldlm.progress import Progress
from ldlm.runtime import Stop, World
from ldlm.training import checkpoint, cost
from ldlm.training.learner import Learner
from ldlm.training.log import MetricsFile

SETTLED = 30.0  # seconds from which on a run's speed is compared with the machine's


def begin(
    out: Path,
    kind: str,
    config: Any,
    inputs: Mapping[str, Any],
    training: TrainConfig,
    *,
    steps: int,
    reads: Sequence[Path],
    overwrite: bool,
    world: World,
    held: ExitStack,
    progress: Progress,
) -> Artifact:
    """The output, taken up or new, held against other processes than these until `held` closes.

    `training` is how `config` trains, in `steps` steps, and `reads` what must not be overwritten. A finished output is
    taken up again where it asks for more steps than were taken.
    """
    if training.optimizer.lr_decay != "constant":
        inputs = {**inputs, "steps": training.steps}  # they shape the learning rate, so they can't change on the way
    state = world.main_only(lambda: _begin(out, kind, config, inputs, reads, steps, overwrite, held, progress))
    state = world.from_main(state)
    return Artifact(out, kind, state)


def _begin(
    out: Path,
    kind: str,
    config: Any,
    inputs: Mapping[str, Any],
    reads: Sequence[Path],
    steps: int,
    overwrite: bool,
    held: ExitStack,
    progress: Progress,
) -> str:
    """`begin` in the main process."""
    taken_up = out.is_dir() and not overwrite and not artifact.is_emptied(out)
    if taken_up:
        held.enter_context(locks.exclusive_lock(out))  # before anything is written there: somebody may be at work
        _check_steps(out, inputs.get("steps"))
    result = artifact.begin(out, kind, config, inputs, overwrite=overwrite, reads=reads)
    if not taken_up:
        held.enter_context(locks.exclusive_lock(out))
    if result.complete and (done := result.manifest["step"]) >= steps:
        fewer = "" if done == steps else f", and {steps} are asked for"
        progress.note(f"{out} is complete at step {done}{fewer}; nothing to do")
        return "complete"
    if result.complete:
        result.write_config(config)
        (out / "manifest.json").unlink()
        return "partial"
    return result.state


def _check_steps(out: Path, steps: int | None) -> None:
    """`InputError` when the learning rate fell towards another end than `steps` until now; None where it has none."""
    record = out / "artifact.json"
    found = files.read_json(record) if record.is_file() else {}
    begun, place = found.get("inputs", {}).get("steps"), artifact.NAMED_BY.get(found.get("kind", ""), "--output")
    if None not in (begun, steps) and begun != steps:
        raise InputError(
            f"{out} was begun for {begun} steps, over which optimizer.lr_decay=cosine lets the learning rate fall, so "
            f"it can't become one of {steps}; give --steps {begun}, choose another {place}, or add --overwrite (one "
            f"with optimizer.lr_decay=constant goes on to any number)"
        )


def resume(
    state: Learner,
    stream: Stream,
    out: Path,
    *,
    seq_len: int,
    progress: Progress,
    flops_per_token: Callable[[int], int] | None = None,
    warning: Callable[[Sequence[Mapping[str, Any]]], str | None] | None = None,
) -> Journal:
    """Go on from the newest checkpoint that verifies, the same in all processes; see `Journal` for the rest."""
    newest = checkpoint.latest(out / "checkpoints") if state.world.main else None
    name = state.world.from_main(None if newest is None else newest.path.name)
    if name is not None:
        newest = checkpoint.Checkpoint(out / "checkpoints" / name)
        state.load(newest)
        stream.position = state.position
        progress.note(f"resuming from step {state.step}")
    metrics = MetricsFile(out / "metrics.jsonl", tensorboard=out / "tensorboard", on_fault=progress.note)
    if state.world.main:
        metrics.truncate(state.step)
    evaluations = [line["step"] for line in metrics.read() if line["kind"] == "eval"] if state.world.main else []
    return Journal(
        out,
        metrics,
        progress,
        seq_len=seq_len,
        log_every=state.config.log_every,
        flops_per_token=flops_per_token,
        warning=warning,
        began_at=state.step,
        saved_at=0 if newest is None else state.step,
        evaluated_at=state.world.from_main(max(evaluations, default=0)),
    )


@dataclass
class Pace:
    """How fast training has been since the last look, leaving out what is not training."""

    step: int
    since: float = field(default_factory=time.perf_counter)
    waited: float = 0.0  # seconds, for data
    paused: float = 0.0

    def look(self, step: int) -> tuple[int, float, float]:
        """(steps, seconds of training, of which waiting for data) since the last look."""
        now = time.perf_counter()
        found = (step - self.step, max(1e-9, now - self.since - self.paused), self.waited)
        self.step, self.since, self.waited, self.paused = step, now, 0.0, 0.0
        return found

    @contextmanager
    def wait(self) -> Iterator[None]:
        """The block waits for data."""
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started

    @contextmanager
    def pause(self) -> Iterator[None]:
        """The block is not training."""
        started = time.perf_counter()
        yield
        self.paused += time.perf_counter() - started


@dataclass
class Journal:
    """Metrics, checkpoints and `status.json` of a training, which its main process writes.

    `flops_per_token` are those of step s, for the utilisation of the machine; `warning` looks at all evaluations when
    one has been added, and says what the user should know.
    """

    out: Path
    metrics: MetricsFile
    progress: Progress
    seq_len: int
    log_every: int
    flops_per_token: Callable[[int], int] | None
    warning: Callable[[Sequence[Mapping[str, Any]]], str | None] | None
    began_at: int
    saved_at: int
    evaluated_at: int
    started: float = field(default_factory=time.perf_counter)
    pace: Pace = field(init=False)
    _limit: float | None = None

    @contextmanager
    def recorded(self, state: Learner) -> Iterator[None]:
        """`status.json` says "running" within the block, and "failed" when an error ends it."""
        self.status("running", state)
        try:
            yield
        except Exception as error:
            with suppress(OSError):  # a full disk is why it failed, perhaps
                self.status("failed", state, reason=f"{type(error).__name__}: {error}")
            raise

    def awaited(self, stream: Stream, stop: Stop) -> Batch | None:
        """The next batch as it is read; None when a signal ended the wait for it."""
        with self.pace.wait():
            return stop.interruptible(stream.read)

    def __post_init__(self) -> None:
        self.pace = Pace(self.began_at)

    def records(self, step: int) -> bool:
        """Whether the figures of a step, counted from 1, are recorded."""
        return step % self.log_every == 0 or step == 1

    def looks(self, state: Learner) -> bool:
        """Whether what the last step found is wanted before the next: to be recorded, or for what is done after it."""
        return self.records(state.step) or self.wants_evaluation(state) or self.wants_checkpoint(state)

    def wants_evaluation(self, state: Learner) -> bool:
        """Whether an evaluation is due, and not there yet."""
        due = state.step and (state.step % state.config.eval_every == 0 or state.step >= state.steps)
        return bool(due) and state.step > self.evaluated_at

    def complete(self, state: Learner) -> bool:
        """Whether nothing is left to do."""
        return state.step >= state.steps and not self.wants_evaluation(state)

    def wants_checkpoint(self, state: Learner) -> bool:
        """Whether a checkpoint is due."""
        return bool(state.step) and (state.step % state.config.save_every == 0 or state.step >= state.steps)

    def evaluate(self, state: Learner, stop: Stop, measure: Callable[[], dict[str, Any]]) -> bool:
        """Record what `measure` finds with the averaged weights; False when a signal came before it had.

        Only the main process measures, and the others wait for it.
        """
        found = None
        if state.world.main:
            # A signal may cut the evaluation short, but not the exchange of the weights around it.
            with self.pace.pause(), state.ema.applied_to(state.model):
                found = stop.interruptible(measure)
        if state.world.any(stop.wished is not None):
            return False
        self._evaluated(state, found or {})
        return True

    def _evaluated(self, state: Learner, found: dict[str, Any]) -> None:
        """Record an evaluation, and warn of what it shows."""
        self.evaluated_at = state.step
        if state.world.main:
            self.metrics.write(state.step, "eval", found)
            broken = [name for name, figure in self.metrics.last("eval").items() if figure is None]
            if broken:
                self.progress.note(f"step {state.step:,}: {', '.join(broken)} on held-out rows is not finite")
            if self.warning is not None:
                warning = self.warning([line for line in self.metrics.read() if line["kind"] == "eval"])
                if warning is not None:
                    self.progress.note(f"step {state.step:,}: {warning}")

    def stepped(self, state: Learner, found: dict[str, float]) -> dict[str, float]:
        """Record a step, with the speed since the last that was recorded."""
        if state.world.main:
            steps, seconds, waited = self.pace.look(state.step)
            rows = steps * state.config.batch_size / seconds
            timing = {
                "rows_per_second": round(rows, 2),
                "tokens_per_second": round(rows * self.seq_len),
                "data_wait": round(waited / seconds, 4),
            }
            if self.flops_per_token is not None and time.perf_counter() - self.started > SETTLED:
                flops = rows * self.seq_len * self.flops_per_token(state.step - 1)
                timing["flops_utilisation"] = round(flops / (self._matmul_flops(state) * state.world.size), 4)
            self.metrics.write(state.step, "train", found, **timing)
        return found

    def _matmul_flops(self, state: Learner) -> float:
        """The rate of plain matrix products, measured once."""
        if self._limit is None:
            self._limit = cost.matmul_flops(state.device, state.compute.dtype)
        return self._limit

    def skipped(
        self,
        state: Learner,
        stream: Stream,
        batch: Batch,
        step: int,
        losses: Mapping[str, Tensor],
        loss_B: Tensor,
        *,
        remedy: str,
    ) -> None:
        """Say which batch changed nothing, at which step; `InputError` with the remedy when there have been too many.

        `losses` are this process's, by name; `loss_B` those of its rows, which show the bad ones among them. All
        processes call it, since the bad rows may be another's.
        """
        bad_B = torch.zeros(stream.batch_size, dtype=torch.float64)
        bad_B[batch.index_B] = (~loss_B.cpu().isfinite()).double()
        found = torch.stack([loss.detach().double().mean().cpu() for loss in losses.values()])
        bad_B, means = state.world.sum(bad_B), state.world.sum(found) / state.world.size
        rows = stream.order.rows_at(batch.position, stream.batch_size)
        suspects = rows[bad_B.numpy() > 0] if bad_B.any() else rows
        named = ", ".join(map(str, suspects[:8])) + " …" * (len(suspects) > 8)
        values = ", ".join(f"{name} {mean:.4g}" for name, mean in zip(losses, means.tolist(), strict=True))
        cause = "the gradient is" if means.isfinite().all() else "the loss is"
        what = f"step {step:,}: {cause} not finite ({values}) in rows {named} of the store, nothing updated"
        if state.skipped > state.config.max_nonfinite:
            raise InputError(
                f"{what}; {state.skipped} such batches are too many (--max-nonfinite {state.config.max_nonfinite}); "
                f"the checkpoints are whole: go on from the newest with a larger --max-nonfinite, or begin anew and, "
                f"{remedy}"
            )
        self.progress.note(what)

    def save_if_new(self, state: Learner) -> None:
        """Save a checkpoint of this step, unless there is one."""
        if state.step == self.saved_at:
            return
        if state.world.main:
            with self.pace.pause():
                self.metrics.sync()
                state.save(self.out / "checkpoints")
        self.saved_at = state.step
        self.status("running", state)

    def status(self, what: str, state: Learner, **more: str) -> None:
        """Write `status.json`, for whoever looks after many runs."""
        if state.world.main:
            record = {"state": what, "step": state.step, "steps": state.steps, "saved": self.saved_at, **more}
            files.write_json(self.out / "status.json", {**record, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})

    def close(self, state: Learner, stop: Stop) -> None:
        """Save what is new after the loop; `Stopped` when a signal ended it before its time."""
        self.save_if_new(state)
        if not self.complete(state):
            self.status("stopped", state)
            # A launcher ends the others when the first leaves, so nobody leaves before the checkpoint is there.
            state.world.from_main(None)
            saved = ", and saved" if state.step else ""
            by = stop.wished or "another process"
            raise Stopped(f"{self.out}: stopped by {by} at step {state.step:,}{saved}")
