"""The feature store: hidden states and tokens in Zarr v3, sealed by a ledger (SPEC 2 and 11).

    features.zarr/hidden         (rows, L, D)  normalised states as the codec stores them
    features.zarr/scale          (rows, L)     for codecs that have one
    features.zarr/tokens         (rows, L)     int32
    features.zarr/mean, std      (D,)          float32; h = hidden · std + mean
    features.zarr/validation/…   held-out rows, where there are any
    ledger/train-00000.json      a shard's rows, error, and the bytes and sha256 of its files; written after them
    store.json                   sizes, encoder and statistics, written before the first shard
    tokenizer/                   the encoder's tokenizer
    manifest.json                written last, with the sha256 of everything else: the store is sealed

Any Zarr v3 reader can open it. But zarr returns zeros, without an error, for a shard that is missing or empty; so
completeness is decided by the ledger and the sizes it records, and never by zarr.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.codecs import Crc32cCodec, ZstdCodec

from ldlm import artifact, files, shards
from ldlm.codecs import CODECS, Codec, Parts
from ldlm.config import Shapes
from ldlm.errors import InputError, StorageError
from ldlm.location import Location, ObjectPath, locate
from ldlm.online import OnlineEncoder
from ldlm.shards import ShardedArray

CHUNK_ROWS = 16
SPLITS = ("train", "validation")
NO_PARTS: Parts = {}
Item = TypeVar("Item")
Result = TypeVar("Result")


# ----------------------------------------------------------------------------------------------------------------------
# Reading


@dataclass(frozen=True)
class Split:
    """The rows of one split. Row r of a partial store is the r-th of those that are there."""

    name: str
    rows: int
    shard_rows: int
    shards: tuple[int, ...]  # the shards that are there, in order
    group: Any  # of zarr
    arrays: Mapping[str, ShardedArray]  # tokens, and what the codec stores
    codec: Codec
    online: OnlineEncoder | None  # makes the states where none are stored

    @property
    def tokens(self) -> Any:
        """The zarr array of tokens (rows, L)."""
        return self.group["tokens"]

    @property
    def hidden(self) -> Any:
        """The zarr array of stored states (rows, L, D), or None."""
        return self.group["hidden"] if "hidden" in self.arrays else None

    def read(self, start: int, stop: int) -> tuple[Parts, np.ndarray]:
        """Neighbouring rows as stored: the codec's arrays (none for scratch embeddings) and tokens (int32)."""
        return self.read_rows(np.arange(start, stop))

    def read_rows(self, rows: np.ndarray) -> tuple[Parts, np.ndarray]:
        """Any rows, in the order given; each chunk they touch is read once."""
        loaded, place = self.load(rows)
        parts = {name: array[place] for name, array in loaded.items()}
        return {name: array for name, array in parts.items() if name != "tokens"}, parts["tokens"]

    def load(
        self, rows: np.ndarray, into: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The chunks that hold `rows`, by array name, and where in them each row stands; `into` is from `memory`."""
        rows = np.asarray(self.shards)[rows // self.shard_rows] * self.shard_rows + rows % self.shard_rows
        chunks, place = np.unique(rows // CHUNK_ROWS, return_inverse=True)
        loaded = {name: array.read(chunks, None if into is None else into[name]) for name, array in self.arrays.items()}
        return loaded, place * CHUNK_ROWS + rows % CHUNK_ROWS

    def memory(self, chunks: int) -> dict[str, np.ndarray]:
        """Memory for `load` to fill, by array name, for rows in up to so many chunks."""
        shapes = {name: (chunks * CHUNK_ROWS, *array.shape[1:]) for name, array in self.arrays.items()}
        return {name: np.empty(shape, self.arrays[name].dtype) for name, shape in shapes.items()}

    def states(self, parts: Parts, tokens_BL: Tensor) -> Tensor | None:
        """float32 states on the tokens' device: the stored dtype travels there and is decoded, or the encoder runs.

        None for scratch embeddings.
        """
        if self.online is not None:
            return self.online(tokens_BL)
        if not parts:
            return None
        return self.codec.decode({name: torch.from_numpy(array).to(tokens_BL.device) for name, array in parts.items()})


class FeatureStore:
    """A store to read. `InputError` when it is not sealed, or a shard has not the bytes that its record says.

    `path` is a folder or a prefix of an object store. `allow_partial` opens an unsealed store with the shards that are
    there.
    """

    def __init__(self, path: str | Location, *, allow_partial: bool = False) -> None:
        self.path = locate(path) if isinstance(path, str) else path
        self.artifact = artifact.open_artifact(self.path, "features", complete=False)
        self.sealed = self.artifact.complete
        if not self.sealed and not (self.path / "store.json").exists():
            raise InputError(
                f"{path} has no shard yet; run the same `ldlm extract-features` command again and it goes on"
            )
        described = self.artifact.manifest if self.sealed else files.read_json(self.path / "store.json")
        self.manifest: dict[str, Any] = described
        self.records = _records(self.path)
        if not self.sealed and not allow_partial:
            raise InputError(
                f"{path} is not sealed: {self.missing()}; run the same `ldlm extract-features` command again "
                f"and it goes on, or use what is there with --allow-partial"
            )
        self._check()

    def missing(self) -> str:
        """How much of the store is not there."""
        have = sum(record["rows"] for record in self.records.values())
        total = sum(self.manifest["rows"].values())
        shards = sum(-(-rows // self.manifest["shard_rows"]) for rows in self.manifest["rows"].values())
        return (
            f"{shards - len(self.records)} of {shards} shards ({total - have:,} of {total:,} rows, "
            f"{(total - have) / total:.0%}) are missing"
        )

    def _check(self) -> None:
        """Every shard by its size, and everything else of a sealed store, which is small, by its hash."""
        covered = list((self.artifact.manifest["sha256"] if self.sealed else {}).items())
        problems = _for_each(self.path, lambda entry: fault(self.path / entry[0], entry[1]), covered)
        for (name, _), problem in zip(covered, problems, strict=True):
            if problem is not None:
                raise InputError(f"{self.path / name} {problem}; run `ldlm features repair {self.path}`")
        found = files.sizes(self.path)
        for key, record in self.records.items():
            for name, entry in record["files"].items():
                size = found.get(name)
                if size != entry["bytes"]:
                    state = "is missing" if size is None else f"has {size} bytes instead of {entry['bytes']}"
                    raise InputError(f"shard {key}: {self.path / name} {state}; run `ldlm features repair {self.path}`")

    @cached_property
    def _group(self) -> Any:
        return zarr.open_group(shards.zarr_store(self.path / "features.zarr"), mode="r")

    @property
    def shapes(self) -> Shapes:
        """Row length, width of the states, vocabulary."""
        return Shapes(**self.manifest["shapes"])

    @property
    def codec(self) -> Codec:
        """How the states are stored."""
        return CODECS[self.manifest["codec"]]

    @property
    def encoder(self) -> dict[str, Any]:
        """Name, kind, layer and fingerprints of what made it."""
        return self.manifest["encoder"]

    @property
    def fingerprint(self) -> str:
        """A hash of what the rows are: encoder, tokenizer, statistics, sizes, text, and which of them are there."""
        what = [self.manifest[key] for key in ("rows", "shapes", "codec")]
        what.append({**self.encoder, "name": None})
        what.append(sorted(self.artifact.inputs["text"].values()))
        return files.sha256_json(what if self.sealed else [*what, sorted(self.records)])

    @property
    def tokenizer_path(self) -> Location:
        """Folder of the tokenizer."""
        return self.path / "tokenizer"

    @cached_property
    def _online(self) -> OnlineEncoder | None:
        runs = self.codec.name == "online" and self.encoder["kind"] != "scratch"
        return OnlineEncoder(self.encoder, *self.statistics()) if runs else None

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean, std) of the states before normalisation, float32 (D,)."""
        return self._group["mean"][:], self._group["std"][:]

    def split(self, name: str) -> Split:
        """`train` or `validation`; `InputError` when the store has no such rows."""
        # By number: names of six digits would come before those of five.
        records = sorted((r for r in self.records.values() if r["split"] == name), key=lambda r: r["shard"])
        if not records and self.manifest["rows"].get(name):
            raise InputError(
                f"{self.path} has none of its {self.manifest['rows'][name]:,} {name} rows yet; run the same "
                f"`ldlm extract-features` command again and it goes on"
            )
        if not records:
            raise InputError(
                f"{self.path} has no {name} rows; extract with --validation-docs N or --validation-data FILE"
            )
        group = self._group if name == "train" else self._group[name]
        folder = self.path / (_folder(name).rstrip("/"))
        stored = [key for key in ("tokens", *self.codec.dtypes) if key in group]
        return Split(
            name=name,
            rows=sum(record["rows"] for record in records),
            shard_rows=self.manifest["shard_rows"],
            shards=tuple(record["shard"] for record in records),
            group=group,
            arrays={key: ShardedArray(folder / key, group[key].metadata.to_dict()) for key in stored},
            codec=self.codec,
            online=self._online,
        )

    def held_out(self) -> Split:
        """Validation rows, or the training rows where there are none."""
        validation = any(record["split"] == "validation" for record in self.records.values())
        return self.split("validation" if validation else "train")


def _even(extent: int, most: int) -> int:
    """The width of equal chunks of up to `most`: a shard is whole chunks, and what is beyond the array is waste."""
    count = -(-extent // most)
    return -(-extent // count)


def _folder(split: str) -> str:
    """Where the arrays of a split stand in a store."""
    return "features.zarr/" if split == "train" else f"features.zarr/{split}/"


def _records(path: Location) -> dict[str, dict[str, Any]]:
    """The ledger: shard name → record, in order."""
    paths = files.matching(path / "ledger", "*.json")
    return dict(zip([record.stem for record in paths], _for_each(path, files.read_json, paths), strict=True))


def _for_each(place: Location, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The results of `work` in order; an object store is asked for several at a time."""
    if not isinstance(place, ObjectPath):
        return list(map(work, items))
    with ThreadPoolExecutor(shards.REQUESTS) as threads:
        return list(threads.map(work, items))


# ----------------------------------------------------------------------------------------------------------------------
# Writing


@dataclass(frozen=True)
class StoreWriter:
    """Writes the shards of an unsealed store at `path`. A shard is done when its record stands in the ledger.

    A shard's bytes depend on its rows alone, so any number of processes may write different shards at once; and two
    that write the same one write the same.
    """

    path: Location
    shapes: Shapes
    codec: Codec
    compression: str
    shard_rows: int
    with_hidden: bool

    def create(self, rows: Mapping[str, int], mean_D: np.ndarray, std_D: np.ndarray) -> None:
        """Write the arrays' metadata, mean and std. The same call again changes nothing."""
        vectors = {"mean": mean_D.astype(np.float32), "std": std_D.astype(np.float32)}

        def build(root: Any) -> None:
            for name, vector in vectors.items():
                root.create_array(name, shape=vector.shape, dtype=np.float32, compressors=[Crc32cCodec()])
            for split in SPLITS:
                if rows.get(split):
                    self._create_split(root if split == "train" else root.require_group(split), rows[split])

        for name, data in shards.encoded({name: (0, vector) for name, vector in vectors.items()}, build).items():
            files.write_atomic(self.path / "features.zarr" / name, data)

    def _create_split(self, group: Any, rows: int) -> None:
        length, width = self.shapes.seq_len, self.shapes.hidden_dim
        self._create_array(group, "tokens", (rows, length), (CHUNK_ROWS, length), "int32")
        if not self.with_hidden:
            return
        for name, dtype in self.codec.dtypes.items():
            chunks = (CHUNK_ROWS, _even(length, 128), _even(width, 384))
            shape = (rows, length, width)
            dims = 3 if name == "hidden" else 2
            self._create_array(group, name, shape[:dims], chunks[:dims], dtype)
        if "hidden" in self.codec.dtypes:
            group["hidden"].attrs["codec"] = self.codec.name
            group["hidden"].attrs["decode"] = self.codec.recipe

    def _create_array(self, group: Any, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str) -> None:
        """Codecs of the Zarr core specification only, so that any v3 reader will do."""
        inner = [-(-extent // chunk) * chunk for extent, chunk in zip(shape[1:], chunks[1:], strict=True)]
        group.create_array(
            name,
            shape=shape,
            chunks=chunks,
            shards=(self.shard_rows, *inner),
            dtype=dtype,
            compressors=[*([ZstdCodec(level=1)] * (self.compression == "zstd")), Crc32cCodec()],
            # An all-zero chunk is written like any other: what is absent is missing, never zero.
            config={"write_empty_chunks": True},
        )

    def shards(self, rows: int) -> int:
        """Number of shards of `rows` rows."""
        return -(-rows // self.shard_rows)

    def record_path(self, split: str, shard: int) -> Location:
        """Where the record of a shard stands."""
        return self.path / "ledger" / f"{split}-{shard:05d}.json"

    def done(self, split: str, shard: int) -> bool:
        """Whether that shard's record stands."""
        return self.record_path(split, shard).is_file()

    def recorded(self) -> set[tuple[str, int]]:
        """(split, shard) of all records that stand, by one listing."""
        names = (path.stem.rpartition("-") for path in files.matching(self.path / "ledger", "*.json"))
        return {(split, int(shard)) for split, _, shard in names if shard.isdigit()}

    def encoded(self, shard: int, parts: Parts, tokens: np.ndarray) -> dict[str, memoryview]:
        """What a shard consists of, as bytes by name from the folder of its split: its files, and arrays' metadata."""
        start = shard * self.shard_rows
        arrays = {name: (start, rows) for name, rows in {"tokens": tokens, **parts}.items()}
        return shards.encoded(arrays, lambda group: self._create_split(group, start + len(tokens)))

    def write(self, split: str, shard: int, parts: Parts, tokens: np.ndarray, facts: Mapping[str, Any]) -> int:
        """Write a whole shard, durably, and record it with `facts`; returns its bytes.

        `parts` as the codec encodes them.
        """
        start = shard * self.shard_rows
        made = self.encoded(shard, parts, tokens)
        entries: dict[str, dict[str, Any]] = {}
        for name, data in made.items():
            if not name.endswith("zarr.json"):
                # Machines that make a shard twice may differ in its last bits: the record is of what stands there.
                stored = files.write_once(self.path / (_folder(split) + name), data)
                entries[_folder(split) + name] = {"bytes": len(stored), "sha256": files.sha256(stored)}
        record = {"split": split, "shard": shard, "start": start, "rows": len(tokens), **facts, "files": entries}
        files.write_json(self.record_path(split, shard), record)
        return sum(entry["bytes"] for entry in entries.values())


# ----------------------------------------------------------------------------------------------------------------------
# Sealing and checking

_UNSEALED = ("spool", "claims", "manifest.json")  # not part of what a seal covers


def sweep(path: Location) -> None:
    """Remove what a killed writer left: temporary files, and files in the arrays that no record names."""
    named = {name for record in _records(path).values() for name in record["files"]}
    for file, relative in files.below(path):
        chunk = relative.startswith("features.zarr/") and "/c/" in relative
        ours = relative in named or relative in ("features.zarr/mean/c/0", "features.zarr/std/c/0")
        temporary = file.name.startswith(".")
        if temporary or (chunk and not ours):
            file.unlink()


def seal(path: Location, rows: Mapping[str, int]) -> dict[str, str]:
    """sha256 of every file of the store but the shards', which the ledger records: what the manifest covers.

    `StorageError` when the records do not cover `rows`, or a recorded file is not there with its size; the record of
    that shard is dropped, so that the same command makes it again.
    """
    records, found = _records(path), files.sizes(path)
    for key, record in records.items():
        for name, entry in record["files"].items():
            if found.get(name) != entry["bytes"]:
                (path / "ledger" / f"{key}.json").unlink(missing_ok=True)
                raise StorageError(f"{path / name} is not what was written; run the same command again")
    counted = {split: sum(r["rows"] for r in records.values() if r["split"] == split) for split in SPLITS}
    if counted != {split: rows.get(split, 0) for split in SPLITS}:
        raise StorageError(f"{path} has records of {counted} rows and needs {dict(rows)}; run the same command again")
    written = {name for record in records.values() for name in record["files"]}
    names = (
        name for file, name in files.below(path) if name.split("/")[0] not in _UNSEALED and not files.is_temporary(file)
    )
    return {name: files.sha256_file(path / name) for name in names if name not in written}


def faults(path: Location) -> Iterator[tuple[str, str, str]]:
    """Every byte of a store against its records: (what it belongs to, file, what is wrong) for each that differs.

    What it belongs to is the name of a shard, or `store` for everything else.
    """
    found = artifact.open_artifact(path, "features", complete=False)
    covered: Mapping[str, str] = {}
    if found.complete:
        try:
            covered = found.manifest["sha256"]
        except InputError as error:
            yield "store", "manifest.json", str(error)
    for name, digest in covered.items():
        if (problem := fault(path / name, digest)) is not None:
            yield (Path(name).stem if name.startswith("ledger/") else "store"), name, problem
    for record_path in files.matching(path / "ledger", "*.json"):
        try:
            entries = files.read_json(record_path)["files"].items()
        except (InputError, KeyError, TypeError, AttributeError):
            if not covered:
                yield record_path.stem, f"ledger/{record_path.name}", "is damaged"
            continue
        for name, entry in entries:
            if (problem := fault(path / name, entry["sha256"])) is not None:
                yield record_path.stem, name, problem


def fault(path: Location, digest: str) -> str | None:
    """What is wrong with a file that should have this sha256; None when nothing is."""
    size = files.size(path)
    if not size:
        return "is missing" if size is None else "is empty"
    return None if files.sha256_file(path) == digest else "has other bytes than were written"


def forget(path: Location, damaged: Iterable[tuple[str, str]]) -> None:
    """Unseal a store and drop what is damaged, so that extraction makes it again, and nothing that is whole.

    `damaged`: (what it belongs to, file), as `faults` names them. Of a shard the record goes, with all its files.
    """
    (path / "manifest.json").unlink(missing_ok=True)
    for shard, name in damaged:
        if shard == "store":
            (path / name).unlink(missing_ok=True)
            (path / "store.json").unlink(missing_ok=True)  # written last of what describes a store
        else:
            (path / "ledger" / f"{shard}.json").unlink(missing_ok=True)
    sweep(path)
