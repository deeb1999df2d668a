"""Text → a sealed store of normalised hidden states (SPEC 1, 2, 11).

Four phases, each of which resumes where it was killed:

1. pack the text into token rows, spooled to disk;
2. run the encoder on the blocks of rows that the statistics are taken over, and spool their raw states;
3. shard by shard: take a block's states from the spool or from the encoder, normalise, store, record;
4. seal.

So the encoder sees every row exactly once. Any number of processes, under torchrun or started by hand, on one machine
or on a shared file system, divide blocks and shards among them. Blocks are the same rows whatever the number of
processes or the point of resumption, and statistics merge in block order; the bytes of a store depend on its
configuration and text alone. A store in an object store is made the same way, with the spool in a local cache.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import torch
from safetensors.numpy import load, save

from ldlm import accounting, artifact, codecs, files, runtime, store, text
from ldlm.artifact import Artifact
from ldlm.claims import claim, share
from ldlm.codecs import CODECS, Codec, Parts
from ldlm.config import ExtractConfig, Shapes
from ldlm.encoder import FrozenEncoder, Statistics, load_tokenizer, tokenizer_fingerprint
from ldlm.errors import InputError
from ldlm.location import REQUEST_BYTES, Location, ObjectPath
from ldlm.progress import SILENT, Progress
from ldlm.store import SPLITS, StoreWriter


def plan(config: ExtractConfig, out: Location | None = None) -> dict[str, Any]:
    """What it would write and take: rows, tokens, shards, bytes per codec before compression, free space, hours.

    Hours are those of one process on this device, at the rates at which it tokenises the text and runs the encoder.
    Of a large corpus only the first documents are tokenised, and the rest is `estimated` from their number.
    `saved_share_of_step` is the encoder's part of a training step that runs it, in FLOPs, for a model of the paper's
    size: what the store saves.
    """
    _check(config)
    config, _ = _pinned(config)
    tokenizer, encoder = _models(config)
    _check_requests(config, out, _width(config, encoder))
    started = time.perf_counter()
    counts = {split: _count_rows(config, tokenizer, split) for split in SPLITS}
    rows = {split: count.rows for split, count in counts.items()}
    tokens, width = sum(rows.values()) * config.seq_len, _width(config, encoder)
    packing = (time.perf_counter() - started) / max(1e-9, sum(count.seen for count in counts.values()))
    packing *= sum(rows.values())
    rate = 0.0 if config.kind == "scratch" else _encoder_rate(config, encoder, len(tokenizer))
    return {
        "rows": rows,
        "estimated": any(count.seen < count.rows for count in counts.values()),
        "tokens": tokens,
        "shards": sum(-(-count // config.shard_rows) for count in rows.values()),
        "bytes": {
            codec.name: _bytes(tokens, 0 if config.kind == "scratch" else width, codec) for codec in CODECS.values()
        },
        "bytes_free": shutil.disk_usage(_existing_parent(out)).free if isinstance(out, Path | None) else None,
        "tokens_per_second": round(rate),
        "hours": (packing + (tokens / rate if rate else 0.0)) / 3600,
        "saved_share_of_step": accounting.encoder_share(encoder.network, config.seq_len),
    }


def _bytes(tokens: int, width: int, codec: Codec) -> int:
    """What that many tokens and their states take, before compression."""
    return round(tokens * (width * codec.bytes_per_value + 4))


def _encoder_rate(config: ExtractConfig, encoder: FrozenEncoder, vocabulary: int, seconds: float = 2.0) -> float:
    """Tokens per second of the forward pass, over batches of random tokens."""
    tokens = torch.randint(vocabulary, (config.batch_size, config.seq_len))
    encoder(tokens).cpu()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        encoder(tokens).cpu()
        done += tokens.numel()
    return done / (time.perf_counter() - started)


class _Count(NamedTuple):
    rows: int  # of a split, perhaps estimated
    seen: int  # of which so many were packed


def _count_rows(config: ExtractConfig, tokenizer: Any, split: str, seconds: float = 20.0) -> _Count:
    """Rows of a split: all of them are packed where that takes no longer than `seconds`."""
    documents = _documents(config, split)
    if documents is None:
        return _Count(0, 0)
    taken, ends = 0, time.perf_counter() + seconds

    def first() -> Iterator[str]:
        nonlocal taken
        for document in documents:
            taken += 1
            yield document
            if taken >= 1000 and time.perf_counter() > ends:
                return

    seen = sum(map(len, text.pack(first(), tokenizer, config.seq_len)))
    others = sum(1 for _ in documents)
    return _Count(round(seen * (taken + others) / max(1, taken)), seen)


def shapes(config: ExtractConfig) -> Shapes:
    """Sizes of the rows that it would write."""
    tokenizer, encoder = _models(config)
    return Shapes(seq_len=config.seq_len, hidden_dim=_width(config, encoder), vocab_size=len(tokenizer))


def _existing_parent(path: Path | None) -> Path:
    path = (path or Path()).absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def run(config: ExtractConfig, out: Location, *, overwrite: bool = False, progress: Progress = SILENT) -> Artifact:
    """Write the store `out` and seal it. The same call again takes up an interrupted one, or joins a running one."""
    if overwrite and _world()[1] > 1:
        raise InputError("--overwrite can't be shared by several processes; remove the old store first")
    with ExitStack() as held:
        extraction, result = prepare(config, out, overwrite=overwrite, progress=progress, held=held)
        if result.complete:
            _clear(extraction.work, out)  # killed between the seal and this
            progress.note(f"{out} is complete; nothing to do")
            return result

        with result.or_nothing(unless="ledger"):
            if extraction.pack():
                extraction.check_space()
                extraction.encode_sample()
                extraction.describe()
                extraction.write_shards()
                if extraction.wanting():
                    extraction.write_shards()
        return extraction.seal(result)


def prepare(
    config: ExtractConfig,
    out: Location,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
    held: ExitStack | None = None,
) -> tuple[Extraction, Artifact]:
    """Find text, tokenizer and encoder, and begin or take up the store; `InputError` when one doesn't fit it.

    Until `held` closes, no other process may overwrite or repair the store.
    """
    _check(config)
    config, source = _pinned(config)
    tokenizer, encoder = _models(config)
    _check_requests(config, out, _width(config, encoder))
    fingerprints = _fingerprints(config, encoder, tokenizer)
    reads = (*config.data, *config.validation_data)
    result = artifact.begin(
        out, "features", config, {**source, **fingerprints}, overwrite=overwrite, reads=reads, shared=True, held=held
    )
    return Extraction(config, out, _work_folder(result), tokenizer, encoder, fingerprints, progress), result


def _work_folder(result: Artifact) -> Path:
    """Where token rows, raw states and locks are while the store is made: in it, or for an object store in a cache."""
    if isinstance(result.path, Path):
        return result.path
    identity = files.sha256_json([str(result.path), result.inputs, result.config])
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "ldlm" / identity[:16]


def _world() -> tuple[int, int]:
    """(rank, number of processes), as torchrun tells them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _clear(work: Path, out: Location) -> None:
    """Remove what a sealed store needs no more."""
    if (work / "spool").exists():
        with claim(work / "claims" / "pack"):
            shutil.rmtree(work / "spool", ignore_errors=True)
    shutil.rmtree(work / "claims", ignore_errors=True)
    if work != out:
        shutil.rmtree(work, ignore_errors=True)


