"""Zarr v3 shards as bytes: a shard is encoded by zarr in memory, and decoded here, chunk by chunk, in threads.

zarr's own reader spends most of its time on bookkeeping, and returns zeros for missing data. `ShardedArray` reads the
two codec chains that `StoreWriter` writes (little-endian bytes, zstd or not, crc32c), checks every checksum, and raises
an error for missing data. The format is zarr's: any other v3 reader can take its place.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import zstd

from ldlm.errors import InputError, StorageError
from ldlm.location import Location, ObjectPath

CHUNK_ROWS = 16
SPLITS = ("train", "validation")
_ABSENT = 2**64 - 1  # offset and length of a chunk that was never written
_CHECKSUM = 4  # bytes
CORES = len(os.sched_getaffinity(0))
REQUESTS = 16  # in flight to an object store, by a process
# (start, length) -> (data, the checksum after it); a negative start counts from the end
Read = Callable[[int, int], tuple[bytes, bytes]]


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

    `arrays`: path of an array → (first row, rows). Without `arrays`, the files are the metadata alone.
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
        self.compressed = any(codec["name"] == "zstd" for codec in sharding["codecs"])
        shard = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        self.grid = tuple(-(-extent // chunk) for extent, chunk in zip(shard, self.chunk, strict=True))
        self._indices: dict[int, np.ndarray] = {}

    def read(self, rows: np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
        """Rows in the order given: (rows, …). Each chunk that they touch is read once.

        `into` is memory for at least as many rows; reusing it saves the kernel from giving out new pages each time.
        """
        out = np.empty((len(rows), *self.shape[1:]), self.dtype) if into is None else into[: len(rows)]
        chunk_of, within = np.divmod(rows, self.chunk[0])
        by_chunk = np.argsort(chunk_of, kind="stable")
        chunks, starts = np.unique(chunk_of[by_chunk], return_index=True)
        shards, rows_of_grid = np.divmod(chunks, self.grid[0])
        with ExitStack() as opened:
            reads = {shard: opened.enter_context(self._reader(shard)) for shard in map(int, set(shards))}
            # A shard's index tells where its chunks are; on an object store that is a request of its own.
            self._at_once(self._index, [(shard, read) for shard, read in reads.items() if shard not in self._indices])
            rows_of_chunks = zip(shards.tolist(), rows_of_grid.tolist(), np.split(by_chunk, starts[1:]), strict=True)
            cells = list(np.ndindex(*self.grid[1:]))

            def decode(shard: int, row_of_grid: int, places: np.ndarray, cell: tuple[int, ...]) -> None:
                place = (row_of_grid, *cell)
                self._decode_chunk(reads[shard], shard, place, within[places], out, places)

            self._at_once(decode, [(*row_of_chunks, cell) for row_of_chunks in rows_of_chunks for cell in cells])
        return out

    def _at_once(self, work: Callable[..., object], items: Sequence[tuple[Any, ...]]) -> None:
        """Do `work` on each item, from as many threads as there are cores or, on an object store, requests."""
        left = deque(items)

        def do() -> None:
            while True:
                try:
                    item = left.popleft()  # the next one that no thread has taken
                except IndexError:
                    return
                work(*item)

        count = REQUESTS if isinstance(self.path, ObjectPath) else CORES
        doing = [_threads(count).submit(do) for _ in range(min(count, len(items)))]
        wait(doing)  # for all of them, even after an error: the files are closed next
        for future in doing:
            future.result()

    def _shard_path(self, shard: int) -> Location:
        return self.path / self._shard_name(shard)

    def _shard_name(self, shard: int) -> str:
        return "/".join(["c", str(shard), *["0"] * (len(self.shape) - 1)])

    def _reader(self, shard: int) -> AbstractContextManager[Read]:
        path = self._shard_path(shard)
        if isinstance(path, ObjectPath):
            return nullcontext(partial(_read_object, path, self.sizes[self._shard_name(shard)]))
        return _reader(path)

    def _index(self, shard: int, read: Read) -> np.ndarray:
        """(offset, length) of each chunk of a shard: uint64 (grid…, 2), from the shard's end."""
        if shard not in self._indices:
            size = int(np.prod(self.grid)) * 16
            data = _checked(read(-size - _CHECKSUM, size), self._shard_path(shard))
            self._indices[shard] = np.frombuffer(data, "<u8").reshape(*self.grid, 2)
        return self._indices[shard]

    def _decode_chunk(
        self, read: Read, shard: int, place: tuple[int, ...], within: np.ndarray, out: np.ndarray, places: np.ndarray
    ) -> None:
        """Decode the chunk at a place of the grid, and copy its rows `within` to `places` in `out`."""
        corner = [i * chunk for i, chunk in zip(place[1:], self.chunk[1:], strict=True)]
        window = tuple(slice(at, at + chunk) for at, chunk in zip(corner, self.chunk[1:], strict=True))
        target, path = out[:, *window], self._shard_path(shard)  # smaller than a chunk at the array's end
        offset, length = map(int, self._index(shard, read)[place])
        if offset == _ABSENT:
            raise InputError(f"{path} lacks a chunk; run `ldlm features repair` on the store")
        chunk = self._decode(_checked(read(offset, length - _CHECKSUM), path))
        chunk = chunk[:, *map(slice, target.shape[1:])]
        for row_out, row in zip(places.tolist(), within.tolist(), strict=True):
            target[row_out] = chunk[row]

    def _decode(self, data: bytes) -> np.ndarray:
        plain = zstd.decompress(data, np.empty(self.chunk, self.dtype)) if self.compressed else data
        return np.frombuffer(plain, self.dtype.newbyteorder("<")).reshape(self.chunk)


def _checked(read: tuple[bytes, bytes], path: Location) -> bytes:
    """The data, checked against its crc32c; `InputError` when it is damaged."""
    data, checksum = read
    if len(checksum) != _CHECKSUM or google_crc32c.value(data) != struct.unpack("<I", checksum)[0]:
        raise InputError(f"{path} is damaged: a checksum is wrong; run `ldlm features repair` on the store")
    return data


@contextmanager
def _reader(path: Path) -> Iterator[Read]:
    """A function that reads parts of a shard on disk, from any thread.

    It uses pread: a memory map would crash the process if the file shrank.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            yield partial(_read_file, file.fileno(), os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; run `ldlm features repair` on the store") from None


def _read_object(path: ObjectPath, size: int, start: int, length: int) -> tuple[bytes, bytes]:
    """Part of a shard that was written with so many bytes. A service answers with an error where it has fewer."""
    try:
        try:
            data = path.read_range(start + size if start < 0 else start, length + _CHECKSUM)
        except StorageError:
            if (found := path.size()) == size:
                raise
            raise InputError(
                f"{path} is damaged: it has {found:,} bytes, and {size:,} were written; run `ldlm features repair` on "
                f"the store"
            ) from None
    except FileNotFoundError:
        raise InputError(f"{path} is missing; run `ldlm features repair` on the store") from None
    return data[:length], data[length:]


def _read_file(descriptor: int, size: int, start: int, length: int) -> tuple[bytes, bytes]:
    start, length = max(0, start + size) if start < 0 else start, max(0, length)
    # Two reads: cutting the checksum off one would copy the data.
    return os.pread(descriptor, length, start), os.pread(descriptor, _CHECKSUM, start + length)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="ldlm-decode")


os.register_at_fork(after_in_child=_threads.cache_clear)  # threads don't survive a fork
