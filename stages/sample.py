"""Texts from noise: the reverse process in the latent space, then one pass through a decoder (Section 4.3)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from ldlm import artifact, config, files, generation, metrics, pretrained, runtime, samplers, samples
from ldlm.accounting import denoiser_flops
from ldlm.compute import Compute
from ldlm.config import SampleConfig
from ldlm.errors import InputError
from ldlm.generation import TextGenerator
from ldlm.pretrained import LDLM
from ldlm.progress import SILENT, Progress
from ldlm.run import TrainedRun


def plan(config: SampleConfig, run_path: Path) -> dict[str, Any]:
    """What it would compute: evaluations of the denoiser and their FLOPs."""
    model = _open(config, run_path, torch.device("cpu"))
    _check(config, model)
    evaluations = config.num_samples * config.sampler.steps * samplers.evaluations_per_step(config.sampler)
    return {
        "texts": config.num_samples,
        "denoiser_evaluations": evaluations,
        "flops": evaluations * denoiser_flops(model.config.model, model.shapes),
    }


def run(
    config: SampleConfig, run_path: Path, out: Path, *, overwrite: bool = False, progress: Progress = SILENT
) -> dict[str, Any]:
    """Write `out`, a JSON object per text; returns what was done and with what.

    Texts are appended to `out.partial` batch by batch, so that the same command takes up an interrupted one.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder; --output names the file to write, for example {out}/samples.jsonl")
    model = _open(config, run_path, runtime.device(config.device))
    generator = model.generator(config.decoder, Compute.of(config.compute, model.device))
    if isinstance(model, TrainedRun):
        model.remark_on_decoder(config.decoder, progress)
    provenance = _provenance(config, run_path, generator, model)
    record = out.with_name(out.name + ".meta.json")
    if overwrite or not record.exists():  # what an earlier version began is taken up as it was
        _check(config, model)
    partial = _begin(out, record, provenance, overwrite)
    if partial is None:
        progress.note(f"{out} is complete; nothing to do")
        return files.read_json(record)

    done = _whole_texts(partial)
    started = time.perf_counter()
    tokenizer = model.tokenizer
    with (
        open(partial, "a", encoding="utf-8") as file,
        progress.task("sample", config.num_samples, "text", done) as task,
    ):
        for seeds_B, tokens_BL in generation.batches(generator, config, done):
            texts = metrics.decode_tokens(tokenizer, tokens_BL, clean_up=config.clean_up)
            file.write(files.dump_jsonl(samples.rows(texts, tokens_BL.tolist(), seeds_B.tolist())))
            file.flush()
            task.advance(len(seeds_B))
        os.fsync(file.fileno())

    os.replace(partial, out)
    files.fsync_dir(out.parent)
    return {**provenance, "seconds": round(time.perf_counter() - started, 2), "texts_made": config.num_samples - done}


def _check(config: SampleConfig, model: TrainedRun | LDLM) -> None:
    """`InputError` for a sampler that is not offered, unless the model was exported with it."""
    samplers.check(config.sampler, known=model.config.sampler if isinstance(model, LDLM) else None)


def _open(config: SampleConfig, path: Path, device: torch.device) -> TrainedRun | LDLM:
    """The run, or what `ldlm export` made of one: the same texts come from both."""
    if not pretrained.is_exported(path):
        return TrainedRun(path, device, config.checkpoint)
    if config.checkpoint is not None:
        raise InputError(f"{path} is an exported model, and has no checkpoints to choose from; leave --checkpoint out")
    return LDLM.from_pretrained(path).to(device)


def _provenance(sample: SampleConfig, path: Path, generator: TextGenerator, model: TrainedRun | LDLM) -> dict[str, Any]:
    settings = config.identity(sample)
    # The frames of --trace are another output's. Records of earlier versions have no `clean_up`: nothing was.
    names = [name for name in settings if not name.startswith("trace_") and (name != "clean_up" or sample.clean_up)]
    return {
        "kind": "samples",
        "config": {name: settings[name] for name in names},
        "decoder": generator.decoder.name,
        "precision": generator.compute.precision,
        "run": path.name,
        **samples.record_of(model.tokenizer, sample.clean_up),
        **model.origin,
        "versions": artifact.versions(),
    }


def _begin(out: Path, record: Path, provenance: dict[str, Any], overwrite: bool) -> Path | None:
    """The rule of SPEC 12.1 for a file: the partial file to append to, or None when `out` is complete.

    The record of what is being made comes first, the texts next, and `out` itself last, by a rename.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    if overwrite:
        for path in (out, partial, record):
            path.unlink(missing_ok=True)
    if out.exists() and not record.exists():
        raise InputError(f"{out} exists and was not made by ldlm sample; choose another --output, or add --overwrite")
    if record.exists():
        keys = ("config", "decoder", "precision", "checkpoint")
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
