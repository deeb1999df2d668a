"""Sampling with random weights, which do not affect speed: 16 texts of 1,024 latents at 1,024 evaluations.

The aim is 8 s on an H100, where the matrix products alone take 4.4 s; the paper reports 40 s on an A100 (Table 3). The
rivals follow, with the same number of steps, extrapolated from some in the middle of their grids, beside an LDLM that
is not compiled either.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from benchmarks.contenders import OURS, Sampling, backbone, samplers
from benchmarks.gpu.job import Job
from benchmarks.gpu.profile import record_largest_kernels
from benchmarks.machine import Limits, peak_memory, timed
from benchmarks.speed import Bench, bench_of
from ldlm.baselines.generation import InPrecision
from ldlm.baselines.interface import Sampler
from ldlm.compute import Compute
from ldlm.config import ComputeConfig, SamplerConfig
from ldlm.model.joint import JointModel, build
from ldlm.sampling.generation import text_seeds
from ldlm.training import cost

EVALUATIONS = 1024  # to which all seconds refer
AIM = 8.0  # seconds on an H100


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    whole: int  # evaluations with default settings
    fewer: int  # with each other way; their time is scaled
    of_rivals: int  # and with the rivals
    compile: dict[str, str]


SIZES = {
    "cuda": Sizes(EVALUATIONS, 64, 16, {"graph": "on", "eager": "off"}),
    "cpu": Sizes(8, 4, 2, {"eager": "off"}),
}
EAGER = ComputeConfig(precision="bf16", compile="off")


def run(job: Job) -> None:
    """Record the time from noise to latents by default and in every way, a profile of the default, and the rivals."""
    limits, bench, sizes = job.limits, bench_of(job.device), SIZES[job.device.type]
    model = build(bench.settings.model, bench.shapes, seed=0).to(job.device).eval().requires_grad_(False)
    table = f"{bench.scale.texts} texts of {bench.shapes.seq_len} latents, {EVALUATIONS:,} evaluations, aim {AIM:g} s"
    job.attempt(table, "default", partial(_seconds, limits, bench, model, ComputeConfig(), sizes.whole))
    for (name, compile), attention in product(sizes.compile.items(), ("xformers", "sdpa")):
        way = ComputeConfig(attention=attention, compile=compile)  # type: ignore[arg-type]
        job.attempt(table, f"{name}, {attention}", partial(_seconds, limits, bench, model, way, sizes.fewer))
    generator, seeds = bench.generator(model, ComputeConfig()), text_seeds(0, 0, bench.scale.texts)
    record_largest_kernels(
        job,
        f"{sizes.fewer} evaluations by default",
        lambda: generator.latents(SamplerConfig(steps=sizes.fewer), seeds),
    )
    table = f"rivals at {EVALUATIONS:,} steps, not compiled, tokens drawn exactly"
    job.attempt(table, "LDLM", partial(_seconds, limits, bench, model, EAGER, sizes.fewer))
    for name, by_way in samplers(bench.shapes.vocab_size, bench.shapes.seq_len, EVALUATIONS).items():
        job.attempt(table, name, partial(_seconds_of_rival, bench, name, by_way[OURS], sizes.of_rivals))


def _seconds(limits: Limits, bench: Bench, model: JointModel, way: ComputeConfig, count: int) -> dict[str, Any]:
    """Seconds of `EVALUATIONS` evaluations, scaled from `count`; compilation does not count."""
    generator, sampler, seeds = (
        bench.generator(model, way),
        SamplerConfig(steps=count),
        text_seeds(0, 0, bench.scale.texts),
    )
    with peak_memory(bench.device) as peak:
        generator.prepare(sampler, len(seeds))
        measured = timed(lambda: generator.latents(sampler, seeds), bench.device, 0, warm=0, count=1).mean
    flops = EVALUATIONS * len(seeds) * cost.denoiser_flops(bench.settings.model, bench.shapes)
    seconds, limit = measured * EVALUATIONS / count, limits.flops[generator.compute.precision]
    return {
        "attention": generator.compute.attention,
        "seconds": seconds,
        "evaluations": count,
        "scaled": count != EVALUATIONS,
        "floor_seconds": flops / limit,
        "share": flops / limit / seconds,
        "peak_bytes": peak.bytes,
    }


def _seconds_of_rival(bench: Bench, name: str, sampler: Sampler, count: int) -> dict[str, Any]:
    """Seconds of all steps of a rival's sampler, scaled from `count` of them after a warm-up."""
    network = backbone(name, bench.settings.model.denoiser, bench.shapes.vocab_size).to(bench.device)
    compute = Compute.of(EAGER, bench.device)
    in_precision = InPrecision.of(network.eval().requires_grad_(False), compute.dtype)
    seeds_B = text_seeds(0, 0, bench.scale.texts).to(bench.device)
    with peak_memory(bench.device) as peak:
        sampling = Sampling(sampler, in_precision, seeds_B, OURS)
        measured = timed(sampling.step, bench.device, 0, count=count).mean
    return {
        "attention": compute.attention,
        "seconds": measured * sampler.rows,
        "evaluations": count,
        "scaled": True,
        "peak_bytes": peak.bytes,
    }
