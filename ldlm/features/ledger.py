"""The ledger of a feature store: records of what was written, checks against them, repair, and what a seal covers.

Its files are listed in `store.py`. Zarr returns zeros for what is missing, so these records decide what is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ldlm import artifact, emptying, files, presence
from ldlm.completion import DESCRIPTION, FIRST, is_complete, same
from ldlm.errors import InputError, StorageError
from ldlm.features import decided, shards
from ldlm.leases import Lease
from ldlm.location import Location, ObjectPath

MADE_OF = FIRST  # the description of the inputs, which can't be made again
COPY = "restore it from a copy, or extract again with --overwrite"
_CHUNKS = re.compile(r"features\.zarr/(\w+/)?\w+/c/\d+(/0)+")  # files of shards, not those of mean and std
Item = TypeVar("Item")
Result = TypeVar("Result")


def folder(split: str) -> str:
    """The folder, within a store, of a split's arrays."""
    return "features.zarr/" if split == "train" else f"features.zarr/{split}/"


def statistics_hash(mean_D: np.ndarray, std_D: np.ndarray) -> str:
    """A hash of mean and std as they are stored, in float32, which identifies a normalisation."""
    return files.sha256_json([vector.astype(np.float32).tolist() for vector in (mean_D, std_D)])


def read_description(path: Location) -> dict[str, Any]:
    """The content of `store.json`; `InputError` when it is damaged."""
    return files.read_digested(path / "store.json", f"run `ldlm features repair {path}`")


def recorded_encoder(path: Location) -> dict[str, Any]:
    """The record of a store's encoder, from its description or, if that is damaged, its manifest; {} if both are."""
    described = filter(None, (_digested(path / name) for name in (DESCRIPTION, "manifest.json")))
    return next((found["encoder"] for found in described), {})


def check_description(path: Location) -> None:
    """`InputError` when `store.json` or one of the files that it covers is damaged."""
    check_files(path, read_description(path)["sha256"])


