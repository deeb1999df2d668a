"""Zarr v3 shards as bytes: a shard is encoded by zarr in memory, and decoded here, chunk by chunk, in threads.

zarr's own reader spends most of its time on bookkeeping, and returns zeros for missing data. `ShardedArray` reads the
codec chains that `StoreWriter` writes (little-endian bytes, blosc, zstd or neither, crc32c), checks every checksum, and
raises an error for missing data. The format is zarr's: any other v3 reader can take its place.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs import blosc, zstd

from ldlm.errors import InputError, StorageError, Unreadable
from ldlm.location import Location, ObjectPath

CHUNK_ROWS = 16
SPLITS = ("train", "validation")
_ABSENT = 2**64 - 1  # offset and length of a chunk that was never written
_CHECKSUM = 4  # bytes
CORES = len(os.sched_getaffinity(0))
REQUESTS = 16  # that one process has in flight to an object store
# Chunks of an object that lie near each other come in one request, since a small one takes only the latency.
TOGETHER_BYTES, NEAR_BYTES = 2**22, 2**16  # at most in one request, and between two of its chunks
TRY_AGAIN = "see to the disk or the mount, and run the same command again"  # where the system could not read
Work = Callable[[], object]
# (data, array to fill) → that array. blosc runs in the thread that calls it, unless that is the main one.
DECOMPRESS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {"blosc": blosc.decompress, "zstd": zstd.decompress}


# ----------------------------------------------------------------------------------------------------------------------
# Writing


def zarr_store(path: Location) -> Any:
    """The store object from which zarr opens a group for reading."""
    if isinstance(path, Path):
        return path
    from zarr.storage import ObjectStore

    return ObjectStore(path.root.below(path.key), read_only=True)


def encoded(arrays: Mapping[str, Any], build: Callable[[Any], None]) -> dict[str, memoryview]:
    """The files of a Zarr group as bytes, by name. `build` creates its arrays, and `arrays` are written to it.

    `arrays`: path of an array → (first row, rows). Without `arrays`, the files are only the metadata.
    """
    import zarr
    from zarr.storage import MemoryStore

    buffers: dict[str, Any] = {}
    group: Any = zarr.open_group(MemoryStore(buffers), mode="w", zarr_format=3)
    build(group)
    every_chunk: Any = {"write_empty_chunks": True}  # zarr forgets it when it opens an array
    for name, (start, rows) in arrays.items():
        array = group[name].with_config(every_chunk)
        array[start : start + len(rows)] = rows
    return {name: memoryview(buffer.as_numpy_array()) for name, buffer in sorted(buffers.items())}


# ----------------------------------------------------------------------------------------------------------------------
# Reading


class ShardedArray:
    """Reads rows of an array whose shards span all axes but the first. `InputError` for damage, never zeros.

    `sizes` are the bytes of its shards, by their names below the array's folder, from the ledger.
    """

    def __init__(self, path: Location, metadata: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        self.path, self.sizes = path, sizes
        self.shape = tuple(metadata["shape"])
        self.dtype = np.dtype(metadata["data_type"])
        sharding = metadata["codecs"][0]["configuration"]
        self.chunk = tuple(sharding["chunk_shape"])
        names = [codec["name"] for codec in sharding["codecs"]]
        self._decompress = next((DECOMPRESS[name] for name in names if name in DECOMPRESS), None)
        shard = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        self.grid = tuple(-(-extent // chunk) for extent, chunk in zip(shard, self.chunk, strict=True))
        self._indices: dict[int, np.ndarray] = {}

    def read(self, rows: np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
        """Rows of this array, in the order given: (rows, …), in `into` if it is given, as the function `read` does."""
        return read({"": self}, rows, None if into is None else {"": into})[""]

    @property
    def threads(self) -> int:
        """How many threads read it at once: as many as there are cores or, from an object store, requests."""
        return REQUESTS if isinstance(self.path, ObjectPath) else CORES

    def empty(self, rows: int) -> np.ndarray:
        """Memory for so many rows: (rows, …)."""
        return np.empty((rows, *self.shape[1:]), self.dtype)

    def indexing(self, rows: np.ndarray) -> Iterator[Work]:
        """The work after which the indices of all shards of these rows are known."""
        shards = np.unique(rows // (self.chunk[0] * self.grid[0])).tolist()
        return (partial(self._index, shard) for shard in shards if shard not in self._indices)

    def filling(self, rows: np.ndarray, out: np.ndarray) -> Iterator[Work]:
        """The work after which `out` has the rows; the indices must be known."""
        for shard, chunks in self._chunks(rows).items():
            for near in self._requests(chunks):
                yield partial(self._fill, shard, near, out)

    def _chunks(self, rows: np.ndarray) -> dict[int, list[_Chunk]]:
        """The chunks that rows touch, by shard."""
        chunk_of, within = np.divmod(rows, self.chunk[0])
        by_chunk = np.argsort(chunk_of, kind="stable")
        chunks, starts = np.unique(chunk_of[by_chunk], return_index=True)
        found: dict[int, list[_Chunk]] = {}
        for number, places in zip(chunks.tolist(), np.split(by_chunk, starts)[1:], strict=True):
            shard, row_of_grid = divmod(number, self.grid[0])
            for cell in np.ndindex(*self.grid[1:]):
                offset, length = map(int, self._indices[shard][row_of_grid, *cell])
                if offset == _ABSENT:
                    path = self._shard_path(shard)
                    raise InputError(f"{path} lacks a chunk; run `ldlm features repair` on the store")
                found.setdefault(shard, []).append(_Chunk(offset, offset + length, cell, within[places], places))
        return found

    def _requests(self, chunks: list[_Chunk]) -> list[list[_Chunk]]:
        """Chunks of a shard, grouped by the request that fetches them; from a disk each is read alone."""
        if isinstance(self.path, Path):
            return [[chunk] for chunk in chunks]
        together: list[list[_Chunk]] = []
        for chunk in sorted(chunks, key=lambda chunk: chunk.offset):
            before = together[-1] if together else []
            near = before and chunk.offset - before[-1].end <= NEAR_BYTES
            if near and chunk.end - before[0].offset <= TOGETHER_BYTES:
                before.append(chunk)
            else:
                together.append([chunk])
        return together

    def _shard_path(self, shard: int) -> Location:
        return self.path / self._shard_name(shard)

    def _shard_name(self, shard: int) -> str:
        return "/".join(["c", str(shard), *["0"] * (len(self.shape) - 1)])

    def _index(self, shard: int) -> None:
        """Read the (offset, length) of each chunk of a shard, uint64 (grid…, 2), from the shard's end."""
        size = int(np.prod(self.grid)) * 16
        data = _checked(self._read(shard, -size - _CHECKSUM, size + _CHECKSUM), self._shard_path(shard))
        self._indices[shard] = np.frombuffer(data, "<u8").reshape(*self.grid, 2)

    def _read(self, shard: int, start: int, length: int) -> np.ndarray:
        """Part of a shard as bytes, whose slices are not copies; a negative start counts from the end.

        A shard on a disk is opened each time: a window may span more shards than a process may have open files.
        """
        path = self._shard_path(shard)
        if isinstance(path, ObjectPath):
            data = _read_object(path, self.sizes[self._shard_name(shard)], start, length)
        else:
            data = _read_file(path, start, length)
        if len(data) != length:
            raise InputError(f"{path} is damaged: it ends too early; run `ldlm features repair` on the store")
        return np.frombuffer(data, np.uint8)

    def _fill(self, shard: int, chunks: list[_Chunk], out: np.ndarray) -> None:
        """Read chunks of a shard in one go, and copy their rows to `out`."""
        start, path = chunks[0].offset, self._shard_path(shard)
        data = self._read(shard, start, chunks[-1].end - start)
        for chunk in chunks:
            found = self._decode(_checked(data[chunk.offset - start : chunk.end - start], path))
            corner = [i * extent for i, extent in zip(chunk.cell, self.chunk[1:], strict=True)]
            window = tuple(slice(at, at + extent) for at, extent in zip(corner, self.chunk[1:], strict=True))
            target = out[:, *window]  # smaller than a chunk at the array's end
            found = found[:, *map(slice, target.shape[1:])]
            for row_out, row in zip(chunk.places.tolist(), chunk.within.tolist(), strict=True):
                target[row_out] = found[row]

    def _decode(self, data: np.ndarray) -> np.ndarray:
        plain = data if self._decompress is None else self._decompress(data, np.empty(self.chunk, self.dtype))
        return np.frombuffer(plain, self.dtype.newbyteorder("<")).reshape(self.chunk)


