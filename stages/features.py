"""Maintenance of a feature store: its properties, verification, repair, held-out text, and read rate."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldlm import artifact, config, files, mounts, presence
from ldlm.artifact import Artifact
from ldlm.config import ExtractConfig
from ldlm.errors import InputError
from ldlm.evaluation import metrics, samples
from ldlm.features import estimate, ledger, shards
from ldlm.features.begin import loaded_again, prepare
from ldlm.features.encoder import online_encoder
from ldlm.features.store import FeatureStore, Split
from ldlm.features.stream import RowOrder, Stream, default_window
from ldlm.hub import load_tokenizer
from ldlm.location import Location, check_output
from ldlm.progress import SILENT, Progress
from ldlm.stages import extract_features

MAP_ROWS = 512  # rows of a memory map written at a time


def info(path: Location) -> dict[str, Any]:
    """Sizes, codec with its error, encoder and statistics of a store; for an unsealed one, how much is missing."""
    found = FeatureStore(path, allow_partial=True)
    size = sum(entry["bytes"] for record in found.records.values() for entry in record["files"].values())
    rows = sum(record["rows"] for record in found.records.values())
    errors = [record for record in found.records.values() if "worst_channel_error" in record]
    place = mounts.file_system(path) if isinstance(path, Path) else None
    return {
        "path": str(path),
        "file_system": None if place is None else str(place),
        "locks": None if place is None else place.locks,
        "hard_links": mounts.hard_links(path) if isinstance(path, Path) else None,
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


def remarks(path: Location, hard_links: bool | None) -> list[str]:
    """Lines on a store's file system, if its locks are known not to hold across machines, or it has no hard links.

    `hard_links` comes from `info`, which tries to make one with files in the store.
    """
    return mounts.remarks(mounts.file_system(path), hard_links) if isinstance(path, Path) else []


def verify(path: Location) -> list[dict[str, str]]:
    """Every file that differs from what was written, with its shard; empty for an intact, sealed store."""
    return [{"shard": shard, "file": name, "problem": problem} for shard, name, problem in ledger.faults(path)]


def remedy(place: str, faults: list[dict[str, str]]) -> str:
    """Advice on the faults of the store `place`."""
    lost = [fault["file"] for fault in faults if fault["file"] in ledger.MADE_OF]
    return f"{', '.join(lost)}: {ledger.COPY}" if lost else f"`ldlm features repair {place}` repairs it"


def repair(
    path: Location, *, encoder: str | None = None, device: str = "auto", progress: Progress = SILENT
) -> tuple[list[str], Artifact]:
    """Write damaged and missing shards again, from the text and encoder that the store was made with.

    Returns their names and the sealed store. Intact shards are left alone. `encoder` is the folder or hub name of the
    encoder, if it has moved. `InputError` when the text, the encoder or the configuration is gone, or is another.
    """
    found = artifact.open_artifact(path, "features", complete=False)
    with presence.alone(path, note=progress.note) as lease:
        faults = ledger.faults(path)
        for _, name, problem in faults:
            if name in ledger.MADE_OF:
                raise InputError(
                    f"{path / name} {problem}, and can't be made again, since it says what the store is made of; "
                    f"{ledger.COPY}"
                )
        made_with = replace(config.from_dict(ExtractConfig, found.config), device=device)
        loaded = loaded_again(made_with, found, encoder)
        bad = [(shard, name) for shard, name, _ in faults]
        shards = sorted({shard for shard, _ in bad})
        if bad:
            prepare(made_with, path, loaded=loaded)  # raises for a missing text before anything is removed
            progress.note(f"making again: {', '.join(shards)}")
            ledger.forget(path, bad, lease.check)
    return shards, extract_features.run(made_with, path, progress=progress, loaded=loaded)


def texts(path: Location, rows: int, out: Path, *, clean_up: bool = False, progress: Progress = SILENT) -> Path:
    """Write held-out rows as text, in the format of `ldlm sample`: real text of the samples' length and kind.

    If the store has no held-out rows they are training rows, with a note. A record beside the file says how they were
    decoded. `InputError` if the store has fewer rows, or the file holds something else.
    """
    found = FeatureStore(path, allow_partial=True)
    split = found.held_out()
    if split.name == "train":
        progress.note(f"{path} has no held-out rows, so these are training rows")
    if split.rows < rows:
        raise InputError(f"{path} has {split.rows:,} {split.name} rows and not {rows:,}; give --rows {split.rows}")
    tokens = split.read_tokens(np.arange(rows))
    with tempfile.TemporaryDirectory() as folder:  # a tokenizer can't be loaded from an object store
        files.copy_tree(found.tokenizer_path, Path(folder))
        tokenizer = load_tokenizer(folder)
    decoded = metrics.decode_tokens(tokenizer, tokens, clean_up=clean_up)
    lines = files.dump_jsonl(samples.rows(decoded, tokens.tolist(), range(rows)))
    check_output(out, "real.jsonl")
    # A kill may leave the beginning of the text in a file that is a mount point, which a rename can't replace.
    there = files.content(out) or b""
    if len(there) > len(lines.encode()) and there.startswith(lines.encode()):
        count = there.count(b"\n")
        raise InputError(
            f"{out} holds {count:,} texts of this store already, and --rows {rows} asks for fewer; take its first "
            f"{rows:,} lines, or choose another --output"
        )
    if not lines.encode().startswith(there):
        raise InputError(f"{out} holds something else; choose another --output")
    samples.write_record(out, "texts", samples.record_of(tokenizer, clean_up))
    files.write_atomic(out, lines)
    return out


def bench(
    path: Location,
    *,
    batch_size: int = 32,
    shuffle_rows: int | None = None,
    seconds: float = 5.0,
    most_bytes: float = 512e6,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Rows per second of shuffled float32 batches from the training stream, against a memory map of the same rows.

    Rows are shuffled in windows of `shuffle_rows`, by default those of a training on the store with such batches.

    The map holds the stored dtype, uncompressed, in a temporary folder; its batches have the same order. Both are read
    once before the clock starts, so that they come from the page cache. Then they are timed in turns. Each turn opens
    and closes its own reader, so that neither reads ahead in the other's time, and takes whole windows, since the
    stream reads the next one meanwhile. At most `most_bytes` of rows are compared, but at least one window of them.
    `InputError` if the temporary folder has no room for that.
    """
    store = FeatureStore(path, allow_partial=True)
    split = store.split("train", online_encoder(store))
    window = min(split.rows, shuffle_rows or default_window(split, batch_size))
    split = _whole_windows(split, window, batch_size, most_bytes, progress)
    order = RowOrder(split.rows, 0, window)
    turn = -(-window // batch_size)  # batches of a window
    cpu = torch.device("cpu")

    def from_store() -> Generator[torch.Tensor | None, None, None]:
        with Stream(split, batch_size=batch_size, seed=0, device=cpu, shuffle_rows=window) as stream:
            for batch in stream:
                yield batch.hidden_BLD

    def from_map() -> Generator[torch.Tensor | None, None, None]:
        for position in itertools.count(0, batch_size):
            chosen = order.rows_at(position, batch_size)
            parts = {name: array[chosen] for name, array in mapped.items()}
            yield split.states(parts, torch.from_numpy(parts.pop("tokens")))

    with tempfile.TemporaryDirectory() as folder:
        mapped = _memory_map(split, Path(folder))
        passes = -(-split.rows // batch_size)
        _rate(from_store(), turn, passes, 0), _rate(from_map(), turn, passes, 0)  # into the page cache
        turns = [tuple(_rate(read(), turn, 64, seconds / 4) for read in (from_store, from_map)) for _ in range(4)]
    store_rate, map_rate = (batch_size * statistics.mean(rates) for rates in zip(*turns, strict=True))
    return {
        "rows_per_second": store_rate,
        "memory_map_rows_per_second": map_rate,
        "ratio": store_rate / map_rate,
        "codec": split.codec.name,
        "batch_size": batch_size,
        "shuffle_rows": window,
        "rows": split.rows,
        "requests_in_flight": None if isinstance(path, Path) else shards.REQUESTS,
    }


def _whole_windows(split: Split, window: int, batch_size: int, most_bytes: float, progress: Progress) -> Split:
    """The first rows of a split, in whole windows, as many as fit in `most_bytes` and in the temporary folder.

    They are at least one window and one batch.
    """
    folder = tempfile.gettempdir()
    free = estimate.free_bytes(Path(folder))
    whole = RowOrder(split.rows, 0, window).largest_window
    rows = min(split.rows, max(1, int(min(free, most_bytes) / split.row_bytes) // whole) * whole)
    rows = max(min(split.rows, batch_size), rows)
    takes = f"a memory map of {rows:,} rows takes {files.amount(rows * split.row_bytes)}"
    if rows * split.row_bytes > free:
        raise InputError(
            f"{takes} and {folder} has {files.amount(free)} free; set TMPDIR to a folder with room, or give a "
            f"smaller --shuffle-rows"
        )
    progress.note(f"{takes} of {folder}")
    return replace(split, rows=rows)


def _memory_map(split: Split, folder: Path) -> dict[str, np.ndarray]:
    """Memory maps of a split's arrays, written uncompressed to `folder`.

    They are not written through a map: the process would crash if others filled the disk meanwhile.
    """
    for start in range(0, split.rows, MAP_ROWS):
        parts, tokens = split.read(start, min(start + MAP_ROWS, split.rows))
        for name, values in {**parts, "tokens": tokens}.items():
            # Not by `tofile`, which hides the error of a full disk.
            with files.writing(folder / name), open(folder / name, "ab") as file:
                file.write(np.ascontiguousarray(values).data)
    return {
        name: np.memmap(folder / name, array.dtype, "r", shape=(split.rows, *array.shape[1:]))
        for name, array in split.arrays.items()
    }


def _rate(batches: Generator[Any, None, None], turn: int, warm: int, seconds: float) -> float:
    """Batches per second of an endless generator over whole turns of `turn` batches; closes it.

    The first turns, those with the first `warm` batches, don't count.
    """
    for _ in range(-(-warm // turn) * turn):
        next(batches)
    done, started = 0, time.perf_counter()
    while done % turn or time.perf_counter() - started < seconds:
        next(batches)
        done += 1
    spent = time.perf_counter() - started
    batches.close()
    return done / spent
