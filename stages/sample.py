"""Texts from noise: the reverse process in the latent space, then one pass through a decoder (Section 4.3)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldlm import artifact, config, files, metrics, noise, runtime, samplers, samples
from ldlm.accounting import denoiser_flops
from ldlm.config import TEXTS_PER_SEED, SampleConfig, SamplerConfig
from ldlm.errors import InputError
from ldlm.metrics import LOGITS_AT_ONCE
from ldlm.progress import SILENT, Progress
from ldlm.run import Decoder, TrainedRun


def plan(config: SampleConfig, run_path: Path) -> dict[str, Any]:
    """What it would compute: evaluations of the denoiser and their FLOPs."""
    run = TrainedRun(run_path, torch.device("cpu"), config.checkpoint)
    evaluations = config.num_samples * config.sampler.steps
    return {
        "texts": config.num_samples,
        "denoiser_evaluations": evaluations,
        "flops": evaluations * denoiser_flops(run.config.model, run.shapes),
    }


def run(
    config: SampleConfig, run_path: Path, out: Path, *, overwrite: bool = False, progress: Progress = SILENT
) -> dict[str, Any]:
    """Write `out`, a JSON object per text; returns what was done and with what.

    Texts are appended to `out.partial` batch by batch, so that the same command takes up an interrupted one.
    """
    run = TrainedRun(run_path, runtime.device(config.device), config.checkpoint)
    decoder = run.decoder(config.decoder)
    provenance = _provenance(config, run, decoder)
    record = out.with_name(out.name + ".meta.json")
    partial = _begin(out, record, provenance, overwrite)
    if partial is None:
        progress.note(f"{out} is complete; nothing to do")
        return files.read_json(record)

    done = _whole_texts(partial)
    started = time.perf_counter()
    tokenizer = run.tokenizer
    with (
        open(partial, "a", encoding="utf-8") as file,
        progress.task("sample", config.num_samples, "text", done) as task,
    ):
        for start in range(done, config.num_samples, config.batch_size):
            seeds = text_seeds(config.seed, start, min(start + config.batch_size, config.num_samples))
            tokens_BL = sample_tokens(run, decoder, config.sampler, seeds).cpu()
            texts = metrics.decode_tokens(tokenizer, tokens_BL)
            file.write(files.dump_jsonl(samples.rows(texts, tokens_BL.tolist(), seeds.tolist())))
            file.flush()
            task.advance(len(seeds))
        os.fsync(file.fileno())

    os.replace(partial, out)
    files.fsync_dir(out.parent)
    return {**provenance, "seconds": round(time.perf_counter() - started, 2), "texts_made": config.num_samples - done}


def text_seeds(seed: int, start: int, stop: int) -> Tensor:
    """Seeds (stop − start,) int64 of texts start … stop−1 drawn with `seed`; no two seeds share a text."""
    return seed * TEXTS_PER_SEED + torch.arange(start, stop)


@torch.no_grad()
def sample_tokens(run: TrainedRun, decoder: Decoder, sampler: SamplerConfig, seeds_B: Tensor) -> Tensor:
    """Token rows (B, L) int64, each a function of its seed."""
    z_0_BNC = sample_latents(run, sampler, seeds_B)
    rows = max(1, LOGITS_AT_ONCE // (run.shapes.seq_len * run.shapes.vocab_size))
    pieces = zip(z_0_BNC.split(rows), seeds_B.split(rows), strict=True)
    return torch.cat([_tokens(decoder.logits(z), sampler, seeds.to(run.device)) for z, seeds in pieces])


def _tokens(logits_BLV: Tensor, sampler: SamplerConfig, seeds_B: Tensor) -> Tensor:
    """The most likely tokens (B, L), or tokens drawn at the temperature, one uniform number each."""
    if sampler.temperature == 0:
        return logits_BLV.argmax(-1)
    uniform_BL = noise.uniform(seeds_B, "token", 0, torch.zeros_like(seeds_B), (logits_BLV.shape[1],))
    cdf_BLV = (logits_BLV / sampler.temperature).softmax(-1).cumsum(-1).double()
    drawn_BL1 = torch.searchsorted(cdf_BLV / cdf_BLV[..., -1:], uniform_BL[..., None])
    return drawn_BL1.squeeze(-1).clamp(max=logits_BLV.shape[-1] - 1)


@torch.no_grad()
def sample_latents(run: TrainedRun, sampler: SamplerConfig, seeds_B: Tensor) -> Tensor:
    """Latents z_0 (B, N, C) at the end of the reverse process."""
    seeds_B = seeds_B.to(run.device)
    shape = (run.model.num_latents, run.model.latent_dim)
    row_B = torch.zeros_like(seeds_B)
    return samplers.euler_maruyama(
        samplers.self_conditioned(run.model.denoiser),
        run.schedule,
        noise.normal(seeds_B, "z_1", 0, row_B, shape),
        samplers.time_grid(sampler),
        lambda step: noise.normal(seeds_B, "sde", step, row_B, shape),
        beta_clip=sampler.beta_clip,
        final=sampler.final,
    )


def _provenance(sample: SampleConfig, run: TrainedRun, decoder: Decoder) -> dict[str, Any]:
    return {
        "kind": "samples",
        "config": config.identity(sample),
        "decoder": decoder.name,
        "run": run.path.name,
        "checkpoint": run.checkpoint.digest,
        "step": run.checkpoint.step,
        "versions": artifact.versions(),
    }


def _begin(out: Path, record: Path, provenance: dict[str, Any], overwrite: bool) -> Path | None:
    """The rule of SPEC 12.1 for a file: the partial file to append to, or None when `out` is complete.

    The record of what is being made comes first, the texts next, and `out` itself last, by a rename.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder; --output names the file to write, for example {out}/samples.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    if overwrite:
        for path in (out, partial, record):
            path.unlink(missing_ok=True)
    if out.exists() and not record.exists():
        raise InputError(f"{out} exists and was not made by ldlm sample; choose another --output, or add --overwrite")
    if record.exists():
        keys = ("config", "decoder", "checkpoint")
        old = files.read_json(record)
        changed = config.differences({k: old.get(k) for k in keys}, {k: provenance[k] for k in keys})
        if changed:
            raise InputError(
                f"{out} was made otherwise ({'; '.join(changed)}); choose another --output, or add --overwrite"
            )
    if out.exists():
        return None
    files.write_json(record, provenance)
    return partial


def _whole_texts(partial: Path) -> int:
    """Number of whole texts in a partial file; what a kill cut off is removed."""
    if not partial.exists():
        return 0
    data = partial.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    files.write_atomic(partial, whole)
    return whole.count(b"\n")
