"""Tokenised pieces of text: in files of a folder, or in objects that machines without a common disk share.

In a folder a piece has the file `000000.tokens`, int32: the documents of the piece, each followed by EOS. If some are
held out, it also has `000000.ends`, int64: the number of its tokens up to the end of each document. The files are whole
or absent, and that of the tokens comes last.

In an object store both are named by their content, `000000-HASH.tokens`, and are put before the piece's record,
`records/000000.json`. The record is put only if there is none: of several makers of a piece the first decides all of
it, and what the others put is never mixed with that.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast

import numpy as np

from ldlm import files
from ldlm.errors import StorageError
from ldlm.features.shards import REQUESTS
from ldlm.location import Location, ObjectPath

TOKENS, ENDS = "tokens", "ends"  # endings of files
TYPES: dict[str, type[np.generic]] = {TOKENS: np.int32, ENDS: np.int64}
PART = 2**21  # bytes that are requested from an object at a time: rows are read in order
PARTS = 8  # of them in memory


class Tokenized(NamedTuple):
    """A tokenised piece: the name of its files, without their endings, and how many values they hold."""

    name: str
    tokens: int
    documents: int  # 0 if no ends are kept


class Writing:
    """The files of a piece while they are written, by ending."""

    def __init__(self, into: dict[str, IO[bytes]]) -> None:
        self.into, self.counts = into, dict.fromkeys(TYPES, 0)

    def write(self, ids: np.ndarray, ends: np.ndarray) -> None:
        """Add tokens, and the number of them up to the end of each of their documents."""
        before = self.counts[TOKENS]
        self._add(TOKENS, ids)
        self._add(ENDS, before + ends)

    def _add(self, ending: str, values: np.ndarray) -> None:
        if ending in self.into:
            self.into[ending].write(values.astype(TYPES[ending], copy=False).tobytes())
            self.counts[ending] += len(values)


class Kept(Protocol):
    """Where tokenised pieces are kept, by number."""

    def numbers(self) -> set[int]:
        """The pieces that are there, from one listing."""

    def has(self, number: int) -> bool:
        """Whether a piece is there."""

    def writing(self, number: int) -> AbstractContextManager[Writing]:
        """Keep what is written in the block, durably, unless another process is first."""

    def found(self, numbers: Sequence[int]) -> list[Tokenized]:
        """Pieces that are there; FileNotFoundError for one that is not, `StorageError` if it has lost a file."""

    def path(self, name: str, ending: str = TOKENS) -> Location:
        """The file of a piece by the name that `found` gave."""


# ----------------------------------------------------------------------------------------------------------------------
# Files


class KeptFiles:
    """Pieces as files in a folder. `with_ends` keeps the ends of their documents too."""

    def __init__(self, folder: Path, with_ends: bool) -> None:
        self.folder, self.with_ends = folder, with_ends

    def numbers(self) -> set[int]:
        return {int(path.stem) for path in files.matching(self.folder, f"[0-9]*.{TOKENS}")}

    def has(self, number: int) -> bool:
        return self.path(name_of(number)).exists()

    @contextmanager
    def writing(self, number: int) -> Iterator[Writing]:
        with ExitStack() as made:  # the file of ends comes first: that of the tokens says that the piece is done
            endings = (TOKENS, ENDS) if self.with_ends else (TOKENS,)
            yield Writing(
                {ending: made.enter_context(_written(self.path(name_of(number), ending))) for ending in endings}
            )

    def found(self, numbers: Sequence[int]) -> list[Tokenized]:
        return [Tokenized(name, self._count(name, TOKENS), self._count(name, ENDS)) for name in map(name_of, numbers)]

    def _count(self, name: str, ending: str) -> int:
        if ending == ENDS and not self.with_ends:
            return 0
        return self.path(name, ending).stat().st_size // np.dtype(TYPES[ending]).itemsize

    def path(self, name: str, ending: str = TOKENS) -> Path:
        return self.folder / f"{name}.{ending}"


def name_of(number: int) -> str:
    """The name of a piece in a folder, and of its record among objects."""
    return f"{number:06d}"


@contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which is durable and in place when the block ends; of several, the first one stays."""
    with files.replacing(path, once=True) as temporary, open(temporary, "wb") as file:
        yield file


