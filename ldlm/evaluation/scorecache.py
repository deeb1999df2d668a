"""Cache of a scorer's likelihoods: −ln p of each token, keyed by the tokens of the text; one SQLite file per scorer.

It holds token likelihoods rather than perplexities, so that every protocol can use them. Thanks to SQLite, a process
may be killed while it writes, and several may run at once. The file may be deleted at any time; if it can't be read or
written, evaluation runs without it.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np

from ldlm.location import user_cache

MOST_BYTES = 2**31  # per scorer; beyond that, the oldest third of the entries is deleted
WRITE_EVERY = 5.0  # seconds; a killed process loses at most this much work


def folder() -> Path:
    """Folder of the caches."""
    return user_cache() / "scores"


class ScoreCache:
    """The likelihoods of one scorer, in the file `path`. Use it as a context manager: on exit it writes the rest."""

    def __init__(self, path: Path, note: Callable[[str], None] = lambda line: None) -> None:
        self.path = path
        self._note, self._written = note, time.monotonic()
        self._pending: dict[bytes, bytes] = {}
        self._database: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=30)
            self._database.execute("CREATE TABLE IF NOT EXISTS nll (tokens BLOB PRIMARY KEY, nll BLOB, crc INTEGER)")
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def __enter__(self) -> ScoreCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()
        if self._database is not None:
            self._database.close()

    def get(self, row: np.ndarray) -> np.ndarray | None:
        """−ln p (len − 1,) of a row's tokens; None if the row is not in the cache, or its entry is damaged."""
        data = self._pending.get(_key(row)) or self._read(_key(row))
        nll = np.frombuffer(data, "<f4") if data and len(data) == 4 * (len(row) - 1) else None
        return nll if nll is not None and np.isfinite(nll).all() else None

    def _read(self, key: bytes) -> bytes | None:
        if self._database is None:
            return None
        try:
            found = self._database.execute("SELECT nll, crc FROM nll WHERE tokens = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            self._give_up(error)
            return None
        return found[0] if found and zlib.crc32(found[0]) == found[1] else None

    def put(self, row: np.ndarray, nll: np.ndarray) -> None:
        """Add −ln p of a row's tokens. Rows are written together every few seconds, to hold the lock only briefly."""
        self._pending[_key(row)] = nll.astype("<f4").tobytes()
        if time.monotonic() - self._written > WRITE_EVERY:
            self._write()

    def _write(self) -> None:
        pending, self._pending, self._written = self._pending, {}, time.monotonic()
        if self._database is None or not pending:
            return
        entries = [(key, data, zlib.crc32(data)) for key, data in pending.items()]
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO nll VALUES (?, ?, ?)", entries)
                if self._bytes() > MOST_BYTES:
                    oldest = "SELECT rowid FROM nll ORDER BY rowid LIMIT (SELECT COUNT(*) / 3 FROM nll)"
                    self._database.execute(f"DELETE FROM nll WHERE rowid IN ({oldest})")
        except sqlite3.Error as error:
            self._give_up(error)

    def _bytes(self) -> int:
        """Bytes in use in the file."""
        assert self._database is not None
        names = ("page_count", "freelist_count", "page_size")
        pages, free, page = (self._database.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
        return (pages - free) * page

    def _give_up(self, error: Exception) -> None:
        self._note(f"scores are not cached: {self.path}: {error}; delete it, or use --no-cache")
        self._database = None


def _key(row: np.ndarray) -> bytes:
    return hashlib.sha256(row.astype("<i4").tobytes()).digest()
