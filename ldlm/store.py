"""The feature store: normalised hidden states and tokens in Zarr v3, sealed by a ledger (SPEC 2 and 11).

    features.zarr/hidden       (rows, L, D)  normalised states, fp16 or fp32
    features.zarr/tokens       (rows, L)     int32
    features.zarr/mean, std    (D,)          float32; h = hidden · std + mean
    features.zarr/validation/hidden, tokens  held-out rows, where there are any
    ledger/train-00000.json    rows, bytes and sha256 of a shard's files, written after them
    tokenizer/                 the encoder's tokenizer
    manifest.json              written last: the store is sealed

Any Zarr v3 reader can open it. But zarr returns zeros, without an error, for a shard that is missing or empty; so
completeness is decided by the ledger and the sizes it records, and never by zarr.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from ldlm import artifact, files
from ldlm.config import Shapes
from ldlm.errors import InputError

CHUNK_ROWS = 16
CODECS = {"fp16": np.float16, "fp32": np.float32}
SPLITS = ("train", "validation")


def encode(h: np.ndarray, codec: str) -> np.ndarray:
    """float32 states as they are stored; `InputError` where they don't fit, NaN included."""
    with np.errstate(over="ignore"):  # said below, in a sentence
        stored = h.astype(CODECS[codec])
    if not np.isfinite(stored).all():
        worst = float(np.abs(h[np.isfinite(h)]).max(initial=0.0))
        raise InputError(f"hidden states don't fit in {codec} (NaN, or values up to {worst:.3g}); use --codec fp32")
    return stored


# ----------------------------------------------------------------------------------------------------------------------
# Reading


