"""What a training leaves behind while it runs, and how it is taken up again: metrics, checkpoints, `status.json`.

The training loops themselves stand in `stages/train.py` and `stages/finetune_decoder.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ldlm import accounting, artifact, checkpoint, claims, files
from ldlm.artifact import Artifact
from ldlm.config import TrainConfig
from ldlm.errors import InputError, Stopped
from ldlm.learner import Learner
from ldlm.metricsfile import MetricsFile
from ldlm.progress import Progress
from ldlm.runtime import Stop, World
from ldlm.stream import Batch, Stream

SETTLED = 30.0  # seconds from which on a run's speed is compared with the machine's


def begin(
    out: Path,
    kind: str,
    config: Any,
    inputs: Mapping[str, Any],
    training: TrainConfig,
    *,
    overwrite: bool,
    world: World,
    held: ExitStack,
    progress: Progress,
) -> Artifact:
    """The output, taken up or new, held against other processes than these until `held` closes.

    `training` is how `config` trains. A finished output is taken up again where it asks for more steps than were taken.
    """
    if training.optimizer.lr_decay != "constant":
        inputs = {**inputs, "steps": training.steps}  # they shape the learning rate, so they can't change on the way
    if world.main:
        if out.is_dir() and overwrite:
            with claims.sole(out):  # nobody trains there
                pass
        result = artifact.begin(out, kind, config, inputs, overwrite=overwrite)
        held.enter_context(claims.sole(out))
        if result.complete and result.manifest["step"] >= training.steps:
            progress.note(f"{out} is complete at step {result.manifest['step']}; nothing to do")
        elif result.complete:
            result.write_config(config)
            (out / "manifest.json").unlink()
            result = Artifact(out, kind, "partial")
    return Artifact(out, kind, world.from_main(result.state if world.main else None))


def resume(
    state: Learner,
    stream: Stream,
    out: Path,
    *,
    seq_len: int,
    progress: Progress,
    flops_per_token: Callable[[], int] | None = None,
    warning: Callable[[Sequence[Mapping[str, Any]]], str | None] | None = None,
) -> Journal:
    """Go on from the newest checkpoint that verifies, the same in all processes; see `Journal` for the rest."""
    newest = checkpoint.latest(out / "checkpoints") if state.world.main else None
    newest = state.world.from_main(newest)
    if newest is not None:
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
        flops_per_token=flops_per_token,
        warning=warning,
        began_at=state.step,
        saved_at=0 if newest is None else state.step,
        evaluated_at=state.world.from_main(max(evaluations, default=0)),
    )


@dataclass
class Journal:
    """Metrics, checkpoints and `status.json` of a training, which its main process writes.

    `flops_per_token` are those of a step, for the utilisation of the machine; `warning` looks at all evaluations when
    one has been added, and says what the user should know.
    """

    out: Path
    metrics: MetricsFile
    progress: Progress
    seq_len: int
    flops_per_token: Callable[[], int] | None
    warning: Callable[[Sequence[Mapping[str, Any]]], str | None] | None
    began_at: int
    saved_at: int
    evaluated_at: int
    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0  # seconds, for data
    _limit: float | None = None

    def wants_evaluation(self, state: Learner) -> bool:
        """Whether an evaluation is due, and not there yet."""
        due = state.step and (state.step % state.config.eval_every == 0 or state.step >= state.config.steps)
        return bool(due) and state.step > self.evaluated_at

    def complete(self, state: Learner) -> bool:
        """Whether nothing is left to do."""
        return state.step >= state.config.steps and not self.wants_evaluation(state)

    def wants_checkpoint(self, state: Learner) -> bool:
        """Whether a checkpoint is due."""
        return bool(state.step) and (state.step % state.config.save_every == 0 or state.step >= state.config.steps)

    def evaluated(self, state: Learner, found: dict[str, Any]) -> None:
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
        """Record a step."""
        if state.world.main:
            seconds = time.perf_counter() - self.started
            rows = (state.step - self.began_at) * state.config.batch_size
            tokens_per_second = rows * self.seq_len / seconds
            timing = {
                "rows_per_second": round(rows / seconds, 2),
                "tokens_per_second": round(tokens_per_second),
                "data_wait": round(self.waited / seconds, 4),
            }
            if self.flops_per_token is not None and seconds > SETTLED:
                share = tokens_per_second / state.world.size * self._seconds_per_token(state, self.flops_per_token)
                timing["flops_utilisation"] = round(share, 4)
            self.metrics.write(state.step, "train", found, **timing)
        return found

    def _seconds_per_token(self, state: Learner, flops_per_token: Callable[[], int]) -> float:
        """How long the step's FLOPs for a token would take at the rate of plain matrix products, measured once."""
        if self._limit is None:
            self._limit = flops_per_token() / accounting.matmul_flops(state.device)
        return self._limit

    def skipped(
        self, state: Learner, stream: Stream, batch: Batch, loss: float, loss_B: Tensor, *, remedy: str
    ) -> None:
        """Say which batch changed nothing; `InputError` with the remedy when there have been too many.

        `loss_B` are the losses of this process's rows, which show the bad ones among them.
        """
        rows = stream.order.rows_at(batch.position, stream.batch_size)[batch.index_B.cpu()]
        bad = ", ".join(map(str, rows[~loss_B.cpu().isfinite().numpy()][:8]))
        where = f"rows {bad} of the store" if bad else f"the gradient of rows {', '.join(map(str, rows[:8]))} …"
        what = f"step {state.step - 1}: the loss ({loss:.4g}) is not finite in {where}, nothing updated"
        if state.skipped > state.config.max_nonfinite:
            raise InputError(
                f"{what}; {state.skipped} such batches are too many (--max-nonfinite {state.config.max_nonfinite}); "
                f"the checkpoints are whole; {remedy}"
            )
        self.progress.note(what)

    def save_if_new(self, state: Learner) -> None:
        """Save a checkpoint of this step, unless there is one."""
        if state.step == self.saved_at:
            return
        if state.world.main:
            state.save(self.out / "checkpoints")
        self.saved_at = state.step
        self.status("running", state)

    def status(self, what: str, state: Learner) -> None:
        """Write `status.json`, for whoever looks after many runs."""
        if state.world.main:
            record = {"state": what, "step": state.step, "steps": state.config.steps, "saved": self.saved_at}
            files.write_json(self.out / "status.json", {**record, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})

    def close(self, state: Learner, stop: Stop) -> None:
        """Save what is new after the loop; `Stopped` when a signal ended it before its time."""
        self.save_if_new(state)
        if not self.complete(state):
            self.status("stopped", state)
            saved = ", and saved" if state.step else ""
            by = stop.wished or "another process"
            raise Stopped(f"{self.out}: stopped by {by} at step {state.step:,}{saved}")
