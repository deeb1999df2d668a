"""Looking after a feature store: what it is, whether every byte is as it was written, mending it, how fast it reads."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ldlm.stages import extract_features

from ldlm import artifact, config, store
from ldlm.artifact import Artifact
from ldlm.config import ExtractConfig
from ldlm.location import Location
from ldlm.progress import SILENT, Progress
from ldlm.store import FeatureStore, Split
from ldlm.stream import BLOCK_ROWS, WINDOW_BLOCKS, RowOrder


def info(path: Location) -> dict[str, Any]:
    """Sizes, codec with its error, encoder and statistics; of an unsealed store, what is missing."""
    found = FeatureStore(path, allow_partial=True)
    size = sum(entry["bytes"] for record in found.records.values() for entry in record["files"].values())
    rows = sum(record["rows"] for record in found.records.values())
    errors = [record for record in found.records.values() if "worst_channel_error" in record]
    return {
        "path": str(path),
        "state": "sealed" if found.sealed else found.missing(),
        "rows": found.manifest["rows"],
        "tokens": found.manifest["tokens"],
        "shapes": found.manifest["shapes"],
        "shards": len(found.records),
        "codec": found.codec.name,
        "bytes": size,
        "bytes_per_token": size / max(1, rows * found.shapes.seq_len),
        "relative_rms_error": max((record["relative_rms_error"] for record in errors), default=0.0),
        "worst_channel_error": max((record["worst_channel_error"] for record in errors), default=0.0),
        "encoder": found.encoder,
        "statistics": found.manifest["statistics"],
    }


def verify(path: Location) -> list[dict[str, str]]:
    """Every file that is not as it was written, with the shard that it belongs to; empty when all is well."""
    return [{"shard": shard, "file": name, "problem": problem} for shard, name, problem in store.faults(path)]


def repair(path: Location, *, device: str = "auto", progress: Progress = SILENT) -> tuple[list[str], Artifact]:
    """Make the shards again that do not verify, from the text and encoder that the store was made with.

    Returns their names and the sealed store. What is whole is left alone.
    """
    bad = {fault["shard"] for fault in verify(path)}
    made_with = config.from_dict(ExtractConfig, artifact.open_artifact(path, "features", complete=False).config)
    if bad:
        progress.note(f"making again: {', '.join(sorted(bad))}")
        store.forget(path, bad)
    return sorted(bad), extract_features.run(replace(made_with, device=device), path, progress=progress)


def bench(path: Location, *, batch_size: int = 32, seconds: float = 5.0) -> dict[str, Any]:
    """Rows per second of shuffled batches as float32 tensors, against a memory map of the same rows.

    The memory map is of the stored dtype, uncompressed, in a temporary folder; at most a window of rows is compared,
    read once by each before the clock starts, so that both come from the page cache.
    """
    split = FeatureStore(path, allow_partial=True).split("train")
    rows = min(split.rows, BLOCK_ROWS * WINDOW_BLOCKS)
    with tempfile.TemporaryDirectory() as folder:
        parts, _ = split.read(0, rows)
        mapped = {}
        for name, array in parts.items():
            file = np.memmap(Path(folder) / name, array.dtype, "w+", shape=array.shape)
            file[:] = array
            file.flush()
            mapped[name] = np.memmap(Path(folder) / name, array.dtype, "r", shape=array.shape)

        def from_map(chosen: np.ndarray) -> torch.Tensor:
            return _decoded(split, mapped, chosen)

        stored = _rate(_windowed(split, rows), rows, batch_size, seconds)
        limit = _rate(from_map, rows, batch_size, seconds)
    return {
        "rows_per_second": stored,
        "memory_map_rows_per_second": limit,
        "ratio": stored / limit,
        "codec": split.codec.name,
        "batch_size": batch_size,
        "rows": rows,
    }


def _windowed(split: Split, rows: int) -> Callable[[np.ndarray], torch.Tensor]:
    """Batches out of windows that are read and decompressed again for every pass, as the stream does."""
    held: dict[str, np.ndarray] = {}
    left = 0

    def batch(chosen: np.ndarray) -> torch.Tensor:
        nonlocal held, left
        if left <= 0:
            held, left = dict(split.read(0, rows)[0]), rows
        left -= len(chosen)
        return _decoded(split, held, chosen)

    return batch


def _decoded(split: Split, stored: Mapping[str, np.ndarray], chosen: np.ndarray) -> torch.Tensor:
    return split.codec.decode({name: torch.from_numpy(array[chosen]) for name, array in stored.items()})


def _rate(read: Callable[[np.ndarray], Any], rows: int, batch_size: int, seconds: float) -> float:
    """Rows per second of `read` over shuffled passes, after one pass that is not counted."""
    order = RowOrder(rows, seed=0)
    batches = [order.window_rows(0, 0)[i : i + batch_size] for i in range(0, rows, batch_size)]
    for chosen in batches:
        read(chosen)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for chosen in batches:
            read(chosen)
        done += rows
    return done / (time.perf_counter() - started)
