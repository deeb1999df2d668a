"""The feature store: hidden states and tokens in Zarr v3, sealed by a ledger (SPEC 2 and 11).

    features.zarr/hidden         (rows, L, D)  normalised states as the codec stores them
    features.zarr/scale          (rows, L)     for codecs that have one
    features.zarr/tokens         (rows, L)     int32
    features.zarr/mean, std      (D,)          float32; h = hidden · std + mean
    features.zarr/validation/…   held-out rows, if there are any
    ledger/train-00000.json      a shard's rows, error, maker, and its files' bytes and sha256; written after the files
    tokenizer/                   the encoder's tokenizer
    store.json                   sizes, encoder and statistics; the sha256 of all but shards and ledger, which follow it
    manifest.json                written last, with the sha256 of everything but the shards: the store is sealed

`store.json`, `manifest.json` and each record hold a digest of themselves, which guards unsealed stores too.

Any Zarr v3 reader can open it. But zarr returns zeros, without an error, for a shard that is missing or empty; so
the ledger and the sizes it records decide what is complete, never zarr.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldlm import artifact, files
from ldlm.completion import DESCRIPTION
from ldlm.config import ExtractConfig, Shapes, from_stored
from ldlm.errors import InputError, Unreadable
from ldlm.features import ledger, shards
from ldlm.features.codecs import CODECS, Codec, Parts
from ldlm.features.shards import SPLITS, TRY_AGAIN, ShardedArray
from ldlm.fingerprints import Fingerprint
from ldlm.location import Location, local, locate

READING = ("dataset_config", "split", "text_column", "validation_split", "validation_docs", "detokenizer")
Encode = Callable[[Tensor], Tensor]  # tokens (B, L) → normalised states (B, L, D) float32


@dataclass(frozen=True)
class Split:
    """The rows of one split. In a partial store, row numbers count only the rows that are there."""

    path: Location  # of the store
    described: str  # sha256 of the store's description, as it was when the store was opened
    name: str
    rows: int
    shard_rows: int
    shards: tuple[int, ...]  # the shards that are there, in order
    group: Any  # of zarr
    arrays: Mapping[str, ShardedArray]  # tokens, and what the codec stores
    codec: Codec
    encode: Encode | None  # makes the states if none are stored
    row_bytes: int  # of a row of the store, before compression, however much of it is read

    @property
    def tokens(self) -> Any:
        """The zarr array of tokens (rows, L)."""
        return self.group["tokens"]

    @property
    def hidden(self) -> Any:
        """The zarr array of stored states (rows, L, D), or None."""
        return self.group["hidden"] if "hidden" in self.arrays else None

    def read(self, start: int, stop: int) -> tuple[Parts, np.ndarray]:
        """Rows start … stop as stored: the codec's arrays (none for scratch embeddings) and tokens (int32)."""
        return self.read_rows(np.arange(start, stop))

    def read_rows(self, rows: np.ndarray) -> tuple[Parts, np.ndarray]:
        """Any rows, in the order given; each chunk they touch is read once."""
        parts = self.load(rows)
        return parts, parts.pop("tokens")

    def load(self, rows: np.ndarray, into: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Any rows as stored: array name → values, with the tokens. `into` is memory from `memory`."""
        return shards.read(self.arrays, self._places(rows), into)

    def check_unreplaced(self) -> None:
        """`InputError` if another store has been put in the place of the one that was opened, or that is gone.

        It is read by file and by row, so that the other's rows would pass for this one's.
        """
        try:
            found = _description_hash(self.path)
        except OSError as error:
            raise Unreadable(f"{self.path / DESCRIPTION} can't be read ({error.strerror}); {TRY_AGAIN}") from None
        if found != self.described:
            raise InputError(
                f"{self.path} was replaced while it was read: its {DESCRIPTION} is not that of the store that was "
                f"opened; put that one back and run the same command again, or begin anew on this one"
            )

    def without_states(self) -> Split:
        """The split with only the tokens of its rows; reading them leaves the states on the disk."""
        return replace(self, arrays={"tokens": self.arrays["tokens"]}, encode=None)

    def read_tokens(self, rows: np.ndarray) -> np.ndarray:
        """The tokens of any rows (rows, L) int32, without their states."""
        return self.arrays["tokens"].read(self._places(rows))

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """The indices of rows in the arrays, where missing shards leave gaps."""
        return np.asarray(self.shards)[rows // self.shard_rows] * self.shard_rows + rows % self.shard_rows

    def memory(self, rows: int) -> dict[str, np.ndarray]:
        """Memory that `load` can fill with up to `rows` rows: array name → empty array."""
        return {name: array.empty(rows) for name, array in self.arrays.items()}

    def states(self, parts: Parts, tokens_BL: Tensor) -> Tensor | None:
        """float32 states on the tokens' device, decoded there or made by `encode`; None for scratch embeddings."""
        if self.encode is not None:
            return self.encode(tokens_BL)
        if not parts:
            return None
        there = {name: torch.from_numpy(array).to(tokens_BL.device) for name, array in parts.items()}
        return self.codec.decode(there)

    def try_encoder(self, device: torch.device) -> None:
        """Make the states of the first row, if an encoder makes them: `InputError` if it is gone, or another."""
        if self.encode is not None:
            self.encode(torch.from_numpy(self.read_tokens(np.arange(1))).to(device))


class FeatureStore:
    """A store to read. `InputError` when it is not sealed, or a file of a shard has another size than its record says.

    `path` is a folder or a prefix of an object store. `allow_partial` opens an unsealed store with the shards that it
    has.
    """

    def __init__(self, path: str | Location, *, allow_partial: bool = False) -> None:
        self.path = locate(path) if isinstance(path, str) else path
        self.artifact = artifact.open_artifact(self.path, "features", complete=False)
        self.sealed = self.artifact.complete
        if not self.sealed and not (self.path / "store.json").exists():
            raise InputError(
                f"{path} has no shard yet; run the same `ldlm extract-features` command again and it goes on"
            )
        self.manifest: dict[str, Any] = self.artifact.manifest if self.sealed else ledger.read_description(self.path)
        covered = ledger.check_files(self.path, self.manifest["sha256"])
        self.records = ledger.sealed_records(covered) if self.sealed else ledger.records_of(self.path, self.manifest)
        if not self.sealed and not allow_partial:
            raise InputError(
                f"{path} is not sealed: {self.missing()}; run the same `ldlm extract-features` command again "
                f"and it goes on, or use what is there with --allow-partial"
            )
        self._described = self.manifest["sha256"].get(DESCRIPTION) or _description_hash(self.path)
        found = files.sizes(self.path)
        for key, record in self.records.items():
            if (problem := ledger.shard_fault(self.path, record, found)) is not None:
                raise InputError(f"shard {key}: {problem}; run `ldlm features repair {self.path}`")

    def missing(self) -> str:
        """A phrase that says how many shards and rows are missing."""
        have = sum(record["rows"] for record in self.records.values())
        total = sum(self.manifest["rows"].values())
        shards = len(ledger.shard_names(self.manifest))
        return (
            f"{shards - len(self.records)} of {shards} shards ({total - have:,} of {total:,} rows, "
            f"{(total - have) / total:.0%}) are missing"
        )

    @cached_property
    def _group(self) -> Any:
        import zarr

        return zarr.open_group(shards.zarr_store(self.path / "features.zarr"), mode="r")

    @property
    def shapes(self) -> Shapes:
        """Row length, width of the states, vocabulary."""
        return Shapes(**self.manifest["shapes"])

    @property
    def codec(self) -> Codec:
        """The codec of the states."""
        return CODECS[self.manifest["codec"]]

    @property
    def encoder(self) -> dict[str, Any]:
        """Name, kind, layer and fingerprints of the encoder."""
        return self.manifest["encoder"]

    @property
    def reads(self) -> list[Path]:
        """Folders of this machine that are read with it: its own, and that of its encoder."""
        return local(self.path, self.encoder["name"])

    @property
    def fingerprint(self) -> str:
        """A hash of the rows' encoder, tokenizer, statistics, sizes and text, and of a partial store's shards.

        Where there are no states, whose statistics would tell rows apart, it is a `Fingerprint` of how the text was
        read as well.
        """
        what = [self.manifest[key] for key in ("rows", "shapes", "codec")]
        what.append({**self.encoder, "name": None})
        what.append(sorted(self.artifact.inputs["text"].values()))
        found = files.sha256_json(what if self.sealed else [*what, sorted(self.records)])
        if self.encoder["kind"] != "scratch":
            return found
        return Fingerprint(files.sha256_json([found, self._reading]), before=found)

    @property
    def as_input(self) -> dict[str, str]:
        """The store among the inputs of a training: its fingerprint and, if it is not sealed, its number of shards."""
        shards = f"{len(self.records)} of {len(ledger.shard_names(self.manifest))}"
        return {"features": self.fingerprint, **({} if self.sealed else {"shards": shards})}

    @property
    def _reading(self) -> dict[str, Any]:
        """How the text was read: the settings that decide it, and the hashes of the files in order."""
        text, config = self.artifact.inputs["text"], from_stored(ExtractConfig, self.artifact.config)
        hashes = {name: [text[file] for file in getattr(config, name)] for name in ("data", "validation_data")}
        return {**hashes, **{name: getattr(config, name) for name in READING}}

    @property
    def rows(self) -> dict[str, int]:
        """Number of rows by split, without missing ones."""
        return {split: sum(r["rows"] for r in self.records.values() if r["split"] == split) for split in SPLITS}

    @property
    def text_fingerprint(self) -> str:
        """A hash of the text that the rows were made from, wherever it was."""
        return files.sha256_json(sorted(self.artifact.inputs["text"].values()))

    @property
    def tokenizer_path(self) -> Location:
        """Folder of the tokenizer."""
        return self.path / "tokenizer"

    @property
    def needs_encoder(self) -> bool:
        """Whether training needs states that the store doesn't hold and an encoder makes from the tokens."""
        return self.codec.name == "online" and self.encoder["kind"] != "scratch"

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean, std) of the states before normalisation, float32 (D,)."""
        mean, std = self._group["mean"][:], self._group["std"][:]
        if ledger.statistics_hash(mean, std) != self.encoder["statistics"]:  # zarr returns zeros for missing files
            raise InputError(
                f"{self.path}/features.zarr/mean and features.zarr/std are not what was written; run `ldlm features "
                f"repair {self.path}`"
            )
        return mean, std

    def split(self, name: str, encode: Encode | None = None) -> Split:
        """`train` or `validation`; `InputError` when the store has no such rows.

        `encode` gives the states if the store `needs_encoder` (`encoder.online_encoder`).
        """
        # Sorted by number: names with six digits would come before those with five.
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
        folder = self.path / (ledger.folder(name).rstrip("/"))
        sizes = {file: entry["bytes"] for record in records for file, entry in record["files"].items()}
        stored = [key for key in ("tokens", *self.codec.dtypes) if key in group]
        arrays = {
            key: ShardedArray(
                folder / key, group[key].metadata.to_dict(), _below(f"{ledger.folder(name)}{key}/", sizes)
            )
            for key in stored
        }
        return Split(
            path=self.path,
            described=self._described,
            name=name,
            rows=sum(record["rows"] for record in records),
            shard_rows=self.manifest["shard_rows"],
            shards=tuple(record["shard"] for record in records),
            group=group,
            arrays=arrays,
            codec=self.codec,
            encode=encode,
            row_bytes=sum(array.dtype.itemsize * math.prod(array.shape[1:]) for array in arrays.values()),
        )

    def held_out(self, encode: Encode | None = None) -> Split:
        """Validation rows, or the training rows if there are none; `encode` as for `split`."""
        validation = any(record["split"] == "validation" for record in self.records.values())
        return self.split("validation" if validation else "train", encode)


def _description_hash(path: Location) -> str:
    """The sha256 of a store's description; that of nothing if there is none."""
    return files.sha256(files.content(path / DESCRIPTION) or b"")


def _below(folder: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """The entries of files in a folder, by their names in it."""
    return {name.removeprefix(folder): size for name, size in sizes.items() if name.startswith(folder)}
