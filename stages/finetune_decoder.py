"""Training of a token decoder that reads the latents directly, after the joint training (Appendix B.2, Table 5).

Latent encoder and denoiser are frozen. A new decoder of K blocks and a head reads z_0 + σ_dec·ε, or z_0 under the noise
of the run's own decoders, and learns by cross-entropy alone. With it a run samples without D_h.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ldlm import files, launcher, runtime
from ldlm.artifact import Artifact
from ldlm.config import DistilledConfig, FinetuneConfig, TrainConfig
from ldlm.errors import InputError
from ldlm.features.encoder import online_encoder
from ldlm.features.store import FeatureStore, Split
from ldlm.features.stream import Stream
from ldlm.location import Location
from ldlm.model.autoencoder import TokenDecoder
from ldlm.model.joint import JointDecoder
from ldlm.model.layers import divisors
from ldlm.progress import SILENT, Progress
from ldlm.runtime import Stop
from ldlm.sampling.trained_run import JOINT, DecoderRecord, TrainedRun
from ldlm.training import heldout
from ldlm.training.decoder import DecoderState, build_decoder, finetune_step, start_decoder
from ldlm.training.journal import Journal
from ldlm.training.learner import accumulation, check_shares
from ldlm.training.loop import train
from ldlm.training.output import begin, resume, shuffle_rows
from ldlm.training.speed import Speedometer

# Settings that the stage has itself; those that are None are the run's.
TAKEN = (
    "batch_size", "accumulate", "max_nonfinite", "log_every", "eval_every", "eval_rows", "save_every", "keep", "seed",
    "compute",
)  # fmt: skip


def plan(config: FinetuneConfig, run_path: Path) -> dict[str, Any]:
    """Sizes, steps and tokens of the training, without training."""
    trained = TrainedRun(run_path, torch.device("cpu"), config.checkpoint)
    training = _training(config, trained)
    with torch.device("meta"):
        parameters = _count(build_decoder(_network(config, trained), config.seed))
    return {
        "parameters": parameters,
        "parameters_saved": trained.joint_parameters() - parameters,
        "steps": training.steps,
        "batch_size": training.batch_size,
        "tokens": training.steps * training.batch_size * trained.shapes.seq_len,
    }


def listing(config: FinetuneConfig, run_path: Path) -> list[DecoderRecord]:
    """The decoders that the run has, the jointly trained one first."""
    return TrainedRun(run_path, torch.device("cpu"), config.checkpoint).decoders()


def run(
    config: FinetuneConfig,
    run_path: Path,
    features: Location,
    *,
    allow_partial: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Artifact:
    """Train the decoder into `run_path/decoders/NAME`, from its newest checkpoint if it has one.

    Several processes share each batch, and signals stop it, as in `train.run`.
    """
    device, name = runtime.device(config.device), _name(config)
    out = run_path / "decoders" / name
    with runtime.world() as world, Stop() as stop, ExitStack() as held:
        progress = progress if world.main else SILENT
        trained = TrainedRun.of_job(run_path, device, config.checkpoint, world)
        store = FeatureStore(features, allow_partial=allow_partial)
        _check(trained, store)
        training = _training(config, trained)
        check_shares(training, world)
        network = _network(config, trained)
        state = start_decoder(training, trained.model, network, device=device, world=world)
        held.callback(state.release)
        encode = online_encoder(store)
        split = store.split("train", encode)
        window = shuffle_rows(config, out, split, training.batch_size, overwrite=overwrite)
        config = replace(config, shuffle_rows=window)
        shuffled = {"seed": config.seed, "shuffle_rows": window}
        stream = Stream(split, batch_size=training.batch_size, device=device, world=world, **shuffled)
        result = begin(
            state,
            out,
            "decoder",
            config,
            {"checkpoint": trained.latents, **store.as_input, "precision": state.compute.precision},
            reads=[run_path, *store.reads],
            rows=split,
            overwrite=overwrite,
            held=held,
            progress=progress,
        )
        if result.complete:
            return result

        state.compute.tell(progress)
        trained.remark_on_end(progress)
        _remark_on_optimizer(config, training, trained, progress)
        saved = resume(state, stream, result, store, progress)
        speed = Speedometer(state.step, rows_per_step=training.batch_size, tokens_per_row=store.shapes.seq_len)
        journal = Journal(out, state, speed, progress, saved=saved)
        evaluate = partial(_evaluate, state.model, state, store.held_out(encode))
        train(state, finetune_step, stream, journal, stop, progress, name="finetune decoder", evaluate=evaluate)
        if world.main:
            _finish(result, state, journal, trained, store.held_out(encode), network)
            trained.remark_on_decoder(None, progress)
        world.from_main(None)  # the others wait until the artefact is complete
    return Artifact(out, "decoder", "complete")


# ----------------------------------------------------------------------------------------------------------------------
# Before the loop


def _name(config: FinetuneConfig) -> str:
    name = config.name or f"layers-{config.layers}"
    if name == JOINT or "/" in name or name.startswith("."):
        raise InputError(f"--name {name!r} can't name a decoder; choose a plain word other than {JOINT}")
    return name


def _check(trained: TrainedRun, store: FeatureStore) -> None:
    trained.check_store(store)
    if trained.model.num_latents != trained.shapes.seq_len:
        raise InputError(
            f"this run has {trained.model.num_latents} latents for {trained.shapes.seq_len} tokens, and a decoder that "
            f"reads the latents directly needs one per token; sample with --decoder joint"
        )


def _training(config: FinetuneConfig, trained: TrainedRun) -> TrainConfig:
    """The run's settings, overridden by those of this stage."""
    run = _undistilled(trained)
    mine = {name: value for name in TAKEN if (value := getattr(config, name)) is not None}
    rows = config.batch_size or run.batch_size
    return replace(
        run,
        **{"accumulate": accumulation(run, rows, launcher.processes()), **mine},
        steps=config.steps or min(200_000, math.ceil(run.steps * 2 / 5)),
        recipe=run.recipe
        if config.sigma_dec is None
        else replace(run.recipe, decoder_noise="additive", sigma_dec=config.sigma_dec),
        optimizer=replace(run.optimizer, lr=config.lr or run.optimizer.lr),
    )