def _check(config: ExtractConfig) -> None:
    if bool(config.data) == bool(config.dataset):
        raise InputError("give the text either as --data FILE… or as --dataset NAME")
    if sum(map(bool, (config.validation_docs, config.validation_data, config.validation_split))) > 1:
        raise InputError("hold out rows by one of --validation-docs, --validation-data and --validation-split")
    if config.validation_split and not config.dataset:
        raise InputError("--validation-split is a split of --dataset NAME; files are held out with --validation-data")
    if config.shard_rows % config.batch_size:
        raise InputError(
            f"shard_rows={config.shard_rows} must be a multiple of batch_size={config.batch_size}, so that no "
            f"batch crosses shards"
        )
    if config.shard_rows % 16:
        raise InputError(f"shard_rows={config.shard_rows} must be a multiple of the chunk of 16 rows")


def _check_requests(config: ExtractConfig, out: Location | None, width: int) -> None:
    """`InputError` when a shard, before compression, is more than an object store takes in one request."""
    stored = 0 if config.kind == "scratch" else width * CODECS[config.codec].bytes_per_value
    row = round(config.seq_len * max(4, stored))
    if isinstance(out, ObjectPath) and config.shard_rows * row > REQUEST_BYTES:
        step = math.lcm(16, config.batch_size)
        raise InputError(
            f"--shard-rows {config.shard_rows} makes files of {config.shard_rows * row / 2**30:.1f} GiB, and an object "
            f"store takes {REQUEST_BYTES / 2**30:.0f} GiB at once; use at most {REQUEST_BYTES // row // step * step}"
        )


