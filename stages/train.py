"""Joint training of latent encoder, denoiser and decoders on a feature store (Sections 4 and 5)."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file

from ldlm import config as configs
from ldlm import files, runtime
from ldlm.artifact import Artifact
from ldlm.compute import Compute, precision_on
from ldlm.config import Shapes, TrainConfig
from ldlm.errors import InputError
from ldlm.features.encoder import online_encoder
from ldlm.features.store import FeatureStore, Split
from ldlm.features.stream import Stream
from ldlm.location import Location
from ldlm.model.joint import build_meta
from ldlm.model.layers import head_widths
from ldlm.pages import plots
from ldlm.progress import SILENT, Progress
from ldlm.runtime import Stop, World
from ldlm.training import checkpoint, cost, heldout
from ldlm.training.fit import fitted
from ldlm.training.joint import TrainState, start, train_step
from ldlm.training.journal import Journal
from ldlm.training.learner import check_shares
from ldlm.training.loop import train
from ldlm.training.output import begin, resume
from ldlm.training.phases import phase_at
from ldlm.training.speed import Speedometer


def plan(config: TrainConfig, shapes: Shapes, *, devices: int | None = None, fit: str | None = None) -> dict[str, Any]:
    """Parameters, FLOPs per token, memory and attention kernel of one training step, without data or storage.

    `devices` are the processes, by default those of this job. `fit`, like 80GB, chooses accumulation and recomputation.
    """
    devices = devices or runtime.processes()
    kernel, flags = _kernel(config, shapes), {}
    if fit is not None:
        bf16, kind = cost.in_bf16(config), cost.device_kind(config)
        config, flags["flags"] = fitted(config, shapes, fit, devices=devices, bf16=bf16, device=kind)
    return {**cost.training_cost(config, shapes, devices=devices), "attention": kernel, **flags}


def _kernel(config: TrainConfig, shapes: Shapes) -> str:
    """Attention kernel on the device that a cost is counted for; xformers is taken to be there where no GPU is."""
    if cost.device_kind(config) == "cuda" and not torch.cuda.is_available():
        return "xformers" if cost.in_bf16(config) and config.compute.attention != "sdpa" else "sdpa"
    widths = head_widths(build_meta(config.model, shapes))
    return Compute.of(config.compute, runtime.device(config.device), widths).attention


def run(
    config: TrainConfig,
    features: Location,
    out: Path,
    *,
    allow_partial: bool = False,
    overwrite: bool = False,
    fit: str | None = None,
    progress: Progress = SILENT,
) -> Artifact:
    """Train up to `config.steps` steps into the run `out`, from its newest checkpoint if it has one.

    Under torchrun all processes share each batch. On SIGTERM and SIGINT the step at hand is finished and saved, and
    `Stopped` is raised; the same call resumes from there. `fit`, like 80GB, chooses accumulation and recomputation.
    """
    config = _taken_up(config, out, overwrite, progress)
    device = runtime.device(config.device)
    store = FeatureStore(features, allow_partial=allow_partial)
    _check(config, store)
    with runtime.world() as world, Stop() as stop, ExitStack() as held:
        progress = progress if world.main else SILENT
        if fit is not None:
            config = _fitted(config, store.shapes, fit, device, world, progress)
        check_shares(config, world)
        encode = online_encoder(store)
        scratch = store.encoder["kind"] == "scratch"
        state = start(config, store.shapes, scratch=scratch, device=device, world=world)
        held.callback(state.release)
        split = store.split("train", encode)
        stream = Stream(split, batch_size=config.batch_size, seed=config.seed, device=device, world=world)
        result = begin(
            state,
            out,
            "run",
            config,
            {"features": store.fingerprint, "precision": state.compute.precision},
            reads=[features] if isinstance(features, Path) else [],
            overwrite=overwrite,
            held=held,
            progress=progress,
        )
        if result.complete:
            return result

        world.main_only(lambda: _record_features(store, out))
        if world.main:
            _tell(config, store, out, result.state == "partial", progress)
            state.compute.tell(progress)
        saved = resume(state, stream, out, progress)
        warn = partial(heldout.latent_warning, warmup_steps=config.recipe.warmup_steps, space=config.model.space)
        journal = Journal(out, state, _speedometer(state, store.shapes), progress, saved=saved, warn=warn)
        evaluate = partial(_evaluate, state, store.held_out(encode))
        train(state, train_step, stream, journal, stop, progress, name="train", evaluate=evaluate)
        if world.main:
            _finish(result, state, journal, store)
        world.from_main(None)  # the others wait until it is there
    return Artifact(out, "run", "complete")


def _speedometer(state: TrainState, shapes: Shapes) -> Speedometer:
    """The run's speed, compared with that of plain matrix products on its devices, which is measured once."""
    config = state.config
    flops_per_token = cache(partial(cost.flops_per_token, config, shapes))
    return Speedometer(
        state.step,
        rows_per_step=config.batch_size,
        tokens_per_row=shapes.seq_len,
        flops_per_token=lambda step: flops_per_token(phase_at(config, step)),
        flops_limit=cache(lambda: state.world.size * cost.matmul_flops(state.device, state.compute.dtype)),
    )


