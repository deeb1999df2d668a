"""Text → a sealed store of normalised hidden states (SPEC 1, 2, 11).

Three phases, each of which resumes where it was killed:

1. pack the text into token rows, spooled to disk;
2. run the encoder on the blocks of rows that the statistics are taken over, and spool their raw states;
3. shard by shard: take a block's states from the spool or from the encoder, normalise, store, record.

So the encoder sees every row exactly once. Blocks are the same rows whatever the number of workers or the point of
resumption, and statistics merge in block order; the bytes of a store depend on its configuration and text alone.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldlm import artifact, files, runtime, text
from ldlm.artifact import Artifact
from ldlm.config import ExtractConfig, Shapes
from ldlm.encoder import FrozenEncoder, Statistics, load_tokenizer, tokenizer_fingerprint
from ldlm.errors import InputError
from ldlm.progress import SILENT, Progress
from ldlm.store import CODECS, SPLITS, StoreWriter, encode


def plan(config: ExtractConfig, out: Path | None = None) -> dict[str, Any]:
    """What it would write: rows, tokens, shards and bytes per codec before compression, and the space there is."""
    _check(config)
    _source(config)
    tokenizer, encoder = load_tokenizer(config.encoder), _encoder(config)
    rows = {split: _count_rows(config, tokenizer, split) for split in SPLITS}
    values = sum(rows.values()) * config.seq_len * _width(config, encoder)
    return {
        "rows": rows,
        "tokens": sum(rows.values()) * config.seq_len,
        "shards": sum(-(-count // config.shard_rows) for count in rows.values()),
        "bytes": {codec: values * np.dtype(dtype).itemsize for codec, dtype in CODECS.items()},
        "bytes_free": shutil.disk_usage(_existing_parent(out or Path())).free,
    }


def _count_rows(config: ExtractConfig, tokenizer: Any, split: str) -> int:
    documents = _documents(config, split)
    return 0 if documents is None else sum(map(len, text.pack(documents, tokenizer, config.seq_len)))


def _existing_parent(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def run(config: ExtractConfig, out: Path, *, overwrite: bool = False, progress: Progress = SILENT) -> Artifact:
    """Write the store `out` and seal it. The same call again takes up an interrupted one."""
    _check(config)
    source = _source(config)
    tokenizer = load_tokenizer(config.encoder)
    encoder = _encoder(config)
    fingerprints = _fingerprints(config, encoder, tokenizer)
    result = artifact.begin(out, "features", config, {**source, **fingerprints}, overwrite=overwrite)
    if result.complete:
        shutil.rmtree(out / "spool", ignore_errors=True)  # killed between the seal and this
        progress.note(f"{out} is complete; nothing to do")
        return result

    tokenizer.save_pretrained(out / "tokenizer")
    started = time.perf_counter()
    with result.or_nothing():
        rows = _pack(config, tokenizer, out, progress)
    tokens = {split: _spooled_tokens(out, split, rows[split], config.seq_len) for split in SPLITS if rows[split]}
    shapes = Shapes(seq_len=config.seq_len, hidden_dim=_width(config, encoder), vocab_size=len(tokenizer))

    extraction = Extraction(config, encoder, tokens, out)
    statistics = extraction.statistics(progress)
    writer = StoreWriter(
        out, shapes, codec=config.codec, shard_rows=config.shard_rows, with_hidden=config.kind != "scratch"
    )
    writer.create(rows, statistics.mean_D, statistics.std_D)
    with result.or_nothing():
        extraction.write_shards(writer, statistics, progress)

    stored = [vector.astype(np.float32).tolist() for vector in (statistics.mean_D, statistics.std_D)]
    sealed = result.finish(
        rows=rows,
        tokens=sum(rows.values()) * config.seq_len,
        shapes=vars(shapes),
        codec=config.codec,
        encoder={
            "name": config.encoder,
            "kind": config.kind,
            "layer": config.layer,
            "fingerprint": fingerprints["encoder"],
            "tokenizer": fingerprints["tokenizer"],
            "statistics": files.sha256_json(stored),
        },
        statistics={"all": _summary(statistics), "without_position_0": _summary(extraction.without_first)},
        bytes=sum(path.stat().st_size for path in (out / "features.zarr").rglob("*") if path.is_file()),
        seconds=round(time.perf_counter() - started, 1),
    )
    shutil.rmtree(out / "spool")
    return sealed


def _check(config: ExtractConfig) -> None:
    if bool(config.data) == bool(config.dataset):
        raise InputError("give the text either as --data FILE… or as --dataset NAME")
    if config.validation_docs and config.validation_data:
        raise InputError("hold out rows either by --validation-docs or by --validation-data, not both")
    if config.shard_rows % config.batch_size:
        raise InputError(
            f"shard_rows={config.shard_rows} must be a multiple of batch_size={config.batch_size}, so that no "
            f"batch crosses shards"
        )
    if config.shard_rows % 16:
        raise InputError(f"shard_rows={config.shard_rows} must be a multiple of the chunk of 16 rows")


def _source(config: ExtractConfig) -> dict[str, Any]:
    """Fingerprint of the text, so that a changed file is not taken for the same one."""
    paths = [*config.data, *config.validation_data]
    for path in paths:
        if not Path(path).exists():
            raise InputError(f"there is no file {path}")
    return {"text": {path: files.sha256_file(Path(path)) for path in paths if Path(path).is_file()}}


def _encoder(config: ExtractConfig) -> FrozenEncoder:
    kind = "embedding" if config.kind == "scratch" else config.kind  # scratch needs its width only
    encoder = FrozenEncoder(config.encoder, kind=kind, layer=config.layer, device=runtime.device(config.device))
    encoder.check_length(config.seq_len)
    return encoder


def _fingerprints(config: ExtractConfig, encoder: FrozenEncoder, tokenizer: Any) -> dict[str, str]:
    model = "scratch" if config.kind == "scratch" else encoder.fingerprint()
    return {"encoder": model, "tokenizer": tokenizer_fingerprint(tokenizer)}


def _width(config: ExtractConfig, encoder: FrozenEncoder) -> int:
    return encoder.network.embedding_dim if encoder.kind == "embedding" else encoder.hidden_dim  # type: ignore[return-value]


# ----------------------------------------------------------------------------------------------------------------------
# Phase 1: rows


def _pack(config: ExtractConfig, tokenizer: Any, out: Path, progress: Progress) -> dict[str, int]:
    """Spool the token rows of each split; returns their numbers. Done once its record stands."""
    record = out / "spool" / "packing.json"
    if record.exists():
        return files.read_json(record)
    shutil.rmtree(out / "spool", ignore_errors=True)
    (out / "spool").mkdir()
    rows = {}
    for split in SPLITS:
        rows[split] = 0
        documents = _documents(config, split)
        if documents is None:
            continue
        with (
            open(out / "spool" / f"{split}.tokens", "wb") as file,
            progress.task(f"tokenize {split}", 0, "row") as task,
        ):
            for batch in text.pack(documents, tokenizer, config.seq_len):
                file.write(batch.tobytes())
                rows[split] += len(batch)
                task.advance(len(batch))
    if not rows["train"]:
        raise InputError(
            f"the text is shorter than one row of {config.seq_len} tokens; give more text or lower --seq-len"
        )
    files.write_json(record, rows)
    return rows


def _documents(config: ExtractConfig, split: str) -> Iterator[str] | None:
    if split == "validation" and config.validation_data:
        return text.file_documents(config.validation_data, config.text_column)
    held_out = config.validation_docs
    if split == "validation" and not held_out:
        return None
    everything = _all_documents(config)
    if not held_out:
        return everything
    total = sum(1 for _ in _all_documents(config))
    if total <= held_out:
        raise InputError(f"--validation-docs {held_out} leaves nothing to train on: there are {total} documents")
    boundary = total - held_out
    return islice(everything, boundary) if split == "train" else islice(everything, boundary, None)


def _all_documents(config: ExtractConfig) -> Iterator[str]:
    if config.dataset:
        return text.dataset_documents(config.dataset, config.split, config.text_column)
    return text.file_documents(config.data, config.text_column)


def _spooled_tokens(out: Path, split: str, rows: int, seq_len: int) -> np.ndarray:
    return np.memmap(out / "spool" / f"{split}.tokens", np.int32, "r", shape=(rows, seq_len))


# ----------------------------------------------------------------------------------------------------------------------
# Phases 2 and 3: states


@dataclass
class Extraction:
    """Blocks of rows through the encoder, by way of the spool."""

    config: ExtractConfig
    encoder: FrozenEncoder
    tokens: dict[str, np.ndarray]  # split -> (rows, L)
    out: Path
    without_first: Statistics | None = None

    def sample(self) -> list[int]:
        """The training blocks that the statistics are taken over: all, or a seeded choice spread over the corpus."""
        blocks = -(-len(self.tokens["train"]) // self.config.batch_size)
        wanted = self.config.stats_tokens
        needed = blocks if wanted is None else -(-wanted // (self.config.batch_size * self.config.seq_len))
        if needed >= blocks:
            return list(range(blocks))
        edges = np.linspace(0, blocks, needed + 1).astype(int)  # one block from each of `needed` equal stretches
        return [int(i) for i in np.random.default_rng(self.config.seed).integers(edges[:-1], edges[1:])]

    def statistics(self, progress: Progress) -> Statistics:
        """Phase 2: mean and variance over all positions of the sample; `without_first` leaves out position 0."""
        width = _width(self.config, self.encoder)
        if self.config.kind == "scratch":
            return Statistics(1, np.zeros(width), np.ones(width))
        total = self.without_first = Statistics(0, np.zeros(width), np.zeros(width))
        blocks = self.sample()
        with progress.task("encode for statistics", len(blocks) * self.config.batch_size, "row") as task:
            for block in blocks:
                states = self._spool(block)
                total = total.merge(Statistics.of(states))
                self.without_first = self.without_first.merge(Statistics.of(states[:, 1:]))
                task.advance(len(states))
        return total

    def _spool_path(self, block: int) -> Path:
        return self.out / "spool" / f"states-{block:07d}.npy"

    def _spool(self, block: int) -> np.ndarray:
        """Raw states of a training block, from the spool or into it."""
        path = self._spool_path(block)
        if not path.exists():
            states = self._encode("train", block)
            with files.replacing(path) as temporary, open(temporary, "wb") as file:
                np.save(file, states)
        return np.load(path, allow_pickle=False)

    def _encode(self, split: str, block: int) -> np.ndarray:
        start = block * self.config.batch_size
        rows = np.array(self.tokens[split][start : start + self.config.batch_size])
        return self.encoder(torch.from_numpy(rows)).cpu().numpy()

    def _states(self, split: str, block: int) -> np.ndarray:
        if split == "train" and self._spool_path(block).exists():
            return np.load(self._spool_path(block), allow_pickle=False)
        return self._encode(split, block)

    def write_shards(self, writer: StoreWriter, statistics: Statistics, progress: Progress) -> None:
        """Phase 3: every shard that has no record yet."""
        total = sum(len(rows) for rows in self.tokens.values())
        with progress.task("write shards", total, "row") as task:
            for split, rows in self.tokens.items():
                for shard in range(writer.shards(len(rows))):
                    tokens = np.array(rows[shard * writer.shard_rows : (shard + 1) * writer.shard_rows])
                    if not writer.done(split, shard):
                        hidden = self._normalised_shard(split, shard, len(tokens), writer, statistics)
                        writer.write(split, shard, hidden, tokens)
                    task.advance(len(tokens))

    def _normalised_shard(
        self, split: str, shard: int, rows: int, writer: StoreWriter, statistics: Statistics
    ) -> np.ndarray | None:
        if not writer.with_hidden:
            return None
        size = self.config.batch_size
        first = shard * writer.shard_rows // size
        hidden = np.empty((rows, self.config.seq_len, len(statistics.mean_D)), CODECS[writer.codec])
        mean, std = statistics.mean_D.astype(np.float32), statistics.std_D.astype(np.float32)
        for place in range(0, rows, size):
            states = self._states(split, first + place // size)
            hidden[place : place + size] = encode((states - mean) / std, writer.codec)
        return hidden


def _summary(statistics: Statistics | None) -> dict[str, Any] | None:
    """What the statistics look like. GPT-2's activations at position 0 are massive, so both are worth a look."""
    if statistics is None:
        return None
    return {
        "positions": statistics.count,
        "largest_std": float(statistics.std_D.max()),
        "median_std": float(np.median(statistics.std_D)),
        "largest_abs_mean": float(np.abs(statistics.mean_D).max()),
    }
