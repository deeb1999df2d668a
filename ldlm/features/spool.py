"""Intermediate files of an extraction: raw states of blocks until they are normalised.

States are gigabytes, written once and read twice. They bypass the page cache where the file system allows it (direct
I/O), since filling the cache costs more processor time than the disk does (benchmarks/LOG.md).
"""

from __future__ import annotations

import errno
import math
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np

from ldlm import files

_PAGE = 4096  # bytes; direct I/O needs addresses, lengths and offsets that are multiples of it
_CHECKSUM = 4  # bytes, at a file's end
_DIRECT = getattr(os, "O_DIRECT", 0)


class Spool:
    """Blocks of float32 states by number, in `folder`. A block is whole or absent. Not for several threads at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._memory = mmap.mmap(-1, _PAGE)

    def path(self, block: int) -> Path:
        """The file of a block."""
        return self.folder / f"states-{block:07d}"

    def blocks(self) -> set[int]:
        """The numbers of the blocks that are spooled."""
        return {int(path.name.partition("-")[2]) for path in files.matching(self.folder, "states-*")}

    def write(self, block: int, states: np.ndarray) -> None:
        """Write a block, with a checksum instead of an fsync, which would cost more."""
        memory = self._aligned(states.nbytes)
        values = np.frombuffer(memory, np.float32, states.size).reshape(states.shape)
        values[:] = states
        memory[-_CHECKSUM:] = _checksum(values)
        path = self.path(block)
        temporary = path.with_name(f".{files.unique()}.{path.name}")
        with files.writing(path):
            _directly(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, lambda file: _write_all(file, memory))
        temporary.replace(path)

    def read(self, block: int, shape: tuple[int, ...]) -> np.ndarray | None:
        """The states that `write` wrote; None if they are missing or damaged."""
        memory = self._aligned(4 * math.prod(shape))
        try:
            found = _directly(self.path(block), os.O_RDONLY, lambda file: _read_all(file, memory))
        except FileNotFoundError:
            return None
        values = np.frombuffer(memory, np.float32, math.prod(shape)).reshape(shape)
        # The length is checked too: a power cut may leave a few zeros, and the checksum of no data is zero.
        whole = found == len(memory) and _checksum(values) == memory[-_CHECKSUM:]
        return values.copy() if whole else None

    def _aligned(self, size: int) -> memoryview:
        """Memory in whole pages for `size` bytes and the checksum."""
        pages = -(-(size + _CHECKSUM) // _PAGE) * _PAGE
        if len(self._memory) < pages:
            self._memory = mmap.mmap(-1, pages)
        return memoryview(self._memory)[:pages]


def _checksum(values: np.ndarray) -> bytes:
    return google_crc32c.value(values).to_bytes(_CHECKSUM, "little")


def _directly(path: Path, flags: int, work: Callable[[int], int]) -> int:
    """The result of `work` on the open file, with direct I/O if the file system supports it."""
    for direct in (_DIRECT, 0):
        try:
            file = os.open(path, flags | os.O_CLOEXEC | direct, 0o666)
            try:
                return work(file)
            finally:
                os.close(file)
        except OSError as error:
            if not direct or error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
    raise AssertionError("unreachable")


def _write_all(file: int, data: memoryview) -> int:
    done = 0
    while done < len(data):
        done += os.write(file, data[done:])
    return done


def _read_all(file: int, into: memoryview) -> int:
    """The number of bytes read; −1 if the file has another length."""
    done = 0
    if os.fstat(file).st_size != len(into):
        return -1
    while done < len(into) and (count := os.preadv(file, [into[done:]], done)):
        done += count
    return done
