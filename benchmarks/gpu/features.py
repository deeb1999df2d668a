"""The vocabulary loss beside torch's; extraction by an encoder of GPT-2 small's size; training on the store it makes.

Aims: extraction at 0.92 of the encoder's bare forward pass, and 2 % of a training step spent waiting for its batch.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.job import Job
from benchmarks.machine import Limits, peak_memory, timed
from benchmarks.parts import part
from benchmarks.speed import bench_of
from ldlm.compute import DTYPES, precision_on
from ldlm.config import ExtractConfig
from ldlm.errors import InputError
from ldlm.model.token_loss import token_losses

TURNS, WAIT_TURNS, STEPS = 2, 3, 20
SECONDS = 1.0  # of each loss


@dataclass(frozen=True)
class Sizes:
    """Sizes of the loss, the encoder and the store."""

    positions: int
    vocab_size: int
    preset: str  # whose denoiser is trained on the store
    layers: int
    heads: int
    seq_len: int
    rows: int  # approximate number to extract
    batch_size: int


SIZES = {
    "cuda": Sizes(2**15, 50_257, "owt-1024", layers=12, heads=12, seq_len=1024, rows=2048, batch_size=32),
    "cpu": Sizes(2**10, 4_096, "tiny", layers=4, heads=4, seq_len=64, rows=512, batch_size=16),
}


def run(job: Job) -> None:
    """Record the loss, the extraction and the wait for batches."""
    limits, sizes = job.limits, SIZES[job.device.type]
    _losses(job, limits, sizes)
    cache, store = part("cache"), part("store")
    if isinstance(cache, str) or isinstance(store, str):
        absent = cache if isinstance(cache, str) else store
        job.record("extraction and streaming", name="all", skipped=f"{absent} is not installed")
        return
    config = _encoder_and_text(job, sizes, cache)
    job.attempt("extraction, aim 0.92 of the bare forward pass", "GPT-2", lambda: _extraction(job, config, store))
    job.attempt(
        "share of a training step that is a wait, aim 0.02", sizes.preset, lambda: _wait(job, config, store, sizes)
    )


# ----------------------------------------------------------------------------------------------------------------------
# The vocabulary loss


def _losses(job: Job, limits: Limits, sizes: Sizes) -> None:
    """Record the loss forward and backward: ours, torch's in chunks and with its defaults, and with all logits."""
    precision, width = precision_on("auto", job.device), bench_of(job.device, sizes.preset).shapes.hidden_dim
    there: dict[str, Any] = {"device": job.device, "dtype": DTYPES[precision], "requires_grad": True}
    x_PD, weight_VD = torch.randn(sizes.positions, width, **there), torch.randn(sizes.vocab_size, width, **there)
    tokens_P = torch.randint(sizes.vocab_size, (sizes.positions,), device=job.device)
    limit = limits.flops[precision]
    flops = 3 * 2 * sizes.positions * width * sizes.vocab_size  # logits, and the gradients of both factors

    def measure(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> dict[str, Any]:
        with peak_memory(job.device) as peak:
            seconds = timed(lambda: loss(x_PD, weight_VD, tokens_P).backward(), job.device, SECONDS).median
        return {"seconds": seconds, "share": flops / limit / seconds, "peak_bytes": peak.bytes}

    table = f"vocabulary loss of {sizes.positions:,} positions and {sizes.vocab_size:,} tokens, {precision}"
    for name, loss in {"ours": _ours, "torch, chunked": _chunked, "torch": _default, "all logits": _all}.items():
        job.attempt(table, name, partial(measure, loss))


def _ours(x_PD: Tensor, weight_VD: Tensor, tokens_P: Tensor) -> Tensor:
    return token_losses(x_PD[None], weight_VD, tokens_P[None]).mean


def _chunked(x_PD: Tensor, weight_VD: Tensor, tokens_P: Tensor) -> Tensor:
    return _of_torch()(x_PD, weight_VD, tokens_P, options=torch.nn.LinearCrossEntropyOptions())


def _default(x_PD: Tensor, weight_VD: Tensor, tokens_P: Tensor) -> Tensor:
    return _of_torch()(x_PD, weight_VD, tokens_P)


def _all(x_PD: Tensor, weight_VD: Tensor, tokens_P: Tensor) -> Tensor:
    return F.cross_entropy((x_PD @ weight_VD.T).float(), tokens_P)


def _of_torch() -> Callable[..., Tensor]:
    if not hasattr(F, "linear_cross_entropy"):
        raise InputError(f"torch {torch.__version__} has no linear_cross_entropy, which came with 2.13")
    return F.linear_cross_entropy


# ----------------------------------------------------------------------------------------------------------------------
# Extraction and streaming


def _encoder_and_text(job: Job, sizes: Sizes, cache: ModuleType) -> ExtractConfig:
    """Make the text and an encoder as wide as the preset's states; return the settings of the extraction."""
    text = job.scratch / "text.txt"
    text.write_text("\n".join(_nonsense(sizes.rows * sizes.seq_len * cache.CHARACTERS)) + "\n", encoding="utf-8")
    encoder = cache.gpt2(
        text,
        job.scratch / "encoder",
        layers=sizes.layers,
        width=bench_of(job.device, sizes.preset).shapes.hidden_dim,
        heads=sizes.heads,
        positions=sizes.seq_len,
        device=job.device,
    )
    return ExtractConfig(
        encoder=str(encoder),
        data=(str(text),),
        seq_len=sizes.seq_len,
        batch_size=sizes.batch_size,
        device=str(job.device),
    )


def _nonsense(characters: int) -> Iterator[str]:
    """Lines of made-up words, `characters` characters in all: collecting real prose takes half a minute."""
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(20_000)]
    while characters > 0:
        line = " ".join(draw.choices(words, k=60))
        characters -= len(line)
        yield line


def _extraction(job: Job, config: ExtractConfig, store: ModuleType) -> dict[str, Any]:
    found = store.extraction(config, job.scratch, TURNS)
    return {
        "rows": found["rows"],
        "forward_rows_per_second": found["forward_rows_per_second"],
        "statistics_of_all": found["small"]["ratio"],
        "statistics_of_a_sample": found["large"]["ratio"],
    }


def _wait(job: Job, config: ExtractConfig, store: ModuleType, sizes: Sizes) -> dict[str, Any]:
    """Share of a step spent waiting in a preset's training on the last store that was made."""
    made = job.scratch / f"timed-{TURNS - 1}-16"
    settings = replace(bench_of(job.device, sizes.preset).settings, batch_size=config.batch_size)
    waits = [store.trainer_wait(made, settings, job.device, STEPS) for _ in range(WAIT_TURNS)]
    return {"steps": STEPS, **{f"turn_{turn}": wait for turn, wait in enumerate(waits, 1)}}
