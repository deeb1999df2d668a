"""Distillation of a run to few evaluations (Salimans & Ho, 2022): a run of its own, with the same latents."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldlm import config as configs
from ldlm import files, launcher, runtime
from ldlm.artifact import Artifact
from ldlm.config import START, DistillConfig, DistilledConfig, TrainConfig, UndistilledConfig, halvings
from ldlm.errors import InputError
from ldlm.features.encoder import online_encoder
from ldlm.features.store import FeatureStore
from ldlm.features.stream import Stream
from ldlm.location import Location, folder_name
from ldlm.pages import plots
from ldlm.progress import SILENT, Progress
from ldlm.runtime import Stop, World
from ldlm.sampling import solvers
from ldlm.sampling.trained_run import TrainedRun
from ldlm.training import checkpoint, cost, distillation
from ldlm.training.distillation import DistillState, Guide, distill_step, start_distillation
from ldlm.training.journal import Journal
from ldlm.training.learner import accumulation, check_shares
from ldlm.training.loop import train
from ldlm.training.output import begin, resume, shuffle_rows
from ldlm.training.speed import Speedometer


def plan(config: DistillConfig, run_path: Path) -> dict[str, Any]:
    """Rounds, steps and tokens of the training, without training."""
    trained = TrainedRun(run_path, torch.device("cpu"), config.checkpoint)
    training = settings(config, trained)
    rounds = distillation.rounds(training, _grid(training, trained))
    return {
        "rounds": len(rounds),
        "evaluations": [one.evaluations for one in rounds],
        "steps_of_round": training.distillation.steps,
        "steps": training.steps,
        "batch_size": training.batch_size,
        "tokens": training.steps * training.batch_size * trained.shapes.seq_len,
    }


def run(
    config: DistillConfig,
    run_path: Path,
    features: Location,
    out: Path,
    *,
    allow_partial: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Artifact:
    """Distil a run into the run `out`, from its newest checkpoint if it has one.

    Several processes share each batch, and signals stop it, as in `train.run`. `InputError` for a token-level run, and
    for a number of evaluations that halving does not lead to.
    """
    device = runtime.device(config.device)
    with runtime.world() as world, Stop() as stop, ExitStack() as held:
        progress = progress if world.main else SILENT
        trained = TrainedRun.of_job(run_path, device, config.checkpoint, world)
        training = settings(config, trained, begun=None if overwrite else out)
        if out.resolve() == run_path.resolve():
            raise InputError(f"{out} is the run to be distilled; choose another --output for its student")
        store = FeatureStore(features, allow_partial=allow_partial)
        trained.check_store(store)
        check_shares(training, world)
        split = store.split("train", online_encoder(store))
        window = shuffle_rows(training, out, split, training.batch_size, overwrite=overwrite)
        training = replace(training, shuffle_rows=window)
        state = _start(training, trained, device, world)
        held.callback(state.release)
        shuffled = {"seed": training.seed, "shuffle_rows": window}
        stream = Stream(split, batch_size=training.batch_size, device=device, world=world, **shuffled)
        inputs = {"checkpoint": trained.checkpoint.digest, "latents": trained.latents, **trained.conditioning}
        result = begin(
            state,
            out,
            "run",
            training,
            {**inputs, **store.as_input, "precision": state.compute.precision},
            reads=[run_path, *store.reads],
            rows=split,
            overwrite=overwrite,
            held=held,
            progress=progress,
        )
        if result.complete:
            return result

        world.main_only(lambda: _record(trained, out))
        state.compute.tell(progress)
        _remark(config, trained, progress)
        saved = resume(state, stream, result, store, progress)
        speed = Speedometer(state.step, rows_per_step=training.batch_size, tokens_per_row=store.shapes.seq_len)
        journal = Journal(out, state, speed, progress, saved=saved)
        evaluate = partial(distillation.evaluate, state, store.held_out(split.encode))
        train(state, distill_step, stream, journal, stop, progress, name="distill", evaluate=evaluate)
        if world.main:
            _finish(result, state, journal, trained)
        world.from_main(None)  # the others wait until the artefact is complete
    return Artifact(out, "run", "complete")


# ----------------------------------------------------------------------------------------------------------------------
# Before the loop


def settings(config: DistillConfig, trained: TrainedRun, *, begun: Path | None = None) -> DistilledConfig:
    """The settings of the distilled run: the trained run's, overridden by the distillation's.

    Settings that are None are filled in. `InputError` if this run can't be distilled with them; what an earlier version
    has begun in the folder `begun` keeps its sampler and its `final`.
    """
    run, config = trained.config, _of_distilled(config, trained) if trained.student is not None else config
    start = config.start or START
    count = halvings(start, config.evaluations)
    steps = config.steps or min(50_000, -(-trained.checkpoint.step // 5))
    lr = config.lr or run.optimizer.lr / 3
    rows = config.batch_size or run.batch_size
    parts = config.accumulate or accumulation(run, rows, launcher.processes())
    filled = replace(config, start=start, steps=steps, lr=lr, batch_size=rows, accumulate=parts)
    sampler: Any = solvers.settled(filled.sampler, trained.timesteps)
    filled = replace(filled, grid=sampler.grid, t_min=sampler.t_min)
    if begun is None or not (begun / "artifact.json").is_file():
        trained.check(replace(sampler, steps=start, guidance=filled.guidance))
    of_run = {field.name: getattr(run, field.name) for field in fields(TrainConfig)}
    of_both = of_run.keys() & {field.name for field in fields(DistillConfig)}
    mine: dict[str, Any] = {name: value for name in of_both if (value := getattr(filled, name)) is not None}
    mine["steps"] = count * steps
    mine["optimizer"] = replace(run.optimizer, lr=lr, lr_warmup_steps=steps // 10, lr_decay="cosine")
    before = run.undistilled if isinstance(run, DistilledConfig) else _undistilled(trained)
    taught: dict[str, Any] = {"distillation": filled, "final": _final(begun), "undistilled": before}
    return DistilledConfig(**{**of_run, "shuffle_rows": None, **mine}, **taught)


def _final(begun: Path | None) -> str:
    """The target of the last step, as `DistilledConfig.final`: that of the distillation in `begun`, if there is one."""
    record = begun / "config.yaml" if begun is not None else None
    found = configs.distilled(files.read_yaml(record)) if record is not None and record.is_file() else None
    return DistilledConfig().final if found is None else found.final


def _undistilled(trained: TrainedRun) -> UndistilledConfig:
    run = trained.config
    steps = trained.checkpoint.step
    return UndistilledConfig(steps=steps, batch_size=run.batch_size, accumulate=run.accumulate, optimizer=run.optimizer)


def _of_distilled(config: DistillConfig, trained: TrainedRun) -> DistillConfig:
    """The settings with which a distilled run is distilled further: with its own grid and guidance."""
    assert isinstance(trained.config, DistilledConfig) and trained.student is not None
    its, own = trained.config.distillation, trained.student.steps
    if config.start not in (None, own):
        raise InputError(f"{trained.path} draws in {own} evaluations and not in {config.start}; leave --start out")
    if config.guidance != 1:
        raise InputError(
            f"{trained.path} is already distilled, with guidance {its.guidance:g}, and can't take --guidance "
            f"{config.guidance:g} any more; give the run that it was distilled from"
        )
    for name in ("grid", "t_min"):
        if getattr(config, name) not in (getattr(its, name), None):
            raise InputError(
                f"{trained.path} is distilled to {name}={getattr(its, name)}, not {getattr(config, name)}; leave "
                f"--{name.replace('_', '-')} out"
            )
    kept: dict[str, Any] = {"steps": config.steps or its.steps, "lr": config.lr or its.lr}
    return replace(config, start=own, guidance=its.guidance, grid=its.grid, t_min=its.t_min, **kept)


def _start(training: DistilledConfig, trained: TrainedRun, device: torch.device, world: World) -> DistillState:
    """The distillation at step 0."""
    guide: Guide = partial(solvers.guided, guidance=training.distillation.guidance)
    if training.distillation.guidance == 1 or trained.student is not None:  # a student has learned the guided estimate
        guide = _unguided
    grid, timesteps = _grid(training, trained), trained.timesteps.state_dict()
    return start_distillation(training, trained.model, grid, timesteps, guide=guide, device=device, world=world)


def _unguided(denoise: Any) -> Any:
    return denoise


def _grid(training: DistilledConfig, trained: TrainedRun) -> Tensor:
    """Times (start + 1,) of the first teacher.

    The last is 0 for `final` x0: a step to t = 0 ends at its estimate, so that is what the student's last step learns.
    """
    assert training.distillation.start is not None
    sampler = replace(training.distillation.sampler, steps=training.distillation.start)
    times = solvers.grid_of(sampler, trained.schedule, trained.timesteps)
    return times if training.final == "state" else torch.cat([times[:-1], times.new_zeros(1)])


def _remark(config: DistillConfig, trained: TrainedRun, progress: Progress) -> None:
    """Note a run that is not finished, and a default grid that is not `learned`."""
    trained.remark_on_end(progress)
    if trained.student is None:
        trained.remark_on_grid(config.sampler, progress)


def _record(trained: TrainedRun, out: Path) -> None:
    """Copy what later stages need to know of the features, and the fine-tuned decoders, which read the same latents."""
    for name in ("features.json", "statistics.safetensors"):
        files.write_atomic(out / name, (trained.path / name).read_bytes())
    files.copy_tree(trained.path / "tokenizer", out / "tokenizer")
    for decoder in trained.decoders():
        source, target = trained.path / "decoders" / decoder.name, out / "decoders" / decoder.name
        if decoder.usable and source.is_dir() and not (target / "manifest.json").exists():
            _copy_decoder(source, target)


def _copy_decoder(source: Path, target: Path) -> None:
    """Copy a decoder without its checkpoints and plots; the manifest, which marks it as complete, comes last."""
    names = [path.name for path in source.iterdir() if path.is_file() and not path.name.startswith(".")]
    for name in sorted(names, key=lambda name: (name == "manifest.json", name)):
        files.write_atomic(target / name, (source / name).read_bytes())


# ----------------------------------------------------------------------------------------------------------------------
# What it leaves behind


def _finish(result: Artifact, state: DistillState, journal: Journal, trained: TrainedRun) -> None:
    latest = checkpoint.latest(journal.out / "checkpoints")
    assert latest is not None
    journal.finish(
        result,
        checkpoint=latest.digest,
        distilled_from={**trained.origin, "run": folder_name(trained.path)},
        evaluations=state.round.evaluations,
        shapes=vars(trained.shapes),
        parameters=cost.parameters(state.model),
    )
    plots.at_the_end(journal, state.config)
