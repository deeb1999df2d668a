"""Training on a feature store: LDLM's joint training (Sections 4 and 5), or that of a rival method."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from ldlm import artifact, files, launcher, runtime
from ldlm import config as configs
from ldlm.artifact import Artifact
from ldlm.baselines.registry import training_method
from ldlm.compute import Compute, precision_on
from ldlm.config import AnyTrainConfig, ExtractConfig, Shapes
from ldlm.errors import InputError
from ldlm.features import inputs
from ldlm.features.store import FeatureStore
from ldlm.features.stream import Stream
from ldlm.location import Location, local
from ldlm.model.layers import head_widths
from ldlm.pages import plots
from ldlm.progress import SILENT, Progress
from ldlm.runtime import Stop, World
from ldlm.training import checkpoint, cost
from ldlm.training.fit import fitted
from ldlm.training.journal import Journal
from ldlm.training.learner import Learner, check_shares
from ldlm.training.loop import train
from ldlm.training.method import AnyMethod
from ldlm.training.output import begin, resume, shuffle_rows
from ldlm.training.speed import Speedometer


def plan(
    config: AnyTrainConfig,
    shapes: Shapes,
    *,
    features: str | None = None,
    devices: int | None = None,
    fit: str | None = None,
) -> dict[str, Any]:
    """Parameters, FLOPs per token, memory and attention kernel of one training step, without data or storage.

    `features` is the kind of the features, if known. `devices` are the processes, by default those of this job. `fit`,
    like 80GB, chooses accumulation and recomputation.
    """
    devices, method = devices or launcher.processes(), training_method(config)
    kernel, flags = _kernel(method, shapes), {}
    if fit is not None:
        bf16, kind = cost.in_bf16(config), cost.device_kind(config)
        found = fitted(method, shapes, fit, devices=devices, bf16=bf16, device=kind, features=features)
        method, flags["flags"] = found
    return {**cost.training_cost(method, shapes, devices=devices, features=features), "attention": kernel, **flags}


def check_ahead(
    config: AnyTrainConfig, extraction: ExtractConfig, features: Path, out: Path, *, fit: str | None = None
) -> None:
    """`InputError` for what `run` would refuse with overwriting, before an extraction overwrites its store."""
    artifact.check_overwrite(out, "run", local(features, extraction.encoder))
    tokenizer, encoder = inputs.models(extraction)
    shapes, method = inputs.shapes(extraction, tokenizer, encoder), training_method(config)
    method.check_kind(extraction.kind, shapes.seq_len, features)
    method.check_encoder(encoder, shapes.seq_len)
    plan(config, shapes, features=extraction.kind, fit=fit)


def _kernel(method: AnyMethod, shapes: Shapes) -> str:
    """Attention kernel on the device that a cost is counted for; without a GPU here, xformers is taken to be there."""
    config = method.config
    if cost.device_kind(config) == "cuda" and not torch.cuda.is_available():
        fast = cost.in_bf16(config) and config.compute.attention != "sdpa"
        return method.attention("xformers" if fast else "sdpa")
    widths = head_widths(method.network(shapes))
    return method.attention(Compute.of(config.compute, runtime.device(config.device), widths).attention)


def run(
    config: AnyTrainConfig,
    features: Location,
    out: Path,
    *,
    allow_partial: bool = False,
    overwrite: bool = False,
    fit: str | None = None,
    progress: Progress = SILENT,
) -> Artifact:
    """Train up to `config.steps` steps into the run `out`, from its newest checkpoint if it has one.

    Under torchrun all processes share each batch. On SIGTERM and SIGINT the current step is finished and saved, and
    `Stopped` is raised; the same call resumes from there. `fit`, like 80GB, chooses accumulation and recomputation.
    """
    method = _taken_up(training_method(config), out, overwrite, progress)
    device = runtime.device(config.device)
    store = FeatureStore(features, allow_partial=allow_partial)
    method.check(store)
    with runtime.world() as world, Stop() as stop, ExitStack() as held:
        progress = progress if world.main else SILENT
        if fit is not None:
            method = _fitted(method, store, fit, device, world, progress)
        rows, held_out = method.rows(store)
        window = shuffle_rows(method.config, out, rows, method.config.batch_size, overwrite=overwrite)
        method = method.changed(shuffle_rows=window)
        config = method.config
        check_shares(config, world)
        state = method.start(store, device=device, world=world)
        held.callback(state.release)
        shuffled = {"seed": config.seed, "shuffle_rows": window}
        stream = Stream(rows, batch_size=config.batch_size, device=device, world=world, **shuffled)
        result = begin(
            state,
            out,
            "run",
            config,
            {**store.as_input, "precision": state.compute.precision},
            reads=store.reads,
            rows=rows,
            overwrite=overwrite,
            held=held,
            progress=progress,
        )
        if result.complete:
            return result

        world.main_only(lambda: _record_features(method, store, out))
        for remark in method.remarks(store):
            progress.note(remark)
        state.compute.tell(progress)
        saved = resume(state, stream, result, store, progress)
        speed = _speedometer(method, state, store)
        journal = Journal(out, state, speed, progress, saved=saved, warn=method.warning)
        evaluate = partial(method.evaluate, state, held_out)
        train(state, method.step, stream, journal, stop, progress, name="train", evaluate=evaluate)
        if world.main:
            _finish(result, method, state, journal, store)
        world.from_main(None)  # the others wait until the artefact is complete
    return Artifact(out, "run", "complete")


def _speedometer(method: AnyMethod, state: Learner[Any], store: FeatureStore) -> Speedometer:
    """Measures the run's speed, also against that of plain matrix products on its devices, which is measured once."""
    flops_per_token = cache(partial(method.flops_per_token, store.shapes, features=store.encoder["kind"]))
    return Speedometer(
        state.step,
        rows_per_step=state.config.batch_size,
        tokens_per_row=store.shapes.seq_len,
        flops_per_token=lambda step: flops_per_token(method.phase_at(step)),
        flops_limit=cache(lambda: state.world.size * cost.matmul_flops(state.device, state.compute.dtype)),
    )