@dataclass(frozen=True)
class Split:
    """The rows of one split."""

    name: str
    rows: int
    hidden: Any  # zarr array (rows, L, D), or None
    tokens: Any  # zarr array (rows, L)

    def read(self, start: int, stop: int) -> tuple[np.ndarray | None, np.ndarray]:
        """Neighbouring rows as stored: hidden (stored dtype) and tokens (int32)."""
        return (None if self.hidden is None else self.hidden[start:stop]), self.tokens[start:stop]

    def read_rows(self, rows: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Any rows, in the order given; each chunk they touch is read once."""
        chunks = np.unique(rows // CHUNK_ROWS)
        place = np.full(int(chunks[-1] + 1) * CHUNK_ROWS, -1)
        hidden_parts, token_parts, offset = [], [], 0
        for run_start, run_stop in _runs(chunks):
            start, stop = run_start * CHUNK_ROWS, min(run_stop * CHUNK_ROWS, self.rows)
            hidden, tokens = self.read(start, stop)
            place[start:stop] = np.arange(offset, offset + stop - start)
            offset += stop - start
            token_parts.append(tokens)
            if hidden is not None:
                hidden_parts.append(hidden)
        picked = place[rows]
        return (np.concatenate(hidden_parts)[picked] if hidden_parts else None), np.concatenate(token_parts)[picked]


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Half-open runs of consecutive integers in a sorted array."""
    breaks = np.flatnonzero(np.diff(values) != 1) + 1
    for part in np.split(values, breaks):
        yield int(part[0]), int(part[-1]) + 1


class FeatureStore:
    """A sealed store. `InputError` when it is not sealed or a shard does not have the bytes its record says."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.artifact = artifact.open_artifact(self.path, "features")
        self.manifest = self.artifact.manifest
        self._check_sizes()
        self._check_arrays()

    def _check_sizes(self) -> None:
        recorded = dict.fromkeys(self.manifest["rows"], 0)
        for record in sorted((self.path / "ledger").glob("*.json")):
            shard = files.read_json(record)
            recorded[shard["split"]] += shard["rows"]
            for name, entry in shard["files"].items():
                path = self.path / name
                size = path.stat().st_size if path.exists() else None
                if size != entry["bytes"]:
                    state = "is missing" if size is None else f"has {size} bytes instead of {entry['bytes']}"
                    raise InputError(
                        f"{self.path}: {name} {state}; delete {record} and manifest.json and extract again"
                    )
        if recorded != self.manifest["rows"]:
            raise InputError(
                f"{self.path}: the ledger has records of {recorded} rows and the store {self.manifest['rows']}; delete "
                f"manifest.json and extract again"
            )

    def _check_arrays(self) -> None:
        """What lies outside the ledger: the arrays' metadata, and mean and std, whose hash the manifest knows."""
        try:
            whole = all(self._has_its_arrays(name) for name, rows in self.manifest["rows"].items() if rows)
            statistics = files.sha256_json([vector.tolist() for vector in self.statistics()])
        except (KeyError, OSError, ValueError):  # what zarr raises for metadata that is absent or damaged
            whole, statistics = False, ""
        if not whole or statistics != self.encoder["statistics"]:
            raise InputError(
                f"{self.path}/features.zarr is damaged: metadata, mean or std are not what was written; extract again "
                f"with --overwrite"
            )

    def _has_its_arrays(self, name: str) -> bool:
        split = self.split(name)
        found = [None if array is None else array.shape for array in (split.tokens, split.hidden)]
        tokens = (split.rows, self.shapes.seq_len)
        hidden = None if self.encoder["kind"] == "scratch" else (*tokens, self.shapes.hidden_dim)
        return found == [tokens, hidden]

    @cached_property
    def _group(self) -> Any:
        return zarr.open_group(self.path / "features.zarr", mode="r")

    @property
    def shapes(self) -> Shapes:
        """Row length, width of the states, vocabulary."""
        return Shapes(**self.manifest["shapes"])

    @property
    def encoder(self) -> dict[str, Any]:
        """Name, kind, layer and fingerprints of what made it."""
        return self.manifest["encoder"]

    @property
    def fingerprint(self) -> str:
        """A hash of what the rows are: encoder, tokenizer, statistics, sizes and text."""
        what = [self.manifest[key] for key in ("encoder", "rows", "shapes", "codec")]
        return files.sha256_json([{**what[0], "name": None}, *what[1:], sorted(self.artifact.inputs["text"].values())])

    @property
    def tokenizer_path(self) -> Path:
        """Folder of the tokenizer."""
        return self.path / "tokenizer"

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean, std) of the states before normalisation, float32 (D,)."""
        return self._group["mean"][:], self._group["std"][:]

    def split(self, name: str) -> Split:
        """`train` or `validation`; `InputError` when the store has no such rows."""
        rows = self.manifest["rows"].get(name, 0)
        if not rows:
            raise InputError(
                f"{self.path} has no {name} rows; extract with --validation-docs N or --validation-data FILE"
            )
        group = self._group if name == "train" else self._group[name]
        return Split(name, rows, group.get("hidden"), group["tokens"])

    def held_out(self) -> Split:
        """Validation rows, or the training rows where there are none."""
        return self.split("validation" if self.manifest["rows"].get("validation") else "train")


# ----------------------------------------------------------------------------------------------------------------------
# Writing


class StoreWriter:
    """Writes the shards of an unsealed store at `path`. A shard is done when its record stands in the ledger."""

    def __init__(self, path: Path, shapes: Shapes, *, codec: str, shard_rows: int, with_hidden: bool) -> None:
        self.path, self.shapes, self.codec, self.shard_rows = path, shapes, codec, shard_rows
        self.with_hidden = with_hidden
        (path / "ledger").mkdir(exist_ok=True)

    def create(self, rows: dict[str, int], mean_D: np.ndarray, std_D: np.ndarray) -> None:
        """Write the arrays' metadata, mean and std. The same call again changes nothing."""
        root: Any = zarr.open_group(self.path / "features.zarr", mode="a", zarr_format=3)
        for name, vector in (("mean", mean_D), ("std", std_D)):
            array = root.create_array(
                name, shape=vector.shape, dtype=np.float32, overwrite=True, config={"write_empty_chunks": True}
            )
            array[:] = vector.astype(np.float32)
        for split in SPLITS:
            if rows.get(split):
                self._create_split(root if split == "train" else root.require_group(split), rows[split])

    def _create_split(self, group: Any, rows: int) -> None:
        length, width = self.shapes.seq_len, self.shapes.hidden_dim
        compressors = [ZstdCodec(level=1), Crc32cCodec()]
        # An all-zero chunk is written like any other: what is absent is missing, never zero.
        common = {"compressors": compressors, "config": {"write_empty_chunks": True}}
        if "tokens" not in group:
            group.create_array(
                "tokens",
                shape=(rows, length),
                chunks=(CHUNK_ROWS, length),
                shards=(self.shard_rows, length),
                dtype=np.int32,
                **common,
            )
        if self.with_hidden and "hidden" not in group:
            group.create_array(
                "hidden",
                shape=(rows, length, width),
                chunks=(CHUNK_ROWS, min(128, length), min(384, width)),
                shards=(self.shard_rows, _ceil(length, min(128, length)), _ceil(width, min(384, width))),
                dtype=CODECS[self.codec],
                **common,
            )

    def shards(self, rows: int) -> int:
        """Number of shards of `rows` rows."""
        return -(-rows // self.shard_rows)

    def record_path(self, split: str, shard: int) -> Path:
        """Where the record of a shard stands."""
        return self.path / "ledger" / f"{split}-{shard:05d}.json"

    def done(self, split: str, shard: int) -> bool:
        """Whether that shard's record stands."""
        return self.record_path(split, shard).exists()

    def write(self, split: str, shard: int, hidden: np.ndarray | None, tokens: np.ndarray) -> int:
        """Write a whole shard, make it durable, record it; returns its bytes. `hidden` as stored (see `encode`)."""
        root: Any = zarr.open_group(self.path / "features.zarr", mode="r+")
        group = root if split == "train" else root[split]
        start = shard * self.shard_rows
        every_chunk = {"write_empty_chunks": True}  # zarr forgets it when an array is opened again
        prefix = "features.zarr/" if split == "train" else f"features.zarr/{split}/"
        written = [f"{prefix}tokens/c/{shard}/0", *([f"{prefix}hidden/c/{shard}/0/0"] if hidden is not None else [])]
        for name in written:
            (self.path / name).unlink(missing_ok=True)  # a torn one would be read to fill up the last shard
        group["tokens"].with_config(every_chunk)[start : start + len(tokens)] = tokens
        if hidden is not None:
            group["hidden"].with_config(every_chunk)[start : start + len(hidden)] = hidden
        entries: dict[str, dict[str, Any]] = {}
        for name in written:
            with open(self.path / name, "rb") as file:
                os.fsync(file.fileno())
            files.fsync_dir((self.path / name).parent)
            entries[name] = {"bytes": (self.path / name).stat().st_size, "sha256": files.sha256_file(self.path / name)}
        record = {"split": split, "shard": shard, "start": start, "rows": len(tokens), "files": entries}
        files.write_json(self.record_path(split, shard), record)
        return sum(entry["bytes"] for entry in entries.values())


def _ceil(length: int, chunk: int) -> int:
    """`length` rounded up to whole chunks."""
    return -(-length // chunk) * chunk
