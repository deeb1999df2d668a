"""The phases of an extraction."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save

from ldlm import artifact, files, hub
from ldlm.artifact import Artifact
from ldlm.compute import fetch
from ldlm.config import ExtractConfig
from ldlm.errors import InputError
from ldlm.features import codecs, corpus, estimate, inputs, ledger, text, textfiles
from ldlm.features.codecs import CODECS, Parts
from ldlm.features.encoder import FrozenEncoder, Statistics
from ldlm.features.shards import SPLITS
from ldlm.features.shared_work import Tally, share
from ldlm.features.spool import Spool, TokenRows
from ldlm.features.writer import StoreWriter
from ldlm.location import Location
from ldlm.locks import claim
from ldlm.progress import SILENT, Progress


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
    inputs.check(config)
    config, source = inputs.pinned(config)
    tokenizer, encoder = inputs.models(config)
    inputs.check_requests(config, out, encoder.hidden_dim)
    begun = artifact.recorded_config(out) if not overwrite and (out / "config.yaml").is_file() else {}
    if config.detokenizer == "lm1b" and begun.get("detokenizer") == "lm1b-clean" and artifact.schema(out) == 1:
        progress.note(f"{out} was begun by an earlier version, whose lm1b is lm1b-clean now; it goes on with that")
        config = replace(config, detokenizer="lm1b-clean")
    inputs.check_revision(config, begun, out)
    if config.precision == "auto":
        encoder.compute_in(begun.get("precision", encoder.compute.precision))
    config = replace(config, precision=encoder.compute.precision)
    fingerprints = inputs.fingerprints(config, encoder, tokenizer)
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


def world() -> tuple[int, int]:
    """(rank, number of processes), as torchrun tells them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def clear(work: Path, out: Location) -> None:
    """Remove what a sealed store needs no more."""
    if (work / "spool").exists():
        with claim(work / "claims" / "pack"):
            shutil.rmtree(work / "spool", ignore_errors=True)
    shutil.rmtree(work / "claims", ignore_errors=True)
    if work != out:
        shutil.rmtree(work, ignore_errors=True)


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

    @cached_property
    def spool(self) -> Spool:
        """Of the raw states of the sample."""
        return Spool(self.work / "spool")

    @property
    def _stores_states(self) -> bool:
        """Whether there will be more than tokens and statistics."""
        return self.config.kind != "scratch" and self.config.codec != "online"

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
        rank, size = world()
        first, last = (len(items) * r // size for r in (rank, rank + 1))
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
                self._check_space_ahead()
                shutil.rmtree(self.work / "spool", ignore_errors=True)
                (self.work / "spool").mkdir(parents=True)
                for remark in textfiles.remarks(
                    [*self.config.data, *self.config.validation_data], self.config.text_column
                ):
                    self.progress.note(remark)
                rows = {split: self._pack_split(split) for split in SPLITS}
                files.write_json(self.work / "spool" / "packing.json", rows)
            self.rows: dict[str, int] = files.read_json(self.work / "spool" / "packing.json")
            # Opened while the claim is held: whoever seals the store meanwhile may remove the names, not the files.
            self.tokens = {
                split: TokenRows(self.work / "spool" / f"{split}.tokens", rows, self.config.seq_len)
                for split, rows in self.rows.items()
                if rows
            }
        if not self.rows["train"]:
            raise InputError(
                f"the text is shorter than one row of {self.config.seq_len} tokens; give more text or lower --seq-len"
            )
        return True

    def _check_space_ahead(self) -> None:
        """The same before anything is written: by the most rows that the text can make, or else by an estimate."""
        most = corpus.most_rows(self.config)
        needed, free = (1, 0) if most is None else self._space(most)
        if needed > free:
            self.check_space({split: corpus.count_rows(self.config, self.tokenizer, split).rows for split in SPLITS})

    def check_space(self, rows: Mapping[str, int]) -> None:
        """`InputError` when a store of so many rows, before compression, and its spool don't fit on the disk."""
        needed, free = self._space(rows)
        if needed > free:
            smaller = {"int8-token": "online, which stores no states", "online": ""}
            choice = "" if self.config.kind == "scratch" else smaller.get(self.config.codec, "int8-token")
            other = f" or choose --codec {choice}" if choice else ""
            raise InputError(
                f"the store and what is spooled for it need about {files.amount(needed)} more and {self.work} has "
                f"{files.amount(free)} free, {files.amount(needed - free)} too little; make room{other}"
            )

    def _space(self, rows: Mapping[str, int]) -> tuple[int, int]:
        """Bytes that the disk has yet to take, and those that are free on it."""
        width, tokens = self.encoder.hidden_dim, sum(rows.values()) * self.config.seq_len
        needed = tokens * 4
        if self._stores_states:
            sample = estimate.sampled_blocks(self.config, rows["train"]) * self.config.batch_size * self.config.seq_len
            needed += sample * width * 4
        if isinstance(self.out, Path):
            needed += estimate.stored_bytes(tokens, width if self._stores_states else 0, CODECS[self.config.codec])
        parts = (self.work / "spool", self.work / "features.zarr")
        have = sum(files.size(path) or 0 for part in parts for path, _ in files.below(part))
        return needed - have, shutil.disk_usage(estimate.existing_parent(self.work)).free

    def _pack_split(self, split: str) -> int:
        documents, rows = corpus.documents(self.config, split), 0
        if documents is None:
            return 0
        path = self.work / "spool" / f"{split}.tokens"
        with open(path, "wb") as file, self.progress.task(f"tokenize {split}", 0, "row") as task:
            for batch in text.pack(documents, self.tokenizer, self.config.seq_len):
                with files.writing(path):
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
        needed = estimate.sampled_blocks(self.config, self.rows["train"])
        if needed == blocks:
            return list(range(blocks))
        edges = np.linspace(0, blocks, needed + 1).astype(int)  # one block from each of `needed` equal stretches
        return [int(i) for i in np.random.default_rng(self.config.seed).integers(edges[:-1], edges[1:])]

    def encode_sample(self) -> None:
        """Spool the raw states of the sample, unless the statistics are already there."""
        if self._statistics_path.is_file() or not self._stores_states:
            return
        blocks = self.sample()
        size, length = self.config.batch_size, self.config.seq_len
        sizes = {block: min(size, self.rows["train"] - block * size) * length for block in blocks}
        with Tally(self.progress, "encode for statistics", sizes, self.spool.blocks) as tally:

            def work(block: int) -> None:
                states = self._begin("train", block)()
                self.spool.write(block, states)
                tally.bytes += states.nbytes
                tally.advance(block, sizes[block])

            share(
                [block for block in blocks if block not in tally.before],
                done=lambda block: self.spool.path(block).exists(),
                work=work,
                lock=lambda block: self._claim(f"block-{block}"),
            )

    def _begin(self, split: str, block: int) -> Callable[[], np.ndarray]:
        """Begin to encode a block; calling the result waits for its raw states (rows, L, D) float32."""
        start = block * self.config.batch_size
        tokens = self.tokens[split].read(start, start + self.config.batch_size)
        arrive = fetch(self.encoder(torch.from_numpy(tokens)))

        def states() -> np.ndarray:
            states = arrive().numpy()
            if not np.isfinite(states).all():
                raise InputError(f"{self.config.encoder} gives states that are not finite for {split} rows {start} ff.")
            return states

        return states

    def _states(self, split: str, blocks: Iterable[int]) -> Iterator[np.ndarray]:
        """Raw states of blocks, from the spool or the encoder. While one is worked on, a GPU makes the next."""
        begun: Callable[[], np.ndarray] | None = None
        for block in blocks:
            following = self._spooled(split, block) or self._begin(split, block)
            if begun is not None:
                yield begun()
            begun = following
        if begun is not None:
            yield begun()

    def _spooled(self, split: str, block: int) -> Callable[[], np.ndarray] | None:
        """States that are in the spool, like `_begin`."""
        if split != "train":
            return None
        rows = min(self.config.batch_size, self.rows["train"] - block * self.config.batch_size)
        states = self.spool.read(block, (rows, self.config.seq_len, self.encoder.hidden_dim))
        return None if states is None else lambda: states

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
                return ledger.check_described(self.out)
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
                    "revision": hub.revision(self.config.encoder),
                    "kind": self.config.kind,
                    "layer": self.config.layer,
                    "precision": self.encoder.compute.precision,
                    "fingerprint": self.fingerprints["encoder"],
                    "tokenizer": self.fingerprints["tokenizer"],
                    "statistics": ledger.statistics_hash(everything.mean_D, everything.std_D),
                },
                "statistics": {"all": _summary(everything), "without_position_0": _summary(without_first)},
                "sha256": covered,
            }
            files.write_once(self.out / "store.json", files.dump_digested(description).encode())

    def _keep_tokenizer(self) -> dict[str, str]:
        """Put the tokenizer into the store; the sha256 of its files."""
        with tempfile.TemporaryDirectory() as folder:
            with files.writing(Path(folder)):
                self.tokenizer.save_pretrained(folder)
            found = files.copy_tree(Path(folder), self.out / "tokenizer")
        return {f"tokenizer/{name}": digest for name, digest in found.items()}

    def _write_statistics(self) -> None:
        width = self.encoder.hidden_dim
        first = without_first = Statistics(0, np.zeros(width), np.zeros(width))
        if self.config.kind == "scratch":
            first = without_first = Statistics(1, np.zeros(width), np.ones(width))
        blocks = [] if self.config.kind == "scratch" else self.sample()
        with self.progress.task("statistics", len(blocks), "block") as task:
            for states in self._states("train", blocks):
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
        return inputs.writer_of(self.config, self.out, inputs.shapes_of(self.config, self.tokenizer, self.encoder))

    # Phase 3

    def write_shards(self) -> None:
        """Every shard that has no record yet."""
        statistics, _ = self._read_statistics()
        mean_D, std_D = statistics.mean_D.astype(np.float32), statistics.std_D.astype(np.float32)
        size, length = self.config.shard_rows, self.config.seq_len
        sizes = {
            (split, start // size): min(size, rows - start) * length
            for split, rows in self.rows.items()
            for start in range(0, rows, size)
        }
        maker = {"encoder": self.fingerprints["encoder"], "statistics": ledger.statistics_hash(mean_D, std_D)}
        facts = {**maker, "versions": artifact.versions()}
        with Tally(self.progress, "encode", sizes, self.writer.recorded) as tally:

            def encode(item: tuple[str, int]) -> tuple[Parts, dict[str, Any]]:
                return self._shard_parts(*item, mean_D, std_D, lambda tokens: tally.advance(item, tokens))

            def write(item: tuple[str, int], made: tuple[Parts, dict[str, Any]]) -> None:
                parts, error = made
                tally.bytes += self.writer.write(*item, parts, self._shard_tokens(*item), {**error, **facts})

            share(
                [item for item in self._in_turn(list(sizes)) if item not in tally.before],
                done=lambda item: self.writer.done(*item),
                work=encode,
                finish=write,
                lock=lambda item: self._claim(f"{item[0]}-{item[1]}"),
            )

    def _shard_tokens(self, split: str, shard: int) -> np.ndarray:
        size = self.config.shard_rows
        return self.tokens[split].read(shard * size, (shard + 1) * size)

    def _shard_parts(
        self, split: str, shard: int, mean_D: np.ndarray, std_D: np.ndarray, advance: Callable[[int], None]
    ) -> tuple[Parts, dict[str, Any]]:
        """A shard's states as stored, and what the codec cost them. `advance` hears of tokens as they are encoded."""
        rows = min(self.config.shard_rows, self.rows[split] - shard * self.config.shard_rows)
        if not self._stores_states:
            advance(rows * self.config.seq_len)
            return {}, {}
        codec, size, shape = CODECS[self.config.codec], self.config.batch_size, (rows, self.config.seq_len, len(mean_D))
        dims = {"hidden": 3, "scale": 2}
        stored = {name: np.empty(shape[: dims[name]], dtype) for name, dtype in codec.dtypes.items()}
        error = codecs.Error(np.zeros(len(mean_D)), np.zeros(len(mean_D)))
        places = range(0, rows, size)
        blocks = ((shard * self.config.shard_rows + place) // size for place in places)
        for place, states in zip(places, self._states(split, blocks), strict=True):
            parts, lost = estimate.stored(states, mean_D, std_D, codec)
            error = error.merge(lost)
            for name, values in parts.items():
                stored[name][place : place + size] = values
            advance(len(states) * self.config.seq_len)
        if codec.name.startswith("int8") and error.worst_channel > self.config.max_channel_error:
            raise InputError(
                f"--codec {codec.name} loses {error.worst_channel:.2%} of a channel in shard {split}-{shard:05d} "
                f"(allowed are {self.config.max_channel_error:.2%}); use --overwrite --codec fp16, or raise "
                f"--max-channel-error"
            )
        facts = {"relative_rms_error": error.relative_rms, "worst_channel_error": error.worst_channel}
        return stored, facts

    # Phase 4

    def wanting(self) -> list[str]:
        """The shards that must be made again, because they are not as they were written or are of another store.

        What is there of them is removed.
        """
        with claim(self._claim("seal")):
            wanting = ledger.wanting(self.out)
        if wanting:
            self.progress.note(f"making again: {', '.join(wanting)}")
        return wanting

    def seal(self, result: Artifact) -> Artifact:
        """Write the manifest, once every shard is there, and remove the spool."""
        with claim(self._claim("seal")):
            if not (self.out / "manifest.json").is_file():
                ledger.sweep(self.out)
                covered, description = ledger.seal(self.out), ledger.described(self.out)
                size = sum(files.sizes(self.out / "features.zarr").values())
                result.finish(**{**description, "bytes": size, "sha256": covered})
        clear(self.work, self.out)
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