# ----------------------------------------------------------------------------------------------------------------------
# Objects


class KeptObjects:
    """Pieces as objects below a prefix.

    They are first written to unnamed files in the folder `work`, so that a piece may be larger than memory.
    """

    def __init__(self, folder: ObjectPath, with_ends: bool, work: Path) -> None:
        self.folder, self.with_ends, self.work = folder, with_ends, work

    def _record(self, number: int) -> ObjectPath:
        return self.folder / "records" / f"{name_of(number)}.json"

    def numbers(self) -> set[int]:
        return {int(path.stem) for path in files.matching(self.folder / "records", "*.json")}

    def has(self, number: int) -> bool:
        return self._record(number).is_file()

    @contextmanager
    def writing(self, number: int) -> Iterator[Writing]:
        with files.writing(self.work), ExitStack() as held:
            files.make_folder(self.work)
            endings = (TOKENS, ENDS) if self.with_ends else (TOKENS,)
            made = Writing({one: held.enter_context(tempfile.TemporaryFile(dir=self.work)) for one in endings})
            yield made
            for file in made.into.values():
                file.flush()
            written = held.pop_all()
        with written:
            self._put(number, made)

    def _put(self, number: int, made: Writing) -> None:
        """Put a piece and its record, unless another process has."""
        if self.has(number):  # this process was stopped, and another has meanwhile made it
            return
        name = _content_name(number, made.into.values())
        for ending, file in made.into.items():
            if made.counts[ending]:
                self.path(name, ending).upload(file)
        record = {"name": name, "tokens": made.counts[TOKENS], "documents": made.counts[ENDS]}
        decided = files.write_once(self._record(number), json.dumps(record).encode())
        if json.loads(bytes(decided))["name"] != name:
            for ending in made.into:
                self.path(name, ending).unlink(missing_ok=True)

    def found(self, numbers: Sequence[int]) -> list[Tokenized]:
        sizes = self.folder.sizes()

        def read(number: int) -> Tokenized:
            entry = Tokenized(**json.loads(self._record(number).read_bytes()))
            for ending, count in ((TOKENS, entry.tokens), (ENDS, entry.documents)):
                wanted = count * np.dtype(TYPES[ending]).itemsize
                if sizes.get(f"{entry.name}.{ending}", 0) != wanted:
                    raise StorageError(
                        f"{self._record(number)} names files that are gone; remove it and run the same command again"
                    )
            return entry

        with ThreadPoolExecutor(REQUESTS) as threads:
            return list(threads.map(read, numbers))

    def path(self, name: str, ending: str = TOKENS) -> ObjectPath:
        return self.folder / f"{name}.{ending}"


def _content_name(number: int, written: Iterable[IO[bytes]]) -> str:
    """A name that no piece with other files has."""
    digests = []
    for file in written:
        file.seek(0)
        digests.append(hashlib.file_digest(cast(Any, file), "sha256").hexdigest())
    return f"{name_of(number)}-{files.sha256_json(digests)[:32]}"


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def values(path: Location, start: int, stop: int, count: int) -> np.ndarray:
    """Values start … stop of a file that holds `count`, int32 or int64 by its ending.

    A file is opened each time: there may be more than can be open at once. Some parts of an object stay in memory.
    """
    dtype = np.dtype(TYPES[path.suffix[1:]])
    first, last = start * dtype.itemsize, stop * dtype.itemsize
    if isinstance(path, Path):
        with open(path, "rb") as file:
            return np.frombuffer(os.pread(file.fileno(), last - first, first), dtype)
    begins = range(first // PART * PART, last, PART)
    parts = [_part(path, at, min(PART, count * dtype.itemsize - at)) for at in begins]
    return np.frombuffer(b"".join(parts)[first - begins.start : last - begins.start], dtype)


@lru_cache(maxsize=PARTS)
def _part(path: ObjectPath, start: int, length: int) -> bytes:
    return path.read_range(start, length)
