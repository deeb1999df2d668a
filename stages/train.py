"""Joint training of latent encoder, denoiser and decoders on a feature store (Sections 4 and 5)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file

from ldlm import accounting, artifact, checkpoint, claims, files, heldout, plots, runtime
from ldlm.artifact import Artifact
from ldlm.config import Shapes, TrainConfig
from ldlm.errors import InputError, Stopped
from ldlm.location import Location
from ldlm.metricsfile import MetricsFile
from ldlm.progress import SILENT, Progress
from ldlm.runtime import Stop, World
from ldlm.store import FeatureStore, Split
from ldlm.stream import Batch, Stream
from ldlm.trainer import Step, TrainState, figures, start, train_step

SETTLED = 30.0  # seconds from which on a run's speed is compared with the machine's


def plan(config: TrainConfig, shapes: Shapes) -> dict[str, Any]:
    """Parameters, FLOPs per token and memory of one training step, without data or storage."""
    return accounting.training_cost(config, shapes)


def run(
    config: TrainConfig,
    features: Location,
    out: Path,
    *,
    allow_partial: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Artifact:
    """Train up to `config.steps` steps into the run `out`, from its newest checkpoint if it has one.

    Under torchrun all processes share each batch. SIGTERM and SIGINT end it after the step at hand with a checkpoint,
    and raise `Stopped`; the same call goes on from there.
    """
    device = runtime.device(config.device)
    store = FeatureStore(features, allow_partial=allow_partial)
    _check(config, store)
    with runtime.world() as world, Stop() as stop, ExitStack() as held:
        progress = progress if world.main else SILENT
        _check_processes(config, world)
        split = store.split("train")
        scratch = store.encoder["kind"] == "scratch"
        state = start(config, store.shapes, scratch=scratch, device=device, world=world)
        stream = Stream(
            store, split, batch_size=config.batch_size, seed=config.seed, position=0, device=device, world=world
        )
        result = _begin(config, store, out, overwrite=overwrite, world=world, held=held, progress=progress)
        if result.complete:
            return result

        journal = _resume(state, stream, out, progress)
        _train(state, stream, store.held_out(), journal, stop, progress)
        journal.save_if_new(state)
        if not journal.complete(state):
            journal.status("stopped", state)
            saved = ", and saved" if state.step else ""
            raise Stopped(f"{out}: stopped by {stop.wished or 'another process'} at step {state.step:,}{saved}")
        if world.main:
            _finish(result, state, journal, store)
        world.from_main(None)  # the others wait until it is there
    return Artifact(out, "run", "complete")


def _train(
    state: TrainState, stream: Stream, held_out: Split, journal: Journal, stop: Stop, progress: Progress
) -> None:
    """The training loop: stop? evaluate, save, read, step, log."""
    config, world = state.config, state.world
    alone = world.size == 1  # others would wait for this process in vain
    with stream, progress.task("train", config.steps, "step", done=state.step) as task, suppress(Stopped):
        while not world.any(stop.wished is not None):
            if journal.wants_evaluation(state):
                with stop.at_once(alone):
                    journal.evaluated(state, _evaluate(state, held_out))
            if journal.wants_checkpoint(state):
                journal.save_if_new(state)
            if state.step >= config.steps:
                break

            asked = time.perf_counter()
            with stop.at_once(alone):
                batch = stream.read()
            journal.waited += time.perf_counter() - asked

            step = train_step(state, stream.complete(batch))

            shown = {}
            if not step.finite:
                _skipped(state, stream, batch, step, progress)
            elif state.step % config.log_every == 0 or state.step == 1:
                shown = journal.stepped(state, figures(state, step))
            task.advance(1, **{name: shown[name] for name in ("l_diff", "l_h", "l_w", "token_accuracy") if shown})


def _skipped(state: TrainState, stream: Stream, batch: Batch, step: Step, progress: Progress) -> None:
    """Say which batch changed nothing; `InputError` when there have been too many."""
    config, l_diff_B = state.config, torch.cat([part.l_diff_B for part in step.losses]).cpu()
    rows = stream.order.rows_at(batch.position, stream.batch_size)[batch.index_B.cpu()]
    bad = ", ".join(map(str, rows[~l_diff_B.isfinite().numpy()][:8]))
    where = f"rows {bad} of the store" if bad else f"the gradient of rows {', '.join(map(str, rows[:8]))} …"
    what = (
        f"step {state.step - 1}: the loss ({step.losses[0].loss.item():.4g}) is not finite in {where}, nothing updated"
    )
    if state.skipped > config.max_nonfinite:
        raise InputError(
            f"{what}; {state.skipped} such batches are too many (--max-nonfinite {config.max_nonfinite}); the "
            f"checkpoints are whole; lower optimizer.lr (it is {config.optimizer.lr}) or lengthen the warm-ups"
        )
    progress.note(what)


# ----------------------------------------------------------------------------------------------------------------------
# Before the loop


def _check(config: TrainConfig, store: FeatureStore) -> None:
    """Combinations that can't train what they promise."""
    reconstruction, space, kind = config.recipe.reconstruction, config.model.space, store.encoder["kind"]
    needed = {"tencdm": "hidden", "embedding": "embedding", "scratch": "scratch"}.get(space, kind)
    if kind != needed:
        raise InputError(
            f"model.space={space} needs features of kind {needed}, and {store.path} holds {kind}; make them with "
            f"`ldlm extract-features --kind {needed}`"
        )
    if space == "cosmos" and config.cosmos.steps >= config.steps:
        raise InputError(
            f"cosmos.steps={config.cosmos.steps:,} of the autoencoder leave none of {config.steps:,} steps for the "
            f"denoiser; lower it"
        )
    if store.encoder["kind"] == "scratch" and reconstruction != "ce":
        raise InputError(
            f"{store.path} holds tokens only, whose embeddings learn by cross-entropy alone; add "
            f"--set recipe.reconstruction=ce (it is {reconstruction})"
        )
    if "ce" in reconstruction and config.model.token_decoder.mode == "deferred":
        raise InputError(
            f"recipe.reconstruction={reconstruction} trains the token decoder, and model.token_decoder.mode=deferred "
            f"leaves it out; choose mse or joint"
        )