def _evaluate(state: TrainState, held_out: Split) -> dict[str, Any]:
    """Figures of the weights in the model on held-out rows, as JSON."""
    with state.compute.autocast():
        return heldout.evaluate(
            state.objective,
            held_out,
            rows=state.config.eval_rows,
            batch_size=min(state.rows_at_once, state.config.eval_rows),
            device=state.device,
            timesteps=state.timesteps,
        ).to_json()


# ----------------------------------------------------------------------------------------------------------------------
# Before the loop


def _taken_up(config: TrainConfig, out: Path, overwrite: bool, progress: Progress) -> TrainConfig:
    """The settings to train with in `out`: those of a run of an earlier version keep the meaning they had there."""
    if overwrite or not (out / "config.yaml").is_file() or not (out / "artifact.json").is_file():
        return config
    if files.read_json(out / "artifact.json").get("kind") != "run":
        return config
    old = configs.taken_up(config, configs.from_stored(TrainConfig, files.read_yaml(out / "config.yaml")))
    if old != config and runtime.reports():
        progress.note(f"{out} was begun by an earlier version; its settings keep their meaning (recipe.edition=1)")
    return old


def _check(config: TrainConfig, store: FeatureStore) -> None:
    """`InputError` for settings that contradict each other or the store."""
    reconstruction, space, kind = config.recipe.reconstruction, config.model.space, store.encoder["kind"]
    needed = {"tencdm": "hidden", "embedding": "embedding", "scratch": "scratch"}.get(space, kind)
    if kind != needed:
        raise InputError(
            f"model.space={space} needs features of kind {needed}, and {store.path} holds {kind}; make them with "
            f"`ldlm extract-features --kind {needed}`"
        )
    if config.recipe.edition == 1 and configs.autoencoder_steps(config) >= config.steps:
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


def _fitted(
    config: TrainConfig, shapes: Shapes, fit: str, device: torch.device, world: World, progress: Progress
) -> TrainConfig:
    """The configuration with the accumulation and recomputation that fit this device."""
    bf16 = precision_on(config.compute.precision, device) == "bf16"
    config, flags = fitted(config, shapes, fit, devices=world.size, bf16=bf16, device=device.type)
    progress.note(f"--fit {fit}: {flags}")
    return config


def _tell(config: TrainConfig, store: FeatureStore, out: Path, taken_up: bool, progress: Progress) -> None:
    noise, space = configs.decoder_noise(config.model.space, config.recipe), config.model.space
    if space != "ldlm" and config.recipe.edition > 1 and config.recipe.decoder_noise == "published":
        progress.note(
            f"the decoders' noise is that of {space} ({noise}); recipe.sigma_dec needs recipe.decoder_noise=additive"
        )
    if space == "cosmos":
        first = configs.autoencoder_steps(config)
        progress.note(f"the autoencoder trains {first:,} steps (cosmos.steps), and then the denoiser")
        if config.recipe.reconstruction == "mse":
            progress.note("recipe.reconstruction=mse: COSMOS trains its autoencoder with ce+mse")
    if not store.sealed:
        progress.note(f"{store.path} is not sealed: {store.missing()}; training on what is there")
    if store.held_out().name == "train":
        progress.note(f"{store.path} has no held-out rows, so evaluations are on training rows")
    if taken_up and not checkpoint.all_in(out / "checkpoints"):
        progress.note(f"{out} was begun and has no checkpoint yet; starting from step 0")


def _record_features(store: FeatureStore, out: Path) -> None:
    """Copy what later stages need of the features into the run: they don't open the store."""
    mean, std = store.statistics()
    record = {
        "encoder": store.encoder,
        "shapes": vars(store.shapes),
        "store": store.fingerprint,
        "text": store.text_fingerprint,
        "rows": store.rows,
    }
    files.write_json(out / "features.json", record)
    with files.replacing(out / "statistics.safetensors") as temporary:
        save_file({"mean": mean, "std": std}, temporary)
    files.copy_tree(store.tokenizer_path, out / "tokenizer")


# ----------------------------------------------------------------------------------------------------------------------
# What a run leaves behind


def _finish(result: Artifact, state: TrainState, journal: Journal, store: FeatureStore) -> None:
    latest = checkpoint.latest(journal.out / "checkpoints")
    assert latest is not None
    journal.write_status("complete")
    result.finish(
        step=state.step,
        checkpoint=latest.digest,
        shapes=vars(store.shapes),
        parameters=cost.parameters(state.model),
        attention=state.compute.attention,
        held_out=journal.metrics.last("eval"),
        skipped=state.skipped,
        seconds=round(time.perf_counter() - journal.started, 1),
    )
    try:
        plots.of_run(journal.out, journal.metrics.read())
    except Exception as error:  # the run is complete without them
        journal.progress.note(f"no plots ({type(error).__name__}: {error}); `ldlm plot {journal.out}` draws them")
