"""The ledger of a feature store: what was written, whether it still stands, and its seal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ldlm import artifact, files
from ldlm.errors import InputError, StorageError
from ldlm.features import shards
from ldlm.location import Location, ObjectPath

MADE_OF = ("artifact.json", "config.yaml")  # say what a store is made of, and can't be made again
COPY = "restore it from a copy, or extract again with --overwrite"
_CHUNKS = re.compile(r"features\.zarr/(\w+/)?\w+/c/\d+(/0)+")  # names of shards' files, not of mean's and std's
Item = TypeVar("Item")
Result = TypeVar("Result")


def folder(split: str) -> str:
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
    check_files(path, described(path)["sha256"])


def expected(description: Mapping[str, Any]) -> set[str]:
    """The names of the shards that make up a store."""
    size, splits = description["shard_rows"], description["rows"].items()
    return {shard_name(split, shard) for split, rows in splits for shard in range(-(-rows // size))}


def shard_name(split: str, shard: int) -> str:
    """What a shard is called, and its record in the ledger."""
    return f"{split}-{shard:05d}"


def check_files(path: Location, covered: Mapping[str, str]) -> dict[str, bytes]:
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


def sealed_records(covered: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """The ledger of a sealed store: shard name → record, in order."""
    return {Path(name).stem: json.loads(data) for name, data in covered.items() if name.startswith("ledger/")}


def records_of(path: Location, description: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
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


def shard_fault(path: Location, record: Mapping[str, Any], sizes: Mapping[str, int]) -> str | None:
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
        if record is not None and _belongs(key, record, description) and shard_fault(path, record, sizes) is None
    }


def _drop(path: Location, key: str, names: Iterable[str]) -> None:
    """Remove a shard, its record last: in an object store, a file without a record would be taken for a good one."""
    split, _, number = key.rpartition("-")
    chunks = re.compile(rf"{re.escape(folder(split))}\w+/c/{re.escape(number.lstrip('0') or '0')}(/0)+")
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
    check_files(path, covered)
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
