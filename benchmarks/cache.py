"""Extraction and streaming, for the table of `speed.py`: from text to a sealed store, and from the store to a batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import peak_memory, timed
from benchmarks.speed import Bench, plain_attention
from ldlm.compute import precision_on
from ldlm.config import ExtractConfig, PretrainConfig
from ldlm.features import builtin_text
from ldlm.features.encoder import FrozenEncoder
from ldlm.features.store import FeatureStore
from ldlm.features.stream import Stream
from ldlm.stages import extract_features, pretrain_encoder
from ldlm.training import cost

CHARACTERS = 4  # per token, at most


def rows(bench: Bench, folder: Path) -> Iterator[dict[str, Any]]:
    """A row of the table for each; plain is the frozen encoder alone, which a training step without a store needs."""
    text = folder / "text.txt"
    text.write_text("\n".join(_documents(bench.scale.stored * bench.shapes.seq_len * CHARACTERS)) + "\n")
    encoder = gpt2(
        text,
        folder / "encoder",
        layers=bench.scale.encoder_layers + 2,  # its third-to-last is as deep as the plain training step's encoder
        width=bench.shapes.hidden_dim,
        heads=bench.settings.model.token_decoder.heads,
        positions=bench.shapes.seq_len,
        device=bench.device,
    )
    frozen = FrozenEncoder(str(encoder), layer=-3, seq_len=bench.shapes.seq_len, device=bench.device)
    flops = cost.encoder_flops(frozen.network, bench.shapes.seq_len)
    tokens_BL = torch.zeros(bench.scale.rows, bench.shapes.seq_len, dtype=torch.int64)
    with plain_attention():
        alone = timed(lambda: frozen(tokens_BL), bench.device, bench.scale.seconds).median / bench.scale.rows

    config = ExtractConfig(
        encoder=str(encoder),
        data=(str(text),),
        seq_len=bench.shapes.seq_len,
        stats_tokens=bench.scale.stored * bench.shapes.seq_len // 16,
    )

    def extract() -> None:
        extract_features.run(config, folder / "features", overwrite=True)

    with peak_memory(bench.device) as peak:
        seconds = timed(extract, bench.device, 0, warm=1, count=2).mean
    store = FeatureStore(folder / "features")
    stored, precision = store.manifest["rows"]["train"], precision_on(config.precision, bench.device)
    yield bench.row(
        f"extraction, text to sealed store, {precision}",
        seconds,
        tokens=stored * bench.shapes.seq_len,
        flops=stored * flops,
        precision=precision,
        memory=peak.bytes,
        plain=stored * alone,
    )
    yield _streaming(bench, store, bench.scale.rows * alone)


def _streaming(bench: Bench, store: FeatureStore, plain: float) -> dict[str, Any]:
    """Shuffled batches of float32 states on the device, one after the other, as fast as they come."""
    split = store.split("train")
    with (
        peak_memory(bench.device) as peak,
        Stream(split, batch_size=bench.scale.rows, seed=0, device=bench.device) as stream,
    ):
        batches = iter(stream)
        # The mean, since most batches are ready and some must be waited for.
        seconds = timed(lambda: next(batches), bench.device, bench.scale.seconds, warm=64).mean
    return bench.row(
        f"streaming, {split.codec.name}, store to batch",
        seconds,
        tokens=bench.scale.rows * bench.shapes.seq_len,
        stored=bench.scale.rows * store.manifest["bytes"] // sum(store.manifest["rows"].values()),
        memory=peak.bytes,
        plain=plain,
    )


def _documents(characters: int) -> Iterator[str]:
    """Prose of at least that many characters, repeated as needed."""
    for document in cycle(builtin_text.documents()):
        yield document
        characters -= len(document)
        if characters < 0:
            return


def gpt2(text: Path, out: Path, *, layers: int, width: int, heads: int, positions: int, device: torch.device) -> Path:
    """Make a GPT-2 of these sizes with its own tokenizer; its weights are all but random."""
    config = PretrainConfig(
        data=(str(text),),
        layers=layers,
        width=width,
        heads=heads,
        positions=positions,
        steps=1,
        batch_size=2,
        device=str(device),
    )
    pretrain_encoder.run(config, out)
    return out
