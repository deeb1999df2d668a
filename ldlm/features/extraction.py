"""Extraction: text → a sealed store of normalised hidden states, in phases that resume where they were killed.

The phases are methods of `Extraction`, and `stages/extract_features.py` calls them in order. Any number of
processes, on one machine, a shared file system or an object store, divide pieces of text, blocks of rows and shards
among themselves; with an object store each machine makes the blocks for itself. Blocks hold the same rows whatever the
number of processes, and statistics merge in block order: the bytes of a store depend only on its configuration and
text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from ldlm import files, presence
from ldlm.artifact import Artifact
from ldlm.config import ExtractConfig
from ldlm.errors import InputError, StorageError
from ldlm.features import corpus, estimate, inputs, ledger, scratch, sealing, text, textfiles
from ldlm.features.blocks import Blocks, one_ahead
from ldlm.features.codecs import CODECS, Parts
from ldlm.features.digests import Seen
from ldlm.features.encoder import FrozenEncoder, Statistics
from ldlm.features.packing import Ends, HandOutPieces, Packing
from ldlm.features.sealing import Seal
from ldlm.features.shards import SPLITS
from ldlm.features.shared_work import Tally, share
from ldlm.features.shares import Share, in_turn, share_of_environment
from ldlm.features.spool import Spool
from ldlm.features.writer import StoreWriter
from ldlm.leases import Leases
from ldlm.location import Location
from ldlm.presence import CLAIMS
from ldlm.progress import Progress
from ldlm.versions import library_versions

Shard = tuple[str, int]  # split and number
HandOut = Callable[[list[Any], Tally[Any]], None]  # the items that are left, and the tally of what is done


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
    share: Share | None = field(default_factory=share_of_environment)  # the work that this process does first
    seen: Mapping[str, Seen] = field(default_factory=dict)  # of the text's files, when they were hashed
    own_seal: Seal = field(init=False)  # of the store as it is begun now

    def __post_init__(self) -> None:
        self.own_seal = Seal(self.out)

    @cached_property
    def spool(self) -> Spool:
        """Raw states of the sample, on disk until their shards are written."""
        return Spool(scratch.spool(self.work, self.own_seal.mark))

    @cached_property
    def writer(self) -> StoreWriter:
        """The writer of the store."""
        shapes = inputs.shapes(self.config, self.tokenizer, self.encoder)
        return inputs.store_writer(self.config, self.out, shapes)

    @property
    def _blocks(self) -> Blocks:
        return Blocks(self.config.batch_size, self.tokens, self.encoder, self.spool)

    @cached_property
    def leases(self) -> Leases:
        """The leases on work of processes that share the work folder; earlier versions know their locks' names."""
        return Leases(self.work / CLAIMS, self.work / CLAIMS)

    @cached_property
    def store_leases(self) -> Leases:
        """The leases on work of all processes: pieces, shards, the seal. They lie in the store's folder or prefix."""
        return self.leases if self.work == self.out else Leases(self.out / CLAIMS, self.work / CLAIMS)

    def _in_turn(self, items: list[Any]) -> list[Any]:
        """The shards in the order in which this process takes them. In an object store a lease costs a request."""
        return in_turn(items, self.share, apart=not isinstance(self.out, Path))

    # ------------------------------------------------------------------------------------------------------------------
    # Phase 1: text into token rows

    @cached_property
    def packing(self) -> Packing:
        """The packing of the text."""
        ends = Ends(*text.special_tokens(self.tokenizer))
        tokenizer = self.tokenizer.backend_tokenizer
        folder = scratch.packed(self.out, self.own_seal.mark if self.work == self.out else self.work.name)
        return Packing(self.config, folder, self.out / CLAIMS, tokenizer, ends, self.progress, self.share, self.seen)

    def pack(self, hand_out: HandOutPieces | None = None) -> bool:
        """Tokenise the text, together with other processes, and open the token rows of each split.

        False when another process has meanwhile sealed the store and removed the rows. In every phase, `hand_out` is
        that of an engine, which has the remaining items made elsewhere.
        """
        packing = self.packing
        with packing.turn(packing.planned) as planned:
            if self.sealed:
                return False
            self.own_seal.check()
            if planned is None:
                self._check_space_ahead()
                for remark in textfiles.remarks(
                    self.config.data + self.config.validation_data, self.config.text_column
                ):
                    self.progress.note(remark)
                planned = packing.plan()
        packing.tokenize(planned, hand_out=hand_out)
        with packing.turn(lambda: packing.done or None):
            if self.sealed:
                return False
            self.own_seal.check()
            self.tokens = packing.rows(planned)
            self.spool.folder.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, int] = {split: self.tokens[split].rows if split in self.tokens else 0 for split in SPLITS}
        if not self.rows["train"]:
            raise corpus.too_short(self.config)
        if corpus.holds_out(self.config) and not self.rows["validation"]:
            self.progress.note(corpus.held_out_too_short(self.config))
        return True

    def _check_space_ahead(self) -> None:
        """`check_space` before the text is packed: for the most rows it can make or, failing that, for an estimate."""
        most = corpus.most_rows(self.config)
        needed, free = (1, 0) if most is None else self._space(most)
        if needed > free:
            self.check_space({split: corpus.count_rows(self.config, self.tokenizer, split).rows for split in SPLITS})

    def check_space(self, rows: Mapping[str, int]) -> None:
        """`InputError` when a store of so many rows, before compression, and its spool don't fit on the disk."""
        needed, free = self._space(rows)
        if needed > free:
            raise InputError(
                f"the store and what is spooled for it need about {files.amount(needed)} more and {self.work} has "
                f"{files.amount(free)} free, {files.amount(needed - free)} too little; make room"
                f"{estimate.smaller_choice(self.config)}"
            )

    def _space(self, rows: Mapping[str, int]) -> tuple[int, int]:
        """Bytes still to be written to the disk, before compression, and bytes free on it.

        What is already there needs no more room: token rows, spooled states of the sample (once there are statistics,
        no state needs any), and shards with a record.
        """
        packed, spooled = estimate.spool_bytes(self.config, self.encoder.hidden_dim, rows)
        needed = 0
        if isinstance(self.packing.folder, Path) and not self.packing.done:
            needed += max(0, packed - sum(files.sizes(self.packing.folder).values()))
        if not self._statistics_path.is_file():
            needed += max(0, spooled - sum(files.sizes(self.spool.folder).values()))
        if isinstance(self.out, Path):
            recorded = self.writer.recorded()
            left = sum(rows_of for item, rows_of in self._shard_rows(rows).items() if item not in recorded)
            width = self.encoder.hidden_dim if estimate.stores_states(self.config) else 0
            needed += estimate.stored_bytes(left * self.config.seq_len, width, CODECS[self.config.codec])
        return needed, estimate.free_bytes(self.work)

    def _shard_rows(self, rows: Mapping[str, int]) -> dict[Shard, int]:
        """The number of rows in each shard of a store of so many rows by split."""
        size = self.config.shard_rows
        return {
            (split, start // size): min(size, count - start)
            for split, count in rows.items()
            for start in range(0, count, size)
        }

    # ------------------------------------------------------------------------------------------------------------------
    # Phase 2: statistics of the states

    def sample(self) -> list[int]:
        """The training blocks that the statistics are taken over: all, or a seeded choice spread over the corpus."""
        blocks = -(-self.rows["train"] // self.config.batch_size)
        needed = estimate.sampled_blocks(self.config, self.rows["train"])
        if needed == blocks:
            return list(range(blocks))
        edges = np.linspace(0, blocks, needed + 1).astype(int)  # one block from each of `needed` equal stretches
        return [int(i) for i in np.random.default_rng(self.config.seed).integers(edges[:-1], edges[1:])]

    def encode_sample(self, hand_out: HandOut | None = None) -> None:
        """Spool the raw states of the sample, unless the statistics are there or the store holds no states."""
        if self._statistics_path.is_file() or not estimate.stores_states(self.config):
            return
        blocks = self.sample()
        size, length = self.config.batch_size, self.config.seq_len
        sizes = {block: min(size, self.rows["train"] - block * size) * length for block in blocks}
        with Tally(self.progress, "encode for statistics", sizes, self.spool.blocks) as tally:
            left = [block for block in in_turn(blocks, self.share) if block not in tally.before]
            (self.share_blocks if hand_out is None else hand_out)(left, tally)

    def share_blocks(
        self, blocks: Iterable[int], tally: Tally[int], turn: AbstractContextManager[Any] | None = None
    ) -> None:
        """Spool blocks unless others do; returns when all are done. Each is encoded and written within `turn`."""

        def work(block: int) -> None:
            with turn or nullcontext():  # encoder and spool each have memory for the states of one block
                states = self._blocks.encoded_raw("train", block)()
                self.spool.write(block, states)
            tally.bytes += states.nbytes
            tally.advance(block, tally.sizes[block])

        share(
            blocks,
            done=lambda block: self.spool.path(block).exists(),
            work=work,
            claim=lambda block: self.leases.claim(f"block-{block}"),
            recorded=tally.recorded,
        )

    @property
    def _statistics_path(self) -> Location:
        return self.out / "statistics.safetensors"

    def describe(self) -> None:
        """Merge the statistics in block order, and write the store's description and the arrays' metadata."""
        with self.leases.turn("describe"):
            if not self._statistics_path.is_file():
                self._write_statistics()
            if (self.out / "store.json").is_file():
                return ledger.check_description(self.out)
            everything, without_first = self._read_statistics()
            self.own_seal.check()
            covered = self.writer.create(self.rows, everything.mean_D, everything.std_D)
            covered |= self.writer.write_tokenizer(self.tokenizer)
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
                    "revision": self.encoder.revision,
                    "kind": self.config.kind,
                    "layer": self.config.layer,
                    "precision": self.encoder.compute.precision,
                    "fingerprint": self.fingerprints["encoder"],
                    "tokenizer": self.fingerprints["tokenizer"],
                    "statistics": ledger.statistics_hash(everything.mean_D, everything.std_D),
                },
                # GPT-2's activations at position 0 are massive, so the statistics are also given without it.
                "statistics": {"all": everything.summary(), "without_position_0": without_first.summary()},
                "sha256": covered,
            }
            files.write_once(self.out / "store.json", files.dump_digested(description).encode(), self.own_seal.check)

    def _write_statistics(self) -> None:
        width = self.encoder.hidden_dim
        first = without_first = Statistics(0, np.zeros(width), np.zeros(width))
        if self.config.kind == "scratch":
            first = without_first = Statistics(1, np.zeros(width), np.ones(width))
        blocks = [] if self.config.kind == "scratch" else self.sample()
        with self.progress.task("statistics", len(blocks), "block") as task:
            for states in one_ahead(self._blocks.raw("train", block) for block in blocks):
                first = first.merge(Statistics.of(states[:, :1]))
                without_first = without_first.merge(Statistics.of(states[:, 1:]))
                task.advance(1)
        everything = first.merge(without_first)
        tensors = {**everything.tensors("all"), **without_first.tensors("without_position_0")}
        files.write_once(self._statistics_path, save(tensors), self.own_seal.check)

    def _read_statistics(self) -> tuple[Statistics, Statistics]:
        """The statistics of all positions, and of all but position 0."""
        tensors = load(self._statistics_path.read_bytes())
        return Statistics.from_tensors(tensors, "all"), Statistics.from_tensors(tensors, "without_position_0")

    # ------------------------------------------------------------------------------------------------------------------
    # Phase 3: shards

    def write_shards(self, hand_out: HandOut | None = None) -> None:
        """Encode, normalise and store every shard that has no record yet."""
        sizes = {item: count * self.config.seq_len for item, count in self._shard_rows(self.rows).items()}
        with Tally(self.progress, "encode", sizes, self.writer.recorded) as tally:
            left = [item for item in self._in_turn(list(sizes)) if item not in tally.before]
            (self.share_shards if hand_out is None else hand_out)(left, tally)

    def share_shards(
        self, shards: Iterable[Shard], tally: Tally[Shard], turn: AbstractContextManager[Any] | None = None
    ) -> None:
        """Write shards unless others do; returns when all are done. Each is encoded within `turn`, written after it."""
        statistics, _ = self._read_statistics()
        self.own_seal.check()
        mean_D, std_D = statistics.mean_D.astype(np.float32), statistics.std_D.astype(np.float32)
        maker = {"encoder": self.fingerprints["encoder"], "statistics": ledger.statistics_hash(mean_D, std_D)}
        facts = {**maker, "versions": library_versions()}

        def encode(item: Shard) -> tuple[Parts, dict[str, Any]]:
            with turn or nullcontext():
                return self._shard_parts(*item, mean_D, std_D, lambda tokens: tally.advance(item, tokens))

        def write(item: Shard, made: tuple[Parts, dict[str, Any]]) -> None:
            if self.writer.done(*item):  # this process was stopped, and another has meanwhile made it
                return
            parts, error = made
            tally.bytes += self.writer.write(*item, parts, self._shard_tokens(*item), {**error, **facts})

        share(
            shards,
            done=lambda item: self.writer.done(*item),
            work=encode,
            finish=write,
            claim=lambda item: self.store_leases.claim(f"{item[0]}-{item[1]}"),
            recorded=tally.recorded,
        )

    def _shard_tokens(self, split: str, shard: int) -> np.ndarray:
        size = self.config.shard_rows
        return self.tokens[split].read(shard * size, (shard + 1) * size)

    def _shard_parts(
        self, split: str, shard: int, mean_D: np.ndarray, std_D: np.ndarray, advance: Callable[[int], None]
    ) -> tuple[Parts, dict[str, Any]]:
        """A shard's states as stored, and the codec's error. `advance` counts tokens as they are encoded."""
        rows = min(self.config.shard_rows, self.rows[split] - shard * self.config.shard_rows)
        if not estimate.stores_states(self.config):
            advance(rows * self.config.seq_len)
            return {}, {}
        codec = CODECS[self.config.codec]
        places = range(shard * self.config.shard_rows, shard * self.config.shard_rows + rows)
        stored, error = self._blocks.stored_rows(split, places, mean_D, std_D, codec, advance)
        if codec.name.startswith("int8") and error.worst_channel > self.config.max_channel_error:
            raise InputError(
                f"--codec {codec.name} loses {error.worst_channel:.2%} of a channel in shard {split}-{shard:05d} "
                f"(at most {self.config.max_channel_error:.2%} is allowed); use --overwrite --codec fp16, or raise "
                f"--max-channel-error"
            )
        facts = {"relative_rms_error": error.relative_rms, "worst_channel_error": error.worst_channel}
        return stored, facts

    # ------------------------------------------------------------------------------------------------------------------
    # Phase 4: the seal

    @property
    def sealed(self) -> bool:
        """Whether the store that this process makes is sealed, no matter by which process."""
        return self.own_seal.there

    @contextmanager
    def unless_sealed(self) -> Iterator[None]:
        """Within the block, a file may be gone because another process has sealed the store and then removed it.

        Then this process was stopped for longer than its lease lasts, and the other has done its part. `StorageError`
        if the store was meanwhile begun anew.
        """
        try:
            yield
        except (FileNotFoundError, StorageError):
            if not self.sealed:
                self.own_seal.check()
                raise

    def make_missing(self, held: ExitStack, hand_out: HandOut | None = None) -> None:
        """Write again the shards that are damaged or of another store. `held` is that of `prepare`."""
        self.own_seal.check()
        missing, misfits = ledger.missing_shards(self.out)
        if misfits:
            self.own_seal.at_work = None  # the lease ends here, and its end must not make the checks below fail
            held.close()  # others waiting for their turn must not wait for this process
            with presence.alone(self.out, "all", note=self.progress.note) as lease:
                ledger.drop_misfits(self.out, lease)
            self.own_seal.at_work = held.enter_context(presence.present(self.out, "all"))
        if missing:
            self.progress.note(f"making again: {', '.join(missing)}")
            self.write_shards(hand_out)

    def seal(self, result: Artifact) -> Artifact:
        """Write the manifest, once every shard is there, and remove the spool. `StorageError` if it may not."""
        with self.store_leases.turn("seal") as lease:
            if not self.sealed:
                with self.unless_sealed():
                    self.own_seal.put(result, lease)
        self.clear()
        return Artifact(self.out, "features", "complete")

    def clear(self) -> None:
        """Remove token rows, spool and leases, which a sealed store no longer needs; those of a newer store stay."""
        unneeded = [self.out / name for name in (scratch.PACKED, scratch.SPOOL)]
        sealing.clear(self.own_seal, self.packing, unneeded, self.work)