def shard_names(description: Mapping[str, Any]) -> set[str]:
    """The names of all shards of the described store."""
    size, splits = description["shard_rows"], description["rows"].items()
    return {shard_name(split, shard) for split, rows in splits for shard in range(-(-rows // size))}


def shard_name(split: str, shard: int) -> str:
    """The name of a shard, and of its record in the ledger."""
    return f"{split}-{shard:05d}"


def check_files(path: Location, covered: Mapping[str, str]) -> dict[str, bytes]:
    """Read the small files that `covered` (name → sha256) lists; `InputError` when one has changed."""

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


def sealed_records(covered: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """The ledger of a sealed store: shard name → record, in order; `covered` holds its files."""
    return {Path(name).stem: json.loads(data) for name, data in covered.items() if name.startswith("ledger/")}


def records_of(path: Location, description: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The ledger so far of an unsealed store; `InputError` when a record is damaged or of another store."""
    records = {}
    for key, data in _ledger(path).items():
        record = files.load_digested(data)
        if record is None or not _belongs(key, record, description):
            state = "is damaged" if record is None else "is of another store"
            raise InputError(f"{path}/ledger/{key}.json {state}; run `ldlm features repair {path}`")
        records[key] = record
    return records


def _belongs(key: str, record: Mapping[str, Any], description: Mapping[str, Any]) -> bool:
    """Whether a record belongs to the described store: a process of a store that it replaced may still be writing."""
    encoder = description["encoder"]
    maker = {"codec": description["codec"], "encoder": encoder["fingerprint"], "statistics": encoder["statistics"]}
    size, rows = description["shard_rows"], description["rows"].get(record["split"], 0)
    here = key == shard_name(record["split"], record["shard"])
    whole = 0 < record["rows"] == min(size, rows - record["shard"] * size)
    return here and whole and maker.items() <= record.items()


def is_covered(path: Location, covered: Mapping[str, str]) -> bool:
    """Whether every record that a manifest covers is there unchanged; `covered` is the manifest's sha256 by name."""
    names = [name for name in covered if name.startswith("ledger/")]
    if not {Path(name).name for name in names} <= {record.name for record in files.matching(path / "ledger", "*.json")}:
        return False
    return all(_for_each(path, lambda name: same(path, name, covered), names))


def _ledger(path: Location) -> dict[str, bytes]:
    """The records as bytes, by shard name, in order."""
    paths = files.matching(path / "ledger", "*.json")
    contents = zip(paths, _for_each(path, files.content, paths), strict=True)
    return {record.stem: data for record, data in contents if data is not None}


def shard_fault(path: Location, record: Mapping[str, Any], sizes: Mapping[str, int]) -> str | None:
    """The fault of a shard with a file whose size is not as recorded; None when all sizes are right."""
    for name, entry in record["files"].items():
        size = sizes.get(name)
        if size != entry["bytes"]:
            state = "is missing" if size is None else f"has {size} bytes instead of {entry['bytes']}"
            return f"{path / name} {state}"
    return None


def _for_each(place: Location, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The results of `work` on each item, in order, from several threads."""
    with ThreadPoolExecutor(shards.REQUESTS if isinstance(place, ObjectPath) else shards.CORES) as threads:
        return list(threads.map(work, items))


# ----------------------------------------------------------------------------------------------------------------------
# Sealing and checking


def sweep(path: Location, check: Callable[[], None]) -> None:
    """Remove the leftovers of killed writers: temporary files, and files of the arrays that no record names.

    `check` is that of `emptying.remove`: the leftovers may belong to a store that has replaced this one.
    """
    records = filter(None, map(files.load_digested, _ledger(path).values()))
    named = {name for record in records for name in record["files"]}
    for file, relative in files.below(path):
        if file.name.startswith(".") or (_CHUNKS.fullmatch(relative) and relative not in named):
            emptying.remove(file, check)


def missing_shards(path: Location) -> tuple[list[str], list[str]]:
    """The names of the shards that an unsealed store still needs, and of the records that must be dropped first.

    A shard is missing if its record is missing, damaged or of another store, or if the size of a file is not as
    recorded.
    """
    description, ledger = read_description(path), _ledger(path)
    fit = _fitting(path, description, ledger)
    return sorted(shard_names(description) - fit), sorted(ledger.keys() - fit)


def drop_misfits(path: Location, lease: Lease) -> None:
    """Remove the shards whose records `missing_shards` names; `lease` keeps this process alone at work there.

    `StorageError` once another process has taken the lease.
    """
    names = files.sizes(path)
    for key in missing_shards(path)[1]:
        _drop(path, key, names, lease.check)


def _fitting(path: Location, description: Mapping[str, Any], ledger: Mapping[str, bytes]) -> set[str]:
    """The shards of the ledger that fit the store's description, with files of the recorded sizes."""
    sizes = files.sizes(path)
    records = {key: files.load_digested(data) for key, data in ledger.items()}
    return {
        key
        for key, record in records.items()
        if record is not None and _belongs(key, record, description) and shard_fault(path, record, sizes) is None
    }


def _drop(path: Location, key: str, names: Iterable[str], check: Callable[[], None]) -> None:
    """Remove a shard, its record last: after a kill on the way, what is left still has a record that doesn't fit."""
    split, _, number = key.rpartition("-")
    chunks = re.compile(rf"{re.escape(folder(split))}\w+/c/{re.escape(number.lstrip('0') or '0')}(/0)+")
    for name in filter(chunks.fullmatch, names):
        emptying.remove(path / name, check)
    for record in (decided.NAME.format(key), f"{key}.json"):
        emptying.remove(path / "ledger" / record, check)


def seal(path: Location) -> dict[str, str]:
    """Check a complete store, and return the hashes for its manifest: sha256 by name.

    They cover every file but the shards', whose hashes are in the ledger. `StorageError` when the shards are not those
    of the description; `InputError` for other damage.
    """
    description, ledger = read_description(path), _ledger(path)
    wrong = (shard_names(description) | ledger.keys()) - _fitting(path, description, ledger)
    if wrong:
        raise StorageError(f"{path}: {', '.join(sorted(wrong))} must be made again; run the same command again")
    covered: dict[str, str] = description["sha256"]
    check_files(path, covered)
    covered["store.json"] = files.sha256_file(path / "store.json")
    covered.update({f"ledger/{key}.json": files.sha256(data) for key, data in ledger.items()})
    return dict(sorted(covered.items()))


def faults(path: Location) -> list[tuple[str, str, str]]:
    """Compare every byte of a store with its records; returns (owner, file, problem) for each file that differs.

    The owner is the name of a shard, or `store`. The manifest of an unsealed store counts as a fault.
    """
    if not (path / "store.json").is_file():  # a damaged store, or something else
        artifact.open_artifact(path, "features", complete=False)
    manifest, description = (_digested(path / name) for name in ("manifest.json", "store.json"))
    sealed = manifest if is_complete(path) else None
    covered: Mapping[str, str] = (sealed or description or {}).get("sha256", {})
    if not covered and manifest is not None:  # a manifest that looks like another store's
        covered = _first_files(path, manifest)
    records, found = _checked_ledger(path, covered)
    if sealed is None:
        found += [("store", "store.json", "is missing or damaged")] * (description is None)
        found.append(("store", "manifest.json", _not_sealed(path, description, records)))
    promised = [(Path(name).stem if name.startswith("ledger/") else "store", name, covered[name]) for name in covered]
    for key, record in records.items():
        promised += [(key, name, entry["sha256"]) for name, entry in record["files"].items()]
    problems = _for_each(path, lambda promise: fault(path / promise[1], promise[2]), promised)
    return found + [(*promise[:2], problem) for promise, problem in zip(promised, problems, strict=True) if problem]


def _first_files(path: Location, manifest: Mapping[str, Any]) -> dict[str, str]:
    """The hashes of the files that can't be made again, from a manifest that looks like another store's.

    Empty if the store has only been begun: then the manifest can't be its own. Beside shards, or a description that may
    be damaged, it can be.
    """
    begun = files.size(path / DESCRIPTION) is None and not files.matching(path / "ledger", "*.json")
    return {} if begun else {name: digest for name, digest in manifest["sha256"].items() if name in MADE_OF}


def _digested(path: Location) -> dict[str, Any] | None:
    """The object of a `dump_digested` file; None when it is missing or damaged."""
    return files.load_digested(files.content(path) or b"")


def _checked_ledger(
    path: Location, covered: Mapping[str, str]
) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str, str]]]:
    """The intact records, and the faults of the damaged ones unless hashes cover them, which `faults` checks."""
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
    """The problem of a manifest that is missing, damaged or of another store."""
    if (path / "manifest.json").is_file():
        return "is damaged" if is_complete(path) else "is of another store"
    needed = set() if description is None else shard_names(description)
    return f"is missing, not sealed: {len(needed - records.keys())} of {len(needed)} shards missing"


def fault(path: Location, digest: str) -> str | None:
    """The problem of a file that should have this sha256; None if it does."""
    size = files.size(path)
    if not size:
        return "is missing" if size is None else "is empty"
    return None if files.sha256_file(path) == digest else "has other bytes than were written"


def forget(path: Location, damaged: Iterable[tuple[str, str]], check: Callable[[], None] = presence.unlimited) -> None:
    """Unseal a store and remove what is damaged, so that extraction writes only that again.

    `damaged`: (owner, file) pairs as from `faults`. A damaged shard is removed as a whole, with its record. `check` is
    that of `emptying.remove`: `Lease.check` of the lease that keeps this process alone at work there.
    """
    emptying.remove(path / "manifest.json", check)
    names = files.sizes(path)
    for shard, name in damaged:
        if shard != "store":
            _drop(path, shard, names, check)
        elif name != "manifest.json":
            emptying.remove(path / name, check)
            emptying.remove(path / "store.json", check)  # written after the other files of the description