def _check_processes(config: TrainConfig, world: World) -> None:
    parts = world.size * config.accumulate
    if config.batch_size % parts:
        raise InputError(
            f"batch_size={config.batch_size} can't be divided evenly among {world.size} processes with accumulate="
            f"{config.accumulate}; choose a multiple of {parts}"
        )


def _begin(
    config: TrainConfig,
    store: FeatureStore,
    out: Path,
    *,
    overwrite: bool,
    world: World,
    held: ExitStack,
    progress: Progress,
) -> Artifact:
    """The output, taken up or new, held against other processes than these until `held` closes."""
    inputs: dict[str, Any] = {"features": store.fingerprint}
    if config.optimizer.lr_decay != "constant":
        inputs["steps"] = config.steps  # they shape the learning rate, so they can't change on the way
    if world.main:
        if out.is_dir() and overwrite:
            with claims.sole(out):  # nobody trains there
                pass
        result = artifact.begin(out, "run", config, inputs, overwrite=overwrite)
        held.enter_context(claims.sole(out))
        if result.complete and result.manifest["step"] >= config.steps:
            progress.note(f"{out} is complete at step {result.manifest['step']}; nothing to do")
        else:
            if result.complete:  # it goes on beyond the steps that it was finished with
                result.write_config(config)
                (out / "manifest.json").unlink()
                result = Artifact(out, "run", "partial")
            _record_features(store, out)
            _tell(store, out, result.state == "partial", progress)
    return Artifact(out, "run", world.from_main(result.state if world.main else None))


def _tell(store: FeatureStore, out: Path, taken_up: bool, progress: Progress) -> None:
    if not store.sealed:
        progress.note(f"{store.path} is not sealed: {store.missing()}; training on what is there")
    if store.held_out().name == "train":
        progress.note(f"{store.path} has no held-out rows, so evaluations are on training rows")
    if taken_up and not checkpoint.all_in(out / "checkpoints"):
        progress.note(f"{out} was begun and has no checkpoint yet; starting from step 0")


def _record_features(store: FeatureStore, out: Path) -> None:
    """What the later stages must know of the features: they never see the store that the run was trained on."""
    mean, std = store.statistics()
    record = {"encoder": store.encoder, "shapes": vars(store.shapes), "store": store.fingerprint}
    files.write_json(out / "features.json", record)
    with files.replacing(out / "statistics.safetensors") as temporary:
        save_file({"mean": mean, "std": std}, temporary)
    files.copy_tree(store.tokenizer_path, out / "tokenizer")


def _resume(state: TrainState, stream: Stream, out: Path, progress: Progress) -> Journal:
    """Go on from the newest checkpoint that verifies, the same in all processes."""
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
        began_at=state.step,
        saved_at=0 if newest is None else state.step,
        evaluated_at=state.world.from_main(max(evaluations, default=0)),
    )