class _Chunk(NamedTuple):
    """A chunk of a shard, and the rows of it that are wanted."""

    offset: int  # in the shard
    end: int  # after its checksum
    cell: tuple[int, ...]  # its place in the grid, except for the rows
    within: np.ndarray  # the rows, counted within the chunk
    places: np.ndarray  # their places among the rows that are read


def read(
    arrays: Mapping[str, ShardedArray], rows: np.ndarray, into: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Rows of the arrays of a store, in the order given: name → (rows, …). Each chunk that they touch is read once.

    `into` is memory for at least as many rows of each; reusing it saves the kernel from handing out new pages.
    """
    out = {key: array.empty(len(rows)) if into is None else into[key][: len(rows)] for key, array in arrays.items()}
    threads = max(array.threads for array in arrays.values())
    # An index tells where a shard's chunks are; on an object store that is a request of its own.
    _at_once((work for array in arrays.values() for work in array.indexing(rows)), threads)
    _at_once((work for key, array in arrays.items() for work in array.filling(rows, out[key])), threads)
    return out


def _at_once(works: Iterable[Work], threads: int) -> None:
    """Do all of the work, in `threads` threads."""
    left = deque(works)

    def do() -> None:
        while True:
            try:
                work = left.popleft()  # the next one that no thread has taken
            except IndexError:
                return
            work()

    doing = [_threads(threads).submit(do) for _ in range(min(threads, len(left)))]
    wait(doing)  # for all, even after an error: they fill memory of the caller, who may use it again
    for future in doing:
        future.result()


def _checked(data: np.ndarray, path: Location) -> np.ndarray:
    """The data without the crc32c at its end, against which it is checked; `InputError` when it is damaged."""
    found, checksum = data[:-_CHECKSUM], data[-_CHECKSUM:]
    if len(checksum) != _CHECKSUM or google_crc32c.value(found) != struct.unpack("<I", checksum.tobytes())[0]:
        raise InputError(f"{path} is damaged: a checksum is wrong; run `ldlm features repair` on the store")
    return found


def _read_object(path: ObjectPath, size: int, start: int, length: int) -> bytes:
    """Part of a shard that was written with `size` bytes. A service answers with an error if it has fewer."""
    try:
        try:
            return path.read_range(start + size if start < 0 else start, length)
        except StorageError:
            if (found := path.size()) == size:
                raise
            raise InputError(
                f"{path} is damaged: it has {found:,} bytes, and {size:,} were written; run `ldlm features repair` on "
                f"the store"
            ) from None
    except FileNotFoundError:
        raise InputError(f"{path} is missing; run `ldlm features repair` on the store") from None


def _read_file(path: Path, start: int, length: int) -> bytes:
    """Part of a shard on disk, with pread: a memory map would crash the process if the file shrank."""
    try:
        with open(path, "rb", buffering=0) as file:
            if start < 0:
                start = max(0, start + os.fstat(file.fileno()).st_size)
            return os.pread(file.fileno(), length, start)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; run `ldlm features repair` on the store") from None
    except OSError as error:
        raise Unreadable(f"{path} can't be read ({error.strerror}); {TRY_AGAIN}") from None


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="ldlm-decode")


os.register_at_fork(after_in_child=_threads.cache_clear)  # threads don't survive a fork
