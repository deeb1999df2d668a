"""Training steps at full size with micro-batches that fill the card, and attention kernels by length.

The aim is 45 % of the measured rate of matrix products. The states are random and in memory; `features` measures the
wait for stored ones.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.job import Job
from benchmarks.gpu.profile import record_largest_kernels
from benchmarks.machine import Limits, peak_memory, timed
from benchmarks.speed import WARM, Bench, bench_of, plain_attention
from ldlm.attention import use_attention
from ldlm.config import ComputeConfig
from ldlm.training import cost
from ldlm.training.footprint import footprint
from ldlm.training.joint import train_step

AIM = 0.45
EAGER = ComputeConfig(compile="off")
KERNELS = ("xformers", "sdpa", "plain")
Step = Callable[[], object]
STEPS = 8  # timed steps, of both kinds together
SECONDS = 1.0  # of each kernel at each length


@dataclass(frozen=True)
class Sizes:
    """Presets, and sizes of what is measured with them."""

    presets: tuple[str, ...]  # the first also with torch's attention, and by length
    most_rows: int  # at a time
    lengths: tuple[int, ...]
    tokens: int  # of a step, at every length


SIZES = {
    "cuda": Sizes(("owt-1024", "lm1b-128"), most_rows=2**12, lengths=(1024, 2048, 4096), tokens=2**13),
    "cpu": Sizes(("tiny",), most_rows=8, lengths=(64, 128, 256), tokens=2**9),
}


def run(job: Job) -> None:
    """Record whole steps with their largest kernels, and attention kernels by length."""
    limits, sizes = job.limits, SIZES[job.device.type]

    def whole(preset: str, name: str, way: ComputeConfig) -> None:
        table = f"training steps, aim {AIM:.0%} of the matrix products"
        bench, name, steps = bench_of(job.device, preset), f"{preset}, {name}", list[Step]()
        job.attempt(table, name, partial(_whole_step, limits, bench, way, sizes.most_rows, steps))
        for step in steps:
            record_largest_kernels(job, name, step)

    for preset in sizes.presets:
        whole(preset, "default", ComputeConfig())
    for length in sizes.lengths:
        _by_kernel(job, limits, sizes, length)
    whole(sizes.presets[0], "sdpa", ComputeConfig(attention="sdpa"))


def _whole_step(limits: Limits, bench: Bench, way: ComputeConfig, most: int, steps: list[Step]) -> dict[str, Any]:
    """Figures of a step with as many rows as fit, or half if it runs out of memory; the step is added to `steps`."""
    most = _rows_that_fit(bench, most)
    for rows in (most, most // 2):
        with suppress(torch.OutOfMemoryError):  # rather than `except`, where the error would hold on to the memory
            return _timed_step(limits, bench, way, rows, steps)
    return {"failed": f"out of memory with {most // 2} rows; {most} fit if nothing is compiled"}


def _rows_that_fit(bench: Bench, most: int) -> int:
    """Rows of the largest step that fits into memory, a power of 2; not compiled, since that takes long."""
    state, rows = bench.state(EAGER), 1
    with suppress(torch.OutOfMemoryError):
        while rows < most:
            train_step(state, bench.batch(2 * rows))
            rows *= 2
    return rows


def _timed_step(limits: Limits, bench: Bench, way: ComputeConfig, rows: int, steps: list[Step]) -> dict[str, Any]:
    kinds = bench.coins()[:STEPS]
    with peak_memory(bench.device) as peak:
        state, batch = bench.state(way), bench.batch(rows)
        step = partial(train_step, state, batch)
        seconds = timed(step, bench.device, 0, warm=WARM, kinds=kinds).median
    steps.append(step)
    tokens, bf16 = rows * bench.shapes.seq_len, state.compute.dtype == torch.bfloat16
    whole = replace(bench.settings, accumulate=1)
    found = footprint(whole, bench.shapes, bf16=bf16, device=bench.device.type)
    return {
        "attention": state.compute.attention,
        "rows": rows,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "share": tokens * bench.step_flops_per_token(kinds) / seconds / limits.flops[state.compute.precision],
        "peak_bytes": peak.bytes,
        "estimated_bytes": found.memory(rows, rows, batches=1).total,
    }


def _by_kernel(job: Job, limits: Limits, sizes: Sizes, length: int) -> None:
    """Record a step without compilation and self-conditioning, at one length, with each attention kernel."""
    bench = bench_of(job.device, sizes.presets[0])
    diffusion = replace(bench.settings.diffusion, self_conditioning=0.0)
    shapes = replace(bench.shapes, seq_len=length)
    bench = replace(bench, shapes=shapes, settings=replace(bench.settings, diffusion=diffusion))
    state, batch = bench.state(EAGER), bench.batch(sizes.tokens // length)
    limit = limits.flops[state.compute.precision]
    flops = sizes.tokens * cost.flops_per_token(bench.settings, shapes)

    def measure(kernel: str) -> dict[str, Any]:
        use_attention("sdpa" if kernel == "plain" else kernel, job.device)
        with plain_attention() if kernel == "plain" else nullcontext():
            train_step(state, batch)  # the first allocates the optimiser's state
            with peak_memory(job.device) as peak:
                seconds = timed(partial(train_step, state, batch), job.device, SECONDS).median
        return {
            "rows": len(batch.tokens_BL),
            "seconds": seconds,
            "share": flops / seconds / limit,
            "step_bytes": peak.bytes,
        }

    for kernel in KERNELS:
        name = f"steps of {sizes.tokens:,} tokens by length and attention, not compiled"
        job.attempt(name, f"{length}, {kernel}", partial(measure, kernel))