def _pinned(config: ExtractConfig) -> tuple[ExtractConfig, dict[str, Any]]:
    """The configuration with the dataset's commit as it is now, and the fingerprints of local text."""
    if config.dataset:
        commit, hashes = text.dataset_source(config.dataset, config.revision)
        return (config if commit is None else replace(config, revision=commit)), {"text": hashes}
    paths = [*config.data, *config.validation_data]
    for path in paths:
        if not Path(path).exists():
            raise InputError(f"there is no file {path}")
    return config, {"text": {path: files.sha256_file(Path(path)) for path in paths if Path(path).is_file()}}


def _models(config: ExtractConfig) -> tuple[Any, FrozenEncoder]:
    """The tokenizer and the encoder, which fit each other and the rows."""
    tokenizer = load_tokenizer(config.encoder)
    kind = "embedding" if config.kind == "scratch" else config.kind  # scratch needs its width only
    encoder = FrozenEncoder(config.encoder, kind=kind, layer=config.layer, device=runtime.device(config.device))
    encoder.check_length(config.seq_len)
    encoder.check_tokenizer(tokenizer)
    return tokenizer, encoder


def _fingerprints(config: ExtractConfig, encoder: FrozenEncoder, tokenizer: Any) -> dict[str, str]:
    model = "scratch" if config.kind == "scratch" else encoder.fingerprint()
    return {"encoder": model, "tokenizer": tokenizer_fingerprint(tokenizer)}


def _width(config: ExtractConfig, encoder: FrozenEncoder) -> int:
    return encoder.network.embedding_dim if encoder.kind == "embedding" else encoder.hidden_dim  # type: ignore[return-value]


# ----------------------------------------------------------------------------------------------------------------------
# Documents


def _documents(config: ExtractConfig, split: str) -> Iterator[str] | None:
    """The documents of a split, detokenised; None where there is no such split."""
    documents = _raw_documents(config, split)
    if documents is not None and config.detokenizer == "lm1b":
        return map(text.detokenize_lm1b, documents)
    return documents


def _raw_documents(config: ExtractConfig, split: str) -> Iterator[str] | None:
    held_out = config.validation_docs
    if split == "validation":
        if config.validation_data:
            return text.file_documents(config.validation_data, config.text_column)
        if config.validation_split:
            return _all_documents(config, config.validation_split)
        if not held_out:
            return None
    if not held_out:
        return _all_documents(config, config.split)
    total = sum(1 for _ in _all_documents(config, config.split))
    if total <= held_out:
        raise InputError(f"--validation-docs {held_out} leaves nothing to train on: there are {total} documents")
    boundary = total - held_out
    everything = _all_documents(config, config.split)
    return itertools.islice(everything, *((boundary,) if split == "train" else (boundary, None)))


def _all_documents(config: ExtractConfig, dataset_split: str) -> Iterator[str]:
    if config.dataset:
        return text.dataset_documents(config.dataset, dataset_split, config.text_column, config.revision)
    return text.file_documents(config.data, config.text_column)


# ----------------------------------------------------------------------------------------------------------------------
# The phases


