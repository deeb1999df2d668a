"""A token decoder that reads the latents directly, trained after the rest (Appendix B.2, Table 5).

Latent encoder and denoiser are frozen; a new decoder of K blocks and a head reads z_0 + σ_dec·ε and learns by
cross-entropy alone. After it, a run samples without D_h.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ldlm import artifact, checkpoint, files, heldout, noise, runtime
from ldlm.artifact import Artifact
from ldlm.autoencoder import TokenDecoder
from ldlm.config import FinetuneConfig
from ldlm.ema import EMA
from ldlm.errors import InputError
from ldlm.location import Location
from ldlm.metricsfile import MetricsFile
from ldlm.optim import adamw, learning_rate, load_optimizer_tensors, optimizer_tensors
from ldlm.progress import SILENT, Progress
from ldlm.run import TrainedRun
from ldlm.store import FeatureStore
from ldlm.stream import Stream


@dataclass(frozen=True)
class Settings:
    """The configuration with the run's values where it says none."""

    steps: int
    batch_size: int
    sigma_dec: float
    network: dict[str, Any]

    @classmethod
    def of(cls, config: FinetuneConfig, run: TrainedRun) -> Settings:
        """Resolve against a run."""
        decoder = run.config.model.token_decoder
        network = {
            "width": run.model.latent_dim,
            "layers": config.layers,
            "heads": config.heads or decoder.heads,
            "mlp_ratio": decoder.mlp_ratio,
            "vocab_size": run.shapes.vocab_size,
        }
        return cls(
            steps=config.steps or min(200_000, math.ceil(run.checkpoint.step * 2 / 5)),
            batch_size=config.batch_size or run.config.batch_size,
            sigma_dec=run.config.recipe.sigma_dec if config.sigma_dec is None else config.sigma_dec,
            network=network,
        )


def plan(config: FinetuneConfig, run_path: Path) -> dict[str, Any]:
    """What it would train, without training it."""
    run = TrainedRun(run_path, torch.device("cpu"), config.checkpoint)
    settings = Settings.of(config, run)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in TokenDecoder(**settings.network).parameters())
    tokens = settings.steps * settings.batch_size * run.shapes.seq_len
    return {"parameters": parameters, "steps": settings.steps, "batch_size": settings.batch_size, "tokens": tokens}


