"""An LDLM trained on a text that is brought along, for the minutes that are left: the model, its figures, 50 samples.

The stages are those of the quickstart without its second decoder. Each training takes as many steps as its share of the
time allows, estimated from short runs. Nothing is compiled, since that would take a good part of the time. The result
is one archive of less than 16 MB: the exported weights are float32, with sizes chosen for this.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.job import Job
from benchmarks.parts import part
from ldlm import config, files
from ldlm.config import (
    ComputeConfig,
    EvaluateConfig,
    ExportConfig,
    ExtractConfig,
    PretrainConfig,
    SampleConfig,
    SamplerConfig,
    TrainConfig,
)
from ldlm.features import splitting

SAMPLES = 50
DOCUMENTS = 20_000  # at most
HELD_OUT, OF_SCORER = 0.06, 0.36  # of the documents
ENCODER_SHARE, SCORER_SHARE, TRAIN_SHARE = 0.12, 0.13, 0.6  # of the time left; the rest is for other stages, and spare
SHORTEST, GROWTH = 4, 8  # steps of the shortest run, and the ratio of steps between runs
SPARE = 0.8  # share of the time that is planned for
EAGER = ComputeConfig(compile="off")


@dataclass(frozen=True)
class Sizes:
    """Sizes of encoder, scorer and denoiser."""

    seq_len: int
    width: int
    heads: int
    layers: int
    vocab_size: int
    batch_size: int


SIZES = {
    "cuda": Sizes(seq_len=128, width=160, heads=5, layers=4, vocab_size=2048, batch_size=64),
    "cpu": Sizes(seq_len=32, width=32, heads=2, layers=2, vocab_size=512, batch_size=8),
}


def run(job: Job) -> None:
    """Make everything; the archive is the section's folder."""
    store = part("store")
    if isinstance(store, str):
        job.record("LDLM", name="all", skipped=f"{store} is not installed")
        return
    from ldlm.stages import evaluate, export, extract_features, pretrain_encoder, sample, train

    sizes, out = SIZES[job.device.type], job.scratch
    documents = _split(job)
    tokenizer = out / "tokenizer"
    pretrain_encoder.run(_gpt2(job, sizes, "encoder", steps=1, vocab_size=sizes.vocab_size), tokenizer)
    encoder = _pretrained(job, sizes, "encoder", ENCODER_SHARE * job.left, tokenizer)
    scorer = _pretrained(job, sizes, "scorer", SCORER_SHARE * job.left, tokenizer)

    extract = ExtractConfig(
        encoder=str(encoder),
        data=(str(out / "encoder.jsonl"),),
        validation_data=(str(out / "held-out.jsonl"),),
        seq_len=sizes.seq_len,
        device=job.device_name,
    )
    extract_features.run(extract, out / "features")

    def take(steps: int, run: Path) -> None:
        train.run(_training(job, sizes, steps), out / "features", run)

    run, steps = _as_long_as(TRAIN_SHARE * job.left, take, out / "run")
    drawn = SampleConfig(
        num_samples=SAMPLES, sampler=SamplerConfig(temperature=0.5), compute=EAGER, device=job.device_name
    )
    sample.run(drawn, run, out / "samples.jsonl")
    scores = evaluate.run(
        EvaluateConfig(scorer=str(scorer), device=job.device_name), [out / "samples.jsonl"], out / "held-out.jsonl"
    )
    export.run(ExportConfig(), run, out / "model")
    found = {"documents": documents, "steps": steps, "scores": [one.to_json() for one in scores]}
    _keep(job, run, found)
    weights = (out / "model" / "model.safetensors").stat().st_size
    job.record("model", name="LDLM", documents=documents["encoder"], steps=steps, weight_bytes=weights)
    for one in scores:
        job.record("texts", name=one.role, **one.scores.pick("gen_ppl", "entropy", "diversity"))


def _split(job: Job) -> dict[str, int]:
    """Write the documents in three parts, so that encoder and scorer have none in common; return their numbers."""
    documents = splitting.shuffled(job.text)[:DOCUMENTS]
    parts = splitting.divided(documents, {"held-out": HELD_OUT, "scorer": OF_SCORER}, rest="encoder")
    for name, chosen in parts.items():
        files.write_atomic(job.scratch / f"{name}.jsonl", files.dump_jsonl({"text": one} for one in chosen))
    return {name: len(chosen) for name, chosen in parts.items()}