def _undistilled(trained: TrainedRun) -> TrainConfig:
    """The settings of a run, with the steps that it has taken; those before its distillation, if they are on record."""
    run = trained.config
    if isinstance(run, DistilledConfig) and run.undistilled is not None:
        return replace(run, **vars(run.undistilled))
    return replace(run, steps=trained.checkpoint.step)


def _remark_on_optimizer(
    config: FinetuneConfig, training: TrainConfig, trained: TrainedRun, progress: Progress
) -> None:
    """Note that the optimiser is a distillation's, where an earlier version has recorded no other."""
    if isinstance(trained.config, DistilledConfig) and trained.config.undistilled is None:
        rate = f"learning rate {training.optimizer.lr:g}, " if config.lr is None else ""
        progress.note(
            f"{trained.path} does not record the optimiser of the run that it was distilled from; the decoder is "
            f"trained with the distillation's: {rate}lr_decay={training.optimizer.lr_decay}"
        )


def _network(config: FinetuneConfig, trained: TrainedRun) -> dict[str, Any]:
    """Sizes of the decoder, as `TokenDecoder` takes them."""
    decoder, width = trained.config.model.token_decoder, trained.model.latent_dim
    heads = config.heads or decoder.heads
    if config.layers and width % (2 * heads):
        raise InputError(
            f"--heads {heads} must divide the latents' width {width} into heads of an even width; set it to "
            f"{divisors(width)}, or --layers to 0"
        )
    return {
        "width": width,
        "layers": config.layers,
        "heads": heads,
        "mlp_ratio": decoder.mlp_ratio,
        "vocab_size": trained.shapes.vocab_size,
    }


# ----------------------------------------------------------------------------------------------------------------------
# What it leaves behind


def _finish(
    result: Artifact,
    state: DecoderState,
    journal: Journal,
    trained: TrainedRun,
    held_out: Split,
    network: dict[str, Any],
) -> None:
    """Write the averaged weights, and the decoder's figures beside those of D_w∘D_h on the same rows."""
    with files.replacing(journal.out / "ema.safetensors") as temporary:
        save_file({key: value.cpu() for key, value in state.ema.weights.items()}, temporary)
    joint = trained.model.decoder() if trained.model.token_decoder is not None else None
    noise = state.decoder_input.corruption
    journal.finish(
        result,
        name=journal.out.name,
        sha256={"ema.safetensors": files.sha256_file(journal.out / "ema.safetensors")},
        checkpoint=trained.latents,
        checkpoint_step=trained.checkpoint.step,
        network=network,
        sigma_dec=noise.size if noise.kind == "additive" else None,
        decoder_noise=vars(noise),
        parameters=_count(state.model),
        replaces=trained.joint_parameters(),
        joint={} if joint is None else _evaluate(joint, state, held_out),
        created=time.time(),
    )


def _evaluate(decoder: TokenDecoder | JointDecoder, state: DecoderState, split: Split) -> dict[str, Any]:
    """Figures of a decoder on held-out rows, as JSON."""
    with state.compute.autocast():
        return heldout.evaluate_decoder(
            decoder,
            state.frozen,
            split,
            noisy=state.decoder_input,
            rows=state.config.eval_rows,
            batch_size=min(state.rows_at_once, state.config.eval_rows),
            device=state.device,
        ).to_json()


def _count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