def run(
    config: FinetuneConfig,
    run_path: Path,
    features: Location,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Artifact:
    """Train the decoder into `run_path/decoders/NAME`, from its newest checkpoint if it has one."""
    device = runtime.device(config.device)
    trained, store = TrainedRun(run_path, device, config.checkpoint), FeatureStore(features)
    trained.check_store(store)
    settings = Settings.of(config, trained)
    if trained.model.num_latents != trained.shapes.seq_len:
        raise InputError(
            f"this run has {trained.model.num_latents} latents for {trained.shapes.seq_len} tokens, and a decoder that "
            f"reads the latents directly needs one per token; sample with --decoder joint"
        )
    name = config.name or f"layers-{config.layers}"
    if name == "joint" or "/" in name or name.startswith("."):
        raise InputError(f"--name {name!r} can't name a decoder; choose a plain word other than joint")
    stream = Stream(
        store, store.split("train"), batch_size=settings.batch_size, seed=config.seed, position=0, device=device
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = TokenDecoder(**settings.network).to(device)
    inputs = {"checkpoint": trained.checkpoint.digest, "features": store.fingerprint}
    out = run_path / "decoders" / name
    result = artifact.begin(out, "decoder", config, inputs, overwrite=overwrite)
    if result.complete:
        progress.note(f"{out} is complete; nothing to do")
        return result

    started = time.perf_counter()
    average = _train(network, trained, stream, settings, config, out, progress)
    with average.applied_to(network):
        figures = _evaluate(network, trained, store, settings, config, device)
    with files.replacing(out / "ema.safetensors") as temporary:
        save_file({key: value.cpu() for key, value in average.weights.items()}, temporary)
    return result.finish(
        name=name,
        checkpoint=trained.checkpoint.digest,
        checkpoint_step=trained.checkpoint.step,
        network=settings.network,
        steps=settings.steps,
        parameters=sum(p.numel() for p in network.parameters()),
        replaces=_joint_parameters(trained),
        held_out=figures,
        created=time.time(),
        seconds=round(time.perf_counter() - started, 1),
    )


def _joint_parameters(trained: TrainedRun) -> int:
    """Parameters of D_h and D_w, which sampling with this decoder does without."""
    parts = (trained.model.latent_decoder, trained.model.token_decoder)
    return sum(p.numel() for part in parts if part is not None for p in part.parameters())


def _train(
    network: TokenDecoder,
    trained: TrainedRun,
    stream: Stream,
    settings: Settings,
    config: FinetuneConfig,
    out: Path,
    progress: Progress,
) -> EMA:
    options = trained.config.optimizer
    optimizer, average = adamw(network.parameters(), options), EMA(network, options.ema_decay)
    metrics, folder, step = MetricsFile(out / "metrics.jsonl"), out / "checkpoints", 0
    if (found := checkpoint.latest(folder)) is not None:
        network.load_state_dict(found.tensors("model"))
        average.load(found.tensors("ema"))
        load_optimizer_tensors(optimizer, network, found.tensors("optimizer"))
        step = found.step
    metrics.truncate(step)
    stream.position = step * settings.batch_size

    with stream, progress.task("finetune decoder", settings.steps, "step", done=step) as task:
        for batch in stream:
            if step >= settings.steps:
                break
            with torch.no_grad():
                h_BLD = trained.model.states(batch.hidden_BLD, batch.tokens_BL)
                z_0_BNC = trained.model.latent_encoder(h_BLD)
                noisy_BNC = z_0_BNC + settings.sigma_dec * _noise(config.seed, step, z_0_BNC)

            logits_BLV = network(noisy_BNC)
            l_w = F.cross_entropy(logits_BLV.flatten(0, 1), batch.tokens_BL.flatten())
            l_w.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), options.clip_norm)
            optimizer.param_groups[0]["lr"] = learning_rate(step, settings.steps, options)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            average.update(network, step)

            if step % config.log_every == 0 or step == settings.steps:
                metrics.write(step, "train", {"l_w": l_w.item()})
                task.advance(0, l_w=l_w.item())
            task.advance(1)
            if step % config.save_every == 0:
                tensors = {"model": network.state_dict(), "ema": average.weights}
                tensors["optimizer"] = optimizer_tensors(optimizer, network)
                checkpoint.save(folder, step, tensors, {})
                checkpoint.prune(folder, 1)
    return average


def _noise(seed: int, step: int, z_BNC: Tensor) -> Tensor:
    rows_B = torch.arange(len(z_BNC), device=z_BNC.device)
    return noise.normal(seed, "eps_dec", step, rows_B, tuple(z_BNC.shape[1:]))


@torch.no_grad()
def _evaluate(
    network: TokenDecoder,
    trained: TrainedRun,
    store: FeatureStore,
    settings: Settings,
    config: FinetuneConfig,
    device: torch.device,
) -> dict[str, float]:
    """Held-out cross-entropy and token accuracy under σ_dec noise, and the accuracy without noise."""
    sums = {"l_w": 0.0, "token_accuracy": 0.0, "token_accuracy_clean": 0.0}
    done = 0
    batches = heldout.batches(store.held_out(), config.eval_rows, settings.batch_size, device)
    for hidden_BLD, tokens_BL in batches:
        z_0_BNC = trained.model.latent_encoder(trained.model.states(hidden_BLD, tokens_BL))
        rows_B = torch.arange(done, done + len(tokens_BL), device=device)
        eps_BNC = noise.normal(config.seed, "held out", 0, rows_B, tuple(z_0_BNC.shape[1:]))
        noisy_BLV, clean_BLV = network(z_0_BNC + settings.sigma_dec * eps_BNC), network(z_0_BNC)
        count = len(tokens_BL)
        sums["l_w"] += count * F.cross_entropy(noisy_BLV.flatten(0, 1), tokens_BL.flatten()).item()
        sums["token_accuracy"] += count * (noisy_BLV.argmax(-1) == tokens_BL).float().mean().item()
        sums["token_accuracy_clean"] += count * (clean_BLV.argmax(-1) == tokens_BL).float().mean().item()
        done += count
    return {name: value / done for name, value in sums.items()}