# ----------------------------------------------------------------------------------------------------------------------
# What a run leaves behind


@dataclass
class Journal:
    """Metrics, checkpoints and `status.json` of a run, which its main process writes."""

    out: Path
    metrics: MetricsFile
    progress: Progress
    began_at: int
    saved_at: int
    evaluated_at: int
    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0  # seconds, for data
    _limit: float | None = None

    def wants_evaluation(self, state: TrainState) -> bool:
        """Whether an evaluation is due, and not there yet."""
        due = state.step and (state.step % state.config.eval_every == 0 or state.step >= state.config.steps)
        return bool(due) and state.step > self.evaluated_at

    def complete(self, state: TrainState) -> bool:
        """Whether nothing is left to do."""
        return state.step >= state.config.steps and not self.wants_evaluation(state)

    def wants_checkpoint(self, state: TrainState) -> bool:
        """Whether a checkpoint is due."""
        return bool(state.step) and (state.step % state.config.save_every == 0 or state.step >= state.config.steps)

    def evaluated(self, state: TrainState, found: dict[str, Any]) -> None:
        """Record an evaluation, and warn when the latents have collapsed or exploded."""
        self.evaluated_at = state.step
        if state.world.main:
            self.metrics.write(state.step, "eval", found)
            warning = heldout.latent_warning([line for line in self.metrics.read() if line["kind"] == "eval"])
            if warning is not None:
                self.progress.note(f"step {state.step:,}: {warning}")

    def stepped(self, state: TrainState, found: dict[str, float]) -> dict[str, float]:
        """Record a step."""
        if state.world.main:
            seconds = time.perf_counter() - self.started
            rows = (state.step - self.began_at) * state.config.batch_size
            tokens_per_second = rows * state.model.shapes.seq_len / seconds
            timing = {
                "rows_per_second": round(rows / seconds, 2),
                "tokens_per_second": round(tokens_per_second),
                "data_wait": round(self.waited / seconds, 4),
            }
            if seconds > SETTLED:
                share = tokens_per_second / state.world.size * self._seconds_per_token(state)
                timing["flops_utilisation"] = round(share, 4)
            self.metrics.write(state.step, "train", found, **timing)
        return found

    def _seconds_per_token(self, state: TrainState) -> float:
        """How long the step's FLOPs for a token would take at the rate of plain matrix products, measured once."""
        if self._limit is None:
            flops = accounting.training_cost(state.config, state.model.shapes)["flops_per_token"]
            self._limit = flops / accounting.matmul_flops(state.device)
        return self._limit

    def save_if_new(self, state: TrainState) -> None:
        """Save a checkpoint of this step, unless there is one."""
        if state.step == self.saved_at:
            return
        if state.world.main:
            state.save(self.out / "checkpoints")
        self.saved_at = state.step
        self.status("running", state)

    def status(self, what: str, state: TrainState) -> None:
        """Write `status.json`, for whoever looks after many runs."""
        if state.world.main:
            record = {"state": what, "step": state.step, "steps": state.config.steps, "saved": self.saved_at}
            files.write_json(self.out / "status.json", {**record, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


def _finish(result: Artifact, state: TrainState, journal: Journal, store: FeatureStore) -> None:
    draw_plots(journal.out, journal.metrics.read())
    latest = checkpoint.latest(journal.out / "checkpoints")
    assert latest is not None
    journal.status("complete", state)
    result.finish(
        step=state.step,
        checkpoint=latest.digest,
        shapes=vars(store.shapes),
        parameters=accounting.parameters(state.model),
        held_out=journal.metrics.last("eval"),
        skipped=state.skipped,
        seconds=round(time.perf_counter() - journal.started, 1),
    )


def draw_plots(out: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """`plots/` of a run from its metrics."""
    plots.training(out, metrics)
    plots.dynamics(out / "plots" / "dynamics.png", {out.name: metrics})
    plots.timesteps(out / "plots" / "timesteps.png", metrics)


def _evaluate(state: TrainState, split: Split) -> dict[str, Any]:
    """Held-out figures with the averaged weights, and the timestep distribution at this step.

    Only the main process needs them, and the others wait for it at the next step.
    """
    if not state.world.main:
        return {}
    with state.ema.applied_to(state.model):
        found = heldout.evaluate(
            state.objective,
            split,
            rows=state.config.eval_rows,
            batch_size=min(state.config.batch_size, state.config.eval_rows),
            device=state.device,
            timesteps=state.timesteps,
        )
    return {**found, "timestep_p": state.timesteps.state_dict()["p"]}
