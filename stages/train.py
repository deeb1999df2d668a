"""Joint training of latent encoder, denoiser and decoders on a feature store (Sections 4 and 5)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file

from ldlm import accounting, artifact, checkpoint, files, heldout, plots, runtime
from ldlm.artifact import Artifact
from ldlm.config import Shapes, TrainConfig
from ldlm.errors import InputError
from ldlm.location import Location
from ldlm.metricsfile import MetricsFile
from ldlm.objective import Losses
from ldlm.progress import SILENT, Progress
from ldlm.store import FeatureStore
from ldlm.stream import Stream
from ldlm.trainer import TrainState, start, train_step


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
    """Train up to `config.steps` steps into the run `out`, from its newest checkpoint if it has one."""
    device = runtime.device(config.device)
    store = FeatureStore(features, allow_partial=allow_partial)
    if not store.sealed:
        progress.note(f"{features} is not sealed: {store.missing()}; training on what is there")
    _check(config, store)
    split, held_out = store.split("train"), store.held_out()
    if held_out.name == "train":
        progress.note(f"{features} has no held-out rows, so evaluations are on training rows")
    state = start(config, store.shapes, scratch=store.encoder["kind"] == "scratch", device=device)
    stream = Stream(store, split, batch_size=config.batch_size, seed=config.seed, position=0, device=device)
    inputs: dict[str, Any] = {"features": store.fingerprint}
    if config.optimizer.lr_decay != "constant":
        inputs["steps"] = config.steps  # they shape the learning rate, so they can't change on the way
    result = artifact.begin(out, "run", config, inputs, overwrite=overwrite)
    if result.complete and result.manifest["step"] >= config.steps:
        progress.note(f"{out} is complete at step {result.manifest['step']}; nothing to do")
        return result
    if result.complete:  # it goes on beyond the steps that it was finished with
        result.write_config(config)
        (out / "manifest.json").unlink()
    _record_features(store, out)

    metrics = MetricsFile(out / "metrics.jsonl")
    resumed = checkpoint.latest(out / "checkpoints")
    if resumed is not None:
        state.load(resumed)
        stream.position = state.position
        progress.note(f"resuming from step {state.step}")
    elif result.state == "partial":
        progress.note(f"{out} was begun and has no checkpoint yet; starting from step 0")
    metrics.truncate(state.step)
    began_at, started = state.step, time.perf_counter()

    with stream, progress.task("train", config.steps, "step", done=state.step) as task:
        for batch in stream:
            new = state.step > began_at
            if new and (state.step % config.eval_every == 0 or state.step == config.steps):
                metrics.write(state.step, "eval", _evaluate(state, held_out))
            if new and (state.step % config.save_every == 0 or state.step == config.steps):
                state.save(out / "checkpoints")
            if state.step >= config.steps:
                break

            losses, settings = train_step(state, batch)

            figures = {}
            if state.step % config.log_every == 0 or state.step == 1:
                figures = _figures(losses, settings)
                metrics.write(state.step, "train", figures, rows_per_second=_rate(state, began_at, started))
            task.advance(1, **{k: figures[k] for k in ("l_diff", "l_h", "l_w", "token_accuracy") if k in figures})

    plots.training(out, metrics.read())
    latest = checkpoint.latest(out / "checkpoints")
    assert latest is not None
    return result.finish(
        step=state.step,
        checkpoint=latest.digest,
        shapes=vars(store.shapes),
        parameters=accounting.parameters(state.model),
        held_out=metrics.last("eval"),
        seconds=round(time.perf_counter() - started, 1),
    )


def _check(config: TrainConfig, store: FeatureStore) -> None:
    """Combinations that can't train what they promise."""
    reconstruction = config.recipe.reconstruction
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


def _record_features(store: FeatureStore, out: Path) -> None:
    """What the later stages must know of the features: they never see the store that the run was trained on."""
    mean, std = store.statistics()
    record = {"encoder": store.encoder, "shapes": vars(store.shapes), "store": store.fingerprint}
    files.write_json(out / "features.json", record)
    with files.replacing(out / "statistics.safetensors") as temporary:
        save_file({"mean": mean, "std": std}, temporary)
    files.copy_tree(store.tokenizer_path, out / "tokenizer")


def _evaluate(state: TrainState, split: Any) -> dict[str, Any]:
    """Held-out figures with the averaged weights, and the timestep distribution at this step."""
    with state.ema.applied_to(state.model):
        figures = heldout.evaluate(
            state.objective,
            split,
            rows=state.config.eval_rows,
            batch_size=min(state.config.batch_size, state.config.eval_rows),
            device=state.device,
        )
    return {**figures, "timestep_p": state.timesteps.state_dict()["p"]}


def _figures(losses: Losses, settings: dict[str, Any]) -> dict[str, float]:
    """The step as numbers."""
    values = {
        "loss": losses.loss,
        "l_diff": losses.l_diff,
        "l_h": losses.l_h,
        "l_w": losses.l_w,
        "token_accuracy": losses.token_accuracy,
        "latent_std": losses.latents.std(dim=0).mean(),
        "latent_norm": losses.latents.norm(dim=-1).mean(),
        **settings,
    }
    return {name: float(torch.as_tensor(value).detach()) for name, value in values.items()}


def _rate(state: TrainState, began_at: int, started: float) -> float:
    return round((state.step - began_at) * state.config.batch_size / (time.perf_counter() - started), 2)
