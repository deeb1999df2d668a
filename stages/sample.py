"""Texts from noise: the reverse process in the latent space, then one pass through a decoder (Section 4.3)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldlm import artifact, config, files, metrics, runtime, samplers, samples
from ldlm.accounting import denoiser_flops
from ldlm.config import TEXTS_PER_SEED, SampleConfig
from ldlm.errors import InputError
from ldlm.progress import SILENT, Progress
from ldlm.run import TrainedRun

LARGEST_BATCH = 256  # of --batch-size auto: an interruption costs a batch


def plan(config: SampleConfig, run_path: Path) -> dict[str, Any]:
    """What it would compute: evaluations of the denoiser and their FLOPs."""
    run = TrainedRun(run_path, torch.device("cpu"), config.checkpoint)
    evaluations = config.num_samples * config.sampler.steps * samplers.evaluations_per_step(config.sampler)
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
    generator = run.generator(config.decoder)
    provenance = _provenance(config, run, generator.decoder.name)
    record = out.with_name(out.name + ".meta.json")
    partial = _begin(out, record, provenance, overwrite)
    if partial is None:
        progress.note(f"{out} is complete; nothing to do")
        return files.read_json(record)

    done = _whole_texts(partial)
    started = time.perf_counter()
    tokenizer = run.tokenizer
    size = config.batch_size or generator.batch_size(min(config.num_samples - done, LARGEST_BATCH))
    with (
        open(partial, "a", encoding="utf-8") as file,
        progress.task("sample", config.num_samples, "text", done) as task,
    ):
        for start in range(done, config.num_samples, size):
            seeds = text_seeds(config.seed, start, min(start + size, config.num_samples))
            tokens_BL = generator.tokens(config.sampler, seeds).cpu()
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


def _provenance(sample: SampleConfig, run: TrainedRun, decoder: str) -> dict[str, Any]:
    settings = config.identity(sample).items()
    return {
        "kind": "samples",
        "config": {name: value for name, value in settings if not name.startswith("trace_")},  # another output's
        "decoder": decoder,
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