@dataclass
class Extraction:
    """The phases of one extraction, each shared by all processes that run it on `out`."""

    config: ExtractConfig
    out: Location
    work: Path
    tokenizer: Any
    encoder: FrozenEncoder
    fingerprints: dict[str, str]
    progress: Progress

    def _claim(self, name: str) -> Path:
        return self.work / "claims" / name

    def _in_turn(self, items: list[Any]) -> list[Any]:
        """The order in which this process takes items up.

        On a file system, locks keep processes apart. Machines that share an object store have none: each does a stretch
        of its own first, and then helps with the others' from their ends. Without a launcher that counts them, each
        begins somewhere. What two of them do at once counts once: whose shard is there first.
        """
        if isinstance(self.out, Path):
            return items
        if "RANK" not in os.environ:
            start = random.randrange(len(items))
            return items[start:] + items[:start]
        rank, world = _world()
        first, last = (len(items) * r // world for r in (rank, rank + 1))
        return items[first:last] + (items[last:] + items[:first])[::-1]

    # Phase 1

    def pack(self) -> bool:
        """Spool the token rows of each split, and map them. Done once its record stands.

        False when another process has sealed the store, and removed the spool, since `begin` looked.
        """
        with claim(self._claim("pack")):
            if (self.out / "manifest.json").is_file():
                return False
            if not (self.work / "spool" / "packing.json").exists():
                shutil.rmtree(self.work / "spool", ignore_errors=True)
                (self.work / "spool").mkdir(parents=True)
                rows = {split: self._pack_split(split) for split in SPLITS}
                files.write_json(self.work / "spool" / "packing.json", rows)
            self.rows: dict[str, int] = files.read_json(self.work / "spool" / "packing.json")
            # Mapped while the claim is held: whoever seals the store meanwhile may remove the names, not the pages.
            self.tokens = {split: self._spooled(split) for split, rows in self.rows.items() if rows}
        if not self.rows["train"]:
            raise InputError(
                f"the text is shorter than one row of {self.config.seq_len} tokens; give more text or lower --seq-len"
            )
        return True

    def _spooled(self, split: str) -> np.ndarray:
        """Token rows (rows, L) int32, mapped from disk."""
        shape = (self.rows[split], self.config.seq_len)
        return np.memmap(self.work / "spool" / f"{split}.tokens", np.int32, "r", shape=shape)

    def check_space(self) -> None:
        """`InputError` when the store, before compression, and the spooled states don't fit on the disk."""
        width, length = _width(self.config, self.encoder), self.config.seq_len
        none = self.config.kind == "scratch" or self.config.codec == "online"
        spooled = 0 if none else len(self.sample()) * self.config.batch_size
        needed = spooled * length * width * 4
        if isinstance(self.out, Path):
            needed += _bytes(sum(self.rows.values()) * length, 0 if none else width, CODECS[self.config.codec])
        have = sum(files.size(path) or 0 for path, _ in files.below(self.work))
        free = shutil.disk_usage(self.work).free
        if needed > have + free:
            raise InputError(
                f"the store needs about {needed / 2**30:.1f} GiB and {self.work} has {free / 2**30:.1f} GiB free; make "
                f"room or choose --codec int8-token"
            )

    def _pack_split(self, split: str) -> int:
        documents, rows = _documents(self.config, split), 0
        if documents is None:
            return 0
        path = self.work / "spool" / f"{split}.tokens"
        with open(path, "wb") as file, self.progress.task(f"tokenize {split}", 0, "row") as task:
            for batch in text.pack(documents, self.tokenizer, self.config.seq_len):
                file.write(batch.tobytes())
                rows += len(batch)
                task.advance(len(batch))
            file.flush()
            os.fsync(file.fileno())
        return rows

    # Phase 2

    def sample(self) -> list[int]:
        """The training blocks that the statistics are taken over: all, or a seeded choice spread over the corpus."""
        blocks = -(-self.rows["train"] // self.config.batch_size)
        wanted = self.config.stats_tokens
        needed = blocks if wanted is None else -(-wanted // (self.config.batch_size * self.config.seq_len))
        if needed >= blocks:
            return list(range(blocks))
        edges = np.linspace(0, blocks, needed + 1).astype(int)  # one block from each of `needed` equal stretches
        return [int(i) for i in np.random.default_rng(self.config.seed).integers(edges[:-1], edges[1:])]

    def encode_sample(self) -> None:
        """Spool the raw states of the sample, unless the statistics are already there."""
        if self._statistics_path.is_file() or self.config.kind == "scratch" or self.config.codec == "online":
            return
        blocks = self.sample()
        with self.progress.task("encode for statistics", len(blocks), "block") as task:

            def work(block: int) -> None:
                self._spool(block, self._encode("train", block))
                task.advance(1)

            share(
                blocks,
                done=lambda block: self._spool_path(block).exists(),
                work=work,
                lock=lambda block: self._claim(f"block-{block}"),
            )

    def _spool_path(self, block: int) -> Path:
        return self.work / "spool" / f"states-{block:07d}"

    def _spool(self, block: int, states: np.ndarray) -> None:
        """Keep raw states until they are normalised, with a checksum in place of an fsync, which would cost more."""
        path, data = self._spool_path(block), np.ascontiguousarray(states).tobytes()
        temporary = path.with_name(f".{os.getpid()}.{path.name}")
        with open(temporary, "wb") as file:
            file.write(data)
            file.write(google_crc32c.value(data).to_bytes(4, "little"))
        temporary.replace(path)

    def _spooled_states(self, block: int) -> np.ndarray | None:
        """What `_spool` kept; None where that is nothing, or not what it was."""
        try:
            data = self._spool_path(block).read_bytes()
        except FileNotFoundError:
            return None
        states, checksum = data[:-4], data[-4:]
        rows = min(self.config.batch_size, self.rows["train"] - block * self.config.batch_size)
        shape = (rows, self.config.seq_len, _width(self.config, self.encoder))
        # The length too, for the checksum of nothing is zero: what a power cut leaves may be a few zeros.
        if len(states) != 4 * math.prod(shape) or google_crc32c.value(states).to_bytes(4, "little") != checksum:
            return None
        return np.frombuffer(states, np.float32).reshape(shape)

    def _encode(self, split: str, block: int) -> np.ndarray:
        start = block * self.config.batch_size
        rows = np.array(self.tokens[split][start : start + self.config.batch_size])
        states = self.encoder(torch.from_numpy(rows)).cpu().numpy()
        if not np.isfinite(states).all():
            raise InputError(f"{self.config.encoder} gives states that are not finite for {split} rows {start} ff.")
        return states

    def _states(self, split: str, block: int) -> np.ndarray:
        """Raw states of a block (rows, L, D) float32, from the spool or the encoder."""
        spooled = self._spooled_states(block) if split == "train" else None
        return self._encode(split, block) if spooled is None else spooled

    # Between 2 and 3

    @property
    def _statistics_path(self) -> Location:
        return self.out / "statistics.safetensors"

    def describe(self) -> None:
        """Merge the statistics in block order, and write the store's description and the arrays' metadata."""
        with claim(self._claim("describe")):
            if not self._statistics_path.is_file():
                self._write_statistics()
            if (self.out / "store.json").is_file():
                return store.check_described(self.out)
            everything, without_first = self._read_statistics()
            covered = self.writer.create(self.rows, everything.mean_D, everything.std_D)
            covered |= self._keep_tokenizer()
            for name in ("artifact.json", "config.yaml", "statistics.safetensors"):
                covered[name] = files.sha256_file(self.out / name)
            description = {
                "rows": self.rows,
                "tokens": sum(self.rows.values()) * self.config.seq_len,
                "shapes": vars(self.writer.shapes),
                "codec": self.config.codec,
                "shard_rows": self.config.shard_rows,
                "encoder": {
                    "name": self.config.encoder,
                    "kind": self.config.kind,
                    "layer": self.config.layer,
                    "fingerprint": self.fingerprints["encoder"],
                    "tokenizer": self.fingerprints["tokenizer"],
                    "statistics": store.statistics_hash(everything.mean_D, everything.std_D),
                },
                "statistics": {"all": _summary(everything), "without_position_0": _summary(without_first)},
                "sha256": covered,
            }
            files.write_once(self.out / "store.json", files.dump_digested(description).encode())

    def _keep_tokenizer(self) -> dict[str, str]:
        """Put the tokenizer into the store; the sha256 of its files."""
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            found = files.copy_tree(Path(folder), self.out / "tokenizer")
        return {f"tokenizer/{name}": digest for name, digest in found.items()}

    def _write_statistics(self) -> None:
        width = _width(self.config, self.encoder)
        first = without_first = Statistics(0, np.zeros(width), np.zeros(width))
        if self.config.kind == "scratch":
            first = without_first = Statistics(1, np.zeros(width), np.ones(width))
        blocks = [] if self.config.kind == "scratch" else self.sample()
        with self.progress.task("statistics", len(blocks), "block") as task:
            for block in blocks:
                states = self._states("train", block)
                first = first.merge(Statistics.of(states[:, :1]))
                without_first = without_first.merge(Statistics.of(states[:, 1:]))
                task.advance(1)
        everything = first.merge(without_first)
        tensors = {**everything.tensors("all"), **without_first.tensors("without_position_0")}
        files.write_once(self._statistics_path, save(tensors))

    def _read_statistics(self) -> tuple[Statistics, Statistics]:
        tensors = load(self._statistics_path.read_bytes())
        return Statistics.from_tensors(tensors, "all"), Statistics.from_tensors(tensors, "without_position_0")

    @cached_property
    def writer(self) -> StoreWriter:
        """Of this store."""
        shapes = Shapes(
            seq_len=self.config.seq_len,
            hidden_dim=_width(self.config, self.encoder),
            vocab_size=len(self.tokenizer),
        )
        return StoreWriter(
            self.out,
            shapes,
            codec=CODECS[self.config.codec],
            compression=self.config.compression,
            shard_rows=self.config.shard_rows,
            with_hidden=self.config.kind != "scratch",
        )

    # Phase 3

    def write_shards(self) -> None:
        """Every shard that has no record yet."""
        statistics, _ = self._read_statistics()
        mean_D, std_D = statistics.mean_D.astype(np.float32), statistics.std_D.astype(np.float32)
        items = [(split, i) for split, rows in self.tokens.items() for i in range(self.writer.shards(len(rows)))]
        length = self.config.seq_len
        have = sum(len(self._shard_tokens(*item)) for item in items if self.writer.done(*item))
        maker = {"encoder": self.fingerprints["encoder"], "statistics": store.statistics_hash(mean_D, std_D)}
        facts = {**maker, "versions": artifact.versions()}
        written, started = 0, time.perf_counter()
        with self.progress.task("encode", sum(self.rows.values()) * length, "token", done=have * length) as task:

            def work(item: tuple[str, int]) -> None:
                nonlocal written
                tokens = self._shard_tokens(*item)
                parts, error = self._shard_parts(*item, len(tokens), mean_D, std_D)
                written += self.writer.write(*item, parts, tokens, {**error, **facts})
                task.advance(tokens.size, written=f"{written / 1e6 / (time.perf_counter() - started):.1f} MB/s")

            share(
                self._in_turn(items),
                done=lambda item: self.writer.done(*item),
                work=work,
                lock=lambda item: self._claim(f"{item[0]}-{item[1]}"),
            )

    def _shard_tokens(self, split: str, shard: int) -> np.ndarray:
        size = self.config.shard_rows
        return np.array(self.tokens[split][shard * size : (shard + 1) * size])

    def _shard_parts(
        self, split: str, shard: int, rows: int, mean_D: np.ndarray, std_D: np.ndarray
    ) -> tuple[Parts, dict[str, Any]]:
        """A shard's states as stored, and what the codec cost them."""
        if self.config.kind == "scratch" or self.config.codec == "online":
            return {}, {}
        codec, size, shape = CODECS[self.config.codec], self.config.batch_size, (rows, self.config.seq_len, len(mean_D))
        dims = {"hidden": 3, "scale": 2}
        stored = {name: np.empty(shape[: dims[name]], dtype) for name, dtype in codec.dtypes.items()}
        error = codecs.Error(np.zeros(len(mean_D)), np.zeros(len(mean_D)))
        for place in range(0, rows, size):
            h = (self._states(split, (shard * self.config.shard_rows + place) // size) - mean_D) / std_D
            parts = codecs.encode(h, codec)
            error = error.merge(codecs.Error.of(h, parts, codec))
            for name, values in parts.items():
                stored[name][place : place + size] = values
        if codec.name.startswith("int8") and error.worst_channel > self.config.max_channel_error:
            raise InputError(
                f"--codec {codec.name} loses {error.worst_channel:.1%} of a channel in shard {split}-{shard:05d} "
                f"(allowed are {self.config.max_channel_error:.1%}); use --codec fp16, or raise --max-channel-error"
            )
        facts = {"relative_rms_error": error.relative_rms, "worst_channel_error": error.worst_channel}
        return stored, facts

    # Phase 4

    def wanting(self) -> list[str]:
        """The shards that must be made again, because they are not as they were written or are of another store.

        What is there of them is removed.
        """
        with claim(self._claim("seal")):
            wanting = store.wanting(self.out)
        if wanting:
            self.progress.note(f"making again: {', '.join(wanting)}")
        return wanting

    def seal(self, result: Artifact) -> Artifact:
        """Write the manifest, once every shard is there, and remove the spool."""
        with claim(self._claim("seal")):
            if not (self.out / "manifest.json").is_file():
                store.sweep(self.out)
                covered, description = store.seal(self.out), store.described(self.out)
                size = sum(files.sizes(self.out / "features.zarr").values())
                result.finish(**{**description, "bytes": size, "sha256": covered})
        _clear(self.work, self.out)
        return Artifact(self.out, "features", "complete")


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