# ----------------------------------------------------------------------------------------------------------------------
# Before the loop


def _taken_up(method: AnyMethod, out: Path, overwrite: bool, progress: Progress) -> AnyMethod:
    """The method to train with in `out`: settings of a run that an earlier version began keep the meaning they had.

    `InputError` if `out` is a run of another method.
    """
    if overwrite or not (out / "config.yaml").is_file() or not (out / "artifact.json").is_file():
        return method
    if files.read_json(out / "artifact.json").get("kind") != "run":
        return method
    settings = files.read_yaml(out / "config.yaml")
    if configs.distilled(settings) is not None:
        raise InputError(f"{out} is a distilled run, which `ldlm distill` continues; choose another --output")
    there, asked = configs.method_of(settings), configs.method_of(configs.to_dict(method.config))
    if there != asked:
        raise InputError(f"{out} is a run of method {there}, not {asked}; choose another --output, or add --overwrite")
    old, kept = method.taken_up(settings)
    if kept is not None and launcher.reports():
        progress.note(f"{out} was begun by an earlier version; {kept}")
    return old


def _fitted(
    method: AnyMethod, store: FeatureStore, fit: str, device: torch.device, world: World, progress: Progress
) -> AnyMethod:
    """The method with the accumulation and recomputation that fit this device."""
    bf16 = precision_on(method.config.compute.precision, device) == "bf16"
    kind = store.encoder["kind"]
    method, flags = fitted(method, store.shapes, fit, devices=world.size, bf16=bf16, device=device.type, features=kind)
    progress.note(f"--fit {fit}: {flags}")
    return method


def _record_features(method: AnyMethod, store: FeatureStore, out: Path) -> None:
    """Copy what later stages need to know of the features into the run, since they don't open the store."""
    record = {
        "encoder": store.encoder,
        "shapes": vars(store.shapes),
        "store": store.fingerprint,
        "text": store.text_fingerprint,
        "rows": store.rows,
    }
    files.write_json(out / "features.json", record)
    method.record(store, out)
    files.copy_tree(store.tokenizer_path, out / "tokenizer")


# ----------------------------------------------------------------------------------------------------------------------
# What a run leaves behind


def _finish(result: Artifact, method: AnyMethod, state: Learner[Any], journal: Journal, store: FeatureStore) -> None:
    latest = checkpoint.latest(journal.out / "checkpoints")
    assert latest is not None
    parameters = method.parameters(state.model)
    journal.finish(result, checkpoint=latest.digest, shapes=vars(store.shapes), parameters=parameters)
    plots.at_the_end(journal, method.config)