def _pretrained(job: Job, sizes: Sizes, name: str, seconds: float, tokenizer: Path) -> Path:
    """A GPT-2 trained on its part of the text for about that many seconds."""
    from ldlm.stages import pretrain_encoder

    def take(steps: int, out: Path) -> None:
        pretrain_encoder.run(_gpt2(job, sizes, name, steps=steps, tokenizer=str(tokenizer)), out)

    return _as_long_as(seconds, take, job.scratch / name)[0]


def _gpt2(job: Job, sizes: Sizes, name: str, **settings: Any) -> PretrainConfig:
    return PretrainConfig(
        data=(str(job.scratch / f"{name}.jsonl"),),
        layers=max(4, sizes.layers),
        width=sizes.width,
        heads=sizes.heads,
        positions=sizes.seq_len,
        batch_size=sizes.batch_size,
        device=job.device_name,
        **settings,
    )


def _as_long_as(seconds: float, take: Callable[[int, Path], None], out: Path) -> tuple[Path, int]:
    """Take as many steps into `out` as fit into `seconds`, short runs included; return `out` and the number of steps.

    The first short run is a warm-up and does not count. The next grow until two differ by a twentieth of the time:
    their difference gives the time of a step, and the rest is what every run takes before its steps.
    """
    begun = time.perf_counter()

    def took(steps: int, place: str) -> float:
        started = time.perf_counter()
        take(steps, out.with_name(f"{out.name}-{place}"))
        return time.perf_counter() - started

    took(SHORTEST, "first")
    short, before = SHORTEST, took(SHORTEST, "short")
    steps, after = GROWTH * short, took(GROWTH * short, f"{GROWTH * short}")
    while after - before < seconds / 20 and time.perf_counter() - begun < seconds / 3:
        steps *= GROWTH
        after = took(steps, f"{steps}")
    left = SPARE * (seconds - (time.perf_counter() - begun))
    steps = steps_in(left, (short, before), (steps, after))
    take(steps, out)
    return out, steps


def steps_in(seconds: float, short: tuple[int, float], long: tuple[int, float]) -> int:
    """Steps of a run of that many seconds, from the (steps, seconds) of a short and a longer one; at least 1.

    The longer run bounds the time of a step from below, since noise may make both runs equally long.
    """
    (a, before), (b, after) = short, long
    per_step = max((after - before) / (b - a), after / b / GROWTH)
    fixed = max(0.0, before - a * per_step)
    return max(1, int((seconds - fixed) / per_step))


def _training(job: Job, sizes: Sizes, steps: int) -> TrainConfig:
    """The tiny preset in other sizes, with warm-ups in proportion."""
    own = {
        "steps": steps,
        "batch_size": sizes.batch_size,
        "model": {
            "autoencoder": {"width": sizes.width, "heads": sizes.heads},
            "denoiser": {"layers": sizes.layers, "width": sizes.width, "heads": sizes.heads, "time_dim": sizes.width},
            "token_decoder": {"heads": sizes.heads},
        },
        "recipe": {"warmup_steps": 2 * steps // 5},
        "timesteps": {"refresh_steps": max(1, min(100, steps // 10))},
        "optimizer": {"lr_warmup_steps": steps // 20},
        "compute": {"compile": "off"},
        "log_every": max(1, steps // 100),
        "eval_every": steps,
        "save_every": steps,
        "device": job.device_name,
    }
    return config.from_dict(TrainConfig, config.merge(config.PRESETS["tiny"].overrides, own))


def _keep(job: Job, run: Path, found: dict[str, Any]) -> None:
    """Put model, samples and figures into the section's folder."""
    shutil.copytree(job.scratch / "model", job.folder / "model")
    for path in (run / "metrics.jsonl", job.scratch / "samples.jsonl"):
        shutil.copy(path, job.folder)
    files.write_json(
        job.folder / "found.json", {**found, "held_out": files.read_json(run / "manifest.json")["held_out"]}
    )
