"""The feature store: hidden states and tokens in Zarr v3, sealed by a ledger (SPEC 2 and 11).

    features.zarr/hidden         (rows, L, D)  normalised states as the codec stores them
    features.zarr/scale          (rows, L)     for codecs that have one
    features.zarr/tokens         (rows, L)     int32
    features.zarr/mean, std      (D,)          float32; h = hidden · std + mean
    features.zarr/validation/…   held-out rows, where there are any
    ledger/train-00000.json      a shard's rows, error, maker, and the bytes and sha256 of its files; written after them
    tokenizer/                   the encoder's tokenizer
    store.json                   sizes, encoder and statistics; the sha256 of all but shards and ledger, which follow it
    manifest.json                written last, with the sha256 of everything but the shards: the store is sealed

`store.json`, `manifest.json` and each record carry a digest of themselves: nothing is trusted before the seal either.

Any Zarr v3 reader can open it. But zarr returns zeros, without an error, for a shard that is missing or empty; so
completeness is decided by the ledger and the sizes it records, and never by zarr.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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

from ldlm import artifact, files
from ldlm.config import Shapes
from ldlm.errors import InputError, StorageError
from ldlm.features import shards
from ldlm.features.codecs import CODECS, Codec, Parts, Widen
from ldlm.features.encoder import OnlineEncoder
from ldlm.features.shards import ShardedArray
from ldlm.location import Location, ObjectPath, locate

CHUNK_ROWS = 16
SPLITS = ("train", "validation")
MADE_OF = ("artifact.json", "config.yaml")  # say what a store is made of, and can't be made again
COPY = "restore it from a copy, or extract again with --overwrite"
NO_PARTS: Parts = {}
_CHUNKS = re.compile(r"features\.zarr/(\w+/)?\w+/c/\d+(/0)+")  # names of shards' files, not of mean's and std's
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
        parts = self.load(rows)
        return parts, parts.pop("tokens")

    def load(self, rows: np.ndarray, into: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Any rows as stored, by array name, tokens among them; `into` is from `memory`."""
        rows = self._places(rows)
        return {name: array.read(rows, None if into is None else into[name]) for name, array in self.arrays.items()}

    def read_tokens(self, rows: np.ndarray) -> np.ndarray:
        """The tokens of any rows (rows, L) int32, without their states."""
        return self.arrays["tokens"].read(self._places(rows), None)

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """Where rows stand in the arrays, in which missing shards leave gaps."""
        return np.asarray(self.shards)[rows // self.shard_rows] * self.shard_rows + rows % self.shard_rows

    def memory(self, rows: int) -> dict[str, np.ndarray]:
        """Memory for `load` to fill, by array name, for up to so many rows."""
        return {name: np.empty((rows, *array.shape[1:]), array.dtype) for name, array in self.arrays.items()}

    def states(self, parts: Parts, tokens_BL: Tensor, widen: Widen = Tensor.float) -> Tensor | None:
        """float32 states on the tokens' device: the stored dtype travels there and is decoded, or the encoder runs.

        None for scratch embeddings.
        """
        if self.online is not None:
            return self.online(tokens_BL)
        if not parts:
            return None
        there = {name: torch.from_numpy(array).to(tokens_BL.device) for name, array in parts.items()}
        return self.codec.decode(there, widen)


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
        self.manifest: dict[str, Any] = self.artifact.manifest if self.sealed else described(self.path)
        covered = _whole(self.path, self.manifest["sha256"])
        self.records = _sealed_records(covered) if self.sealed else _records(self.path, self.manifest)
        if not self.sealed and not allow_partial:
            raise InputError(
                f"{path} is not sealed: {self.missing()}; run the same `ldlm extract-features` command again "
                f"and it goes on, or use what is there with --allow-partial"
            )
        found = files.sizes(self.path)
        for key, record in self.records.items():
            if (problem := _shard_fault(self.path, record, found)) is not None:
                raise InputError(f"shard {key}: {problem}; run `ldlm features repair {self.path}`")

    def missing(self) -> str:
        """How much of the store is not there."""
        have = sum(record["rows"] for record in self.records.values())
        total = sum(self.manifest["rows"].values())
        shards = len(expected(self.manifest))
        return (
            f"{shards - len(self.records)} of {shards} shards ({total - have:,} of {total:,} rows, "
            f"{(total - have) / total:.0%}) are missing"
        )

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
    def rows(self) -> dict[str, int]:
        """Rows of each split that are there."""
        return {split: sum(r["rows"] for r in self.records.values() if r["split"] == split) for split in SPLITS}

    @property
    def text_fingerprint(self) -> str:
        """A hash of the text that the rows are of, wherever it lay."""
        return files.sha256_json(sorted(self.artifact.inputs["text"].values()))

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
        mean, std = self._group["mean"][:], self._group["std"][:]
        if statistics_hash(mean, std) != self.encoder["statistics"]:  # zarr gives zeros for what has gone meanwhile
            raise InputError(
                f"{self.path}/features.zarr/mean and features.zarr/std are not what was written; run `ldlm features "
                f"repair {self.path}`"
            )
        return mean, std

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


def statistics_hash(mean_D: np.ndarray, std_D: np.ndarray) -> str:
    """What identifies a normalisation: a hash of mean and std as they are stored, in float32."""
    return files.sha256_json([vector.astype(np.float32).tolist() for vector in (mean_D, std_D)])


def described(path: Location) -> dict[str, Any]:
    """`store.json`; `InputError` when it is damaged."""
    return files.read_digested(path / "store.json", f"run `ldlm features repair {path}`")


def check_described(path: Location) -> None:
    """`InputError` when `store.json` or one of the files that it covers is damaged."""
    _whole(path, described(path)["sha256"])


def expected(description: Mapping[str, Any]) -> set[str]:
    """The names of the shards that make up a store."""
    size, splits = description["shard_rows"], description["rows"].items()
    return {shard_name(split, shard) for split, rows in splits for shard in range(-(-rows // size))}


def shard_name(split: str, shard: int) -> str:
    """What a shard is called, and its record in the ledger."""
    return f"{split}-{shard:05d}"


def _whole(path: Location, covered: Mapping[str, str]) -> dict[str, bytes]:
    """The small files that `covered` (name → sha256) names, read once; `InputError` when one is not what it was."""

    def read(entry: tuple[str, str]) -> bytes:
        name, digest = entry
        data = files.content(path / name) or b""
        if files.sha256(data) != digest:
            problem = fault(path / name, digest) or "changes while it is read"
            if name in MADE_OF:
                raise InputError(f"{path / name} {problem}; {COPY}")
            raise InputError(f"{path / name} {problem}; run `ldlm features repair {path}`")
        return data

    return dict(zip(covered, _for_each(path, read, list(covered.items())), strict=True))


def _sealed_records(covered: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """The ledger of a sealed store: shard name → record, in order."""
    return {Path(name).stem: json.loads(data) for name, data in covered.items() if name.startswith("ledger/")}


def _records(path: Location, description: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The ledger of one that is not, as far as it goes; `InputError` when a record is damaged or of another store."""
    records = {}
    for key, data in _ledger(path).items():
        record = files.load_digested(data)
        if record is None or not _belongs(key, record, description):
            state = "is damaged" if record is None else "is of another store"
            raise InputError(f"{path}/ledger/{key}.json {state}; run `ldlm features repair {path}`")
        records[key] = record
    return records


def _belongs(key: str, record: Mapping[str, Any], description: Mapping[str, Any]) -> bool:
    """Whether a record is of a shard of the described store: an extraction that it replaced may still be at work."""
    encoder = description["encoder"]
    maker = {"codec": description["codec"], "encoder": encoder["fingerprint"], "statistics": encoder["statistics"]}
    size, rows = description["shard_rows"], description["rows"].get(record["split"], 0)
    here = key == shard_name(record["split"], record["shard"])
    whole = 0 < record["rows"] == min(size, rows - record["shard"] * size)
    return here and whole and maker.items() <= record.items()


def _ledger(path: Location) -> dict[str, bytes]:
    """The records as they stand there: shard name → bytes, in order."""
    paths = files.matching(path / "ledger", "*.json")
    contents = zip(paths, _for_each(path, files.content, paths), strict=True)
    return {record.stem: data for record, data in contents if data is not None}


def _shard_fault(path: Location, record: Mapping[str, Any], sizes: Mapping[str, int]) -> str | None:
    """Which file of a shard has not the size that its record says."""
    for name, entry in record["files"].items():
        size = sizes.get(name)
        if size != entry["bytes"]:
            state = "is missing" if size is None else f"has {size} bytes instead of {entry['bytes']}"
            return f"{path / name} {state}"
    return None


def _for_each(place: Location, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The results of `work` in order, of several items at a time."""
    with ThreadPoolExecutor(shards.REQUESTS if isinstance(place, ObjectPath) else shards.CORES) as threads:
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

    def create(self, rows: Mapping[str, int], mean_D: np.ndarray, std_D: np.ndarray) -> dict[str, str]:
        """Write the arrays' metadata, mean and std, and return the sha256 of each file. Again, it changes nothing."""
        vectors = {"mean": mean_D.astype(np.float32), "std": std_D.astype(np.float32)}

        def build(root: Any) -> None:
            for name, vector in vectors.items():
                root.create_array(name, shape=vector.shape, dtype=np.float32, compressors=[Crc32cCodec()])
            for split in SPLITS:
                if rows.get(split):
                    self._create_split(root if split == "train" else root.require_group(split), rows[split])

        made = shards.encoded({name: (0, vector) for name, vector in vectors.items()}, build)
        names = {f"features.zarr/{name}": data for name, data in made.items()}
        return {name: files.sha256(files.write_once(self.path / name, data)) for name, data in names.items()}

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
        return self.path / "ledger" / f"{shard_name(split, shard)}.json"

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

        `parts` as the codec encodes them. `facts` name the fingerprints of `encoder` and `statistics` that made them.
        """
        start = shard * self.shard_rows
        made = self.encoded(shard, parts, tokens)
        entries: dict[str, dict[str, Any]] = {}
        for name, data in made.items():
            if not name.endswith("zarr.json"):
                # Machines that make a shard twice may differ in its last bits: the record is of what stands there.
                stored = files.write_once(self.path / (_folder(split) + name), data)
                entries[_folder(split) + name] = {"bytes": len(stored), "sha256": files.sha256(stored)}
        record = {"split": split, "shard": shard, "start": start, "rows": len(tokens), "codec": self.codec.name}
        record.update(facts, files=entries)
        # A machine that comes late to an object store changes nothing: the seal may be of the record that stands there.
        files.write_once(self.record_path(split, shard), files.dump_digested(record).encode())
        return sum(entry["bytes"] for entry in entries.values())


# ----------------------------------------------------------------------------------------------------------------------
# Sealing and checking


def sweep(path: Location) -> None:
    """Remove what a killed writer left: temporary files, and files in the arrays that no record names."""
    records = filter(None, map(files.load_digested, _ledger(path).values()))
    named = {name for record in records for name in record["files"]}
    for file, relative in files.below(path):
        if file.name.startswith(".") or (_CHUNKS.fullmatch(relative) and relative not in named):
            file.unlink(missing_ok=True)


def wanting(path: Location) -> list[str]:
    """The shards that a store which is not sealed still needs; what is there of them is removed.

    Those without a record, and those whose record is damaged or not of this store, or whose files have not the sizes
    that it says.
    """
    ledger = _ledger(path)
    sizes = files.sizes(path)
    fit = _fit(path, ledger, sizes)
    for key in ledger.keys() - fit:
        _drop(path, key, sizes)
    return sorted(expected(described(path)) - fit)


def _fit(path: Location, ledger: Mapping[str, bytes], sizes: Mapping[str, int]) -> set[str]:
    """The shards of the ledger that are as the store's description says."""
    description = described(path)
    records = {key: files.load_digested(data) for key, data in ledger.items()}
    return {
        key
        for key, record in records.items()
        if record is not None and _belongs(key, record, description) and _shard_fault(path, record, sizes) is None
    }


def _drop(path: Location, key: str, names: Iterable[str]) -> None:
    """Remove a shard, its record last: in an object store, a file without a record would be taken for a good one."""
    split, _, number = key.rpartition("-")
    chunks = re.compile(rf"{re.escape(_folder(split))}\w+/c/{re.escape(number.lstrip('0') or '0')}(/0)+")
    for name in filter(chunks.fullmatch, names):
        (path / name).unlink(missing_ok=True)
    (path / "ledger" / f"{key}.json").unlink(missing_ok=True)


def seal(path: Location) -> dict[str, str]:
    """sha256 of every file of the store but the shards', which the ledger records: what the manifest covers.

    `StorageError` when the shards are not the ones that the description says; `InputError` for other damage.
    """
    description, ledger = described(path), _ledger(path)
    wrong = (expected(description) | ledger.keys()) - _fit(path, ledger, files.sizes(path))
    if wrong:
        raise StorageError(f"{path}: {', '.join(sorted(wrong))} must be made again; run the same command again")
    covered: dict[str, str] = description["sha256"]
    _whole(path, covered)
    covered["store.json"] = files.sha256_file(path / "store.json")
    covered.update({f"ledger/{key}.json": files.sha256(data) for key, data in ledger.items()})
    return dict(sorted(covered.items()))


def faults(path: Location) -> list[tuple[str, str, str]]:
    """Every byte of a store against its records: (what it belongs to, file, what is wrong) for each that differs.

    What it belongs to is the name of a shard, or `store` for everything else. That a store is not sealed is a fault of
    its manifest.
    """
    if not (path / "store.json").is_file():  # which tells a damaged store from something else
        artifact.open_artifact(path, "features", complete=False)
    manifest, description = (_digested(path / name) for name in ("manifest.json", "store.json"))
    covered: Mapping[str, str] = (manifest or description or {}).get("sha256", {})
    records, found = _checked_ledger(path, covered)
    if manifest is None:
        found += [("store", "store.json", "is missing or damaged")] * (description is None)
        found.append(("store", "manifest.json", _not_sealed(path, description, records)))
    promised = [(Path(name).stem if name.startswith("ledger/") else "store", name, covered[name]) for name in covered]
    for key, record in records.items():
        promised += [(key, name, entry["sha256"]) for name, entry in record["files"].items()]
    problems = _for_each(path, lambda promise: fault(path / promise[1], promise[2]), promised)
    return found + [(*promise[:2], problem) for promise, problem in zip(promised, problems, strict=True) if problem]


def _digested(path: Location) -> dict[str, Any] | None:
    """What `files.dump_digested` gave; None where it is missing or damaged."""
    return files.load_digested(files.content(path) or b"")


def _checked_ledger(
    path: Location, covered: Mapping[str, str]
) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str, str]]]:
    """The records that are whole, and as `faults` has them those that are not, unless they are `covered` by hashes."""
    records, found = {}, []
    for key, data in _ledger(path).items():
        name = f"ledger/{key}.json"
        if name in covered:
            record = json.loads(data) if files.sha256(data) == covered[name] else None
        else:
            record = files.load_digested(data)
            found += [(key, name, "is damaged")] * (record is None)
        if record is not None:
            records[key] = record
    return records, found


def _not_sealed(path: Location, description: Mapping[str, Any] | None, records: Mapping[str, Any]) -> str:
    """What is wrong with a store that has no manifest, or a damaged one."""
    if (path / "manifest.json").is_file():
        return "is damaged"
    needed = set() if description is None else expected(description)
    return f"is missing, not sealed: {len(needed - records.keys())} of {len(needed)} shards missing"


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
    names = files.sizes(path)
    for shard, name in damaged:
        if shard != "store":
            _drop(path, shard, names)
        elif name != "manifest.json":
            (path / name).unlink(missing_ok=True)
            (path / "store.json").unlink(missing_ok=True)  # written last of what describes a store
