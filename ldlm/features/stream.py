"""The order in which training sees rows, and the batches of a store in that order.

`RowOrder` maps a position in an endless sequence to a row, as a pure function of (seed, position). It permutes blocks
of neighbouring rows, and shuffles the rows within a window of blocks: reading is nearly sequential, and the order is
nearly random, the more so the larger the window (SPEC 13.14; `python -m benchmarks window`). Its whole state is one
integer, the number of rows seen. It doesn't depend on the number of processes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from ldlm.errors import InputError
from ldlm.features.batch import READ_AHEAD, Batch
from ldlm.features.shards import CHUNK_ROWS
from ldlm.features.store import Split
from ldlm.runtime import ALONE, LoneThread, World

BLOCK_ROWS = 16  # neighbouring rows; independent of the chunk size, so that the order survives a change of that
WINDOW_BYTES, WINDOW_BATCHES = 2**31, 4


def default_window(split: Split, batch_size: int) -> int:
    """Number of rows in the window in which a run's rows are shuffled, if its settings name none.

    2 GiB of rows as the store holds them, uncompressed, but at least four batches and at most all rows. It depends on
    the store and the batch, never on the machine. Two windows are in memory.
    """
    rows = max(WINDOW_BYTES // split.row_bytes // BLOCK_ROWS * BLOCK_ROWS, WINDOW_BATCHES * batch_size)
    return min(rows, split.rows)


class RowOrder:
    """Position → row, for `rows` rows; position // rows is the epoch. A window has `window` rows, in whole blocks."""

    def __init__(self, rows: int, seed: int, window: int) -> None:
        self.rows, self.seed, self.window_blocks = rows, seed, -(-window // BLOCK_ROWS)
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None
        self._window: tuple[int, int, np.ndarray] | None = None

    def _blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's permutation of blocks, and the position at which each window starts (with the end)."""
        known = self._epoch  # read once: the reading thread and the caller may be in different epochs
        if known is None or known[0] != epoch:
            count = -(-self.rows // BLOCK_ROWS)
            blocks = np.random.default_rng([self.seed, epoch]).permutation(count)
            sizes = np.minimum(BLOCK_ROWS, self.rows - blocks * BLOCK_ROWS)
            ends = np.concatenate([[0], np.cumsum(sizes)])
            starts = np.append(ends[: count : self.window_blocks], self.rows)
            self._epoch = known = (epoch, blocks, starts)
        return known[1], known[2]

    def window_of(self, position: int) -> tuple[int, int, int]:
        """(epoch, window, offset within the window) of a position."""
        epoch, index = divmod(position, self.rows)
        starts = self._blocks(epoch)[1]
        window = int(np.searchsorted(starts, index, side="right")) - 1
        return epoch, window, index - int(starts[window])

    def window_rows(self, epoch: int, window: int) -> np.ndarray:
        """The rows of a window in the order in which they are seen, int64."""
        known = self._window  # read once, as above
        if known is None or known[:2] != (epoch, window):
            self._window = known = (epoch, window, self._permuted(epoch, window))
        return known[2]

    def _permuted(self, epoch: int, window: int) -> np.ndarray:
        blocks = self._blocks(epoch)[0]
        chosen = blocks[window * self.window_blocks : (window + 1) * self.window_blocks]
        rows = (chosen[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).ravel()
        rows = rows[rows < self.rows]
        return np.random.default_rng([self.seed, epoch, window + 1]).permutation(rows)

    def span(self, epoch: int, window: int) -> tuple[int, int]:
        """The positions of a window: the first, and the one after the last."""
        starts = self._blocks(epoch)[1]
        return epoch * self.rows + int(starts[window]), epoch * self.rows + int(starts[window + 1])

    def after(self, epoch: int, window: int) -> tuple[int, int]:
        """The (epoch, window) that follows a window."""
        last = window + 2 == len(self._blocks(epoch)[1])
        return (epoch + 1, 0) if last else (epoch, window + 1)

    @property
    def largest_window(self) -> int:
        """The number of rows of the largest window."""
        return min(self.window_blocks * BLOCK_ROWS, self.rows)

    def pieces(self, position: int, count: int) -> Iterator[tuple[int, int, int, int]]:
        """`count` positions as (epoch, window, start, stop) pieces of windows."""
        end = position + count
        while position < end:
            epoch, window, start = self.window_of(position)
            first, last = self.span(epoch, window)
            stop = min(last - first, start + end - position)
            yield epoch, window, start, stop
            position += stop - start

    def rows_at(self, position: int, count: int) -> np.ndarray:
        """The rows at `count` positions, int64."""
        return np.concatenate(
            [self.window_rows(e, w)[start:stop] for e, w, start, stop in self.pieces(position, count)]
        )


def places(rows: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The indices in a batch of `rows` that process `rank` of `world` takes: neighbours, so that few chunks are read.

    All processes together take each index once; the batch is the same whatever their number.
    """
    by_chunk = np.argsort(rows // CHUNK_ROWS, kind="stable")
    return np.sort(by_chunk[rank * len(rows) // world : (rank + 1) * len(rows) // world])


Window = tuple[int, int]  # epoch, number within it


class Loaded(NamedTuple):
    """A process's rows of a window."""

    positions: np.ndarray  # of the rows, ascending
    parts: dict[str, np.ndarray]  # array name → the rows as stored, in that order


class Stream:
    """Batches of a split from `position` on, read by a background thread. Use as a context manager.

    Each of several processes gets its share of the rows of each batch.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        world: World = ALONE,
        shuffle_rows: int | None = None,
    ) -> None:
        """`shuffle_rows`: the number of rows in the window in which they are shuffled; None for `default_window`."""
        if split.rows < batch_size:
            raise InputError(
                f"{split.path} has {split.rows} {split.name} rows, too few for one batch of {batch_size}; lower "
                f"batch_size or extract more text"
            )
        self.split, self.batch_size, self.device, self.world = split, batch_size, device, world
        self.order = RowOrder(split.rows, seed, shuffle_rows or default_window(split, batch_size))
        self.position = 0
        self._as_stored = device.type == "cpu" and "float32" in split.codec.dtypes.values()
        self._queue: queue.Queue[Any] = queue.Queue(READ_AHEAD)
        self._stop = threading.Event()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="ldlm-window")
        self._memory = [split.memory(self.order.largest_window) for _ in range(2)]
        self._current: tuple[Window, Loaded] | None = None
        self._ahead: tuple[Window, Future[Loaded]] | None = None
        self._thread = LoneThread(target=self._fill, name="ldlm-stream", daemon=True)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._loader.shutdown()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.complete(self.read())

    def read(self) -> Batch:
        """The next batch as it is read: without states if an encoder makes them."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._queue.put(item)  # for the next call
            raise item
        return item

    def complete(self, batch: Batch) -> Batch:
        """Add the states that an encoder makes, if one does: this is part of the step, not of reading."""
        return batch if self.split.encode is None else batch._replace(hidden_BLD=self.split.encode(batch.tokens_BL))

    def _fill(self) -> None:
        """The reading thread. Its errors are raised where the batches are consumed."""
        try:
            position = self.position
            while not self._stop.is_set():
                self._put(self._batch(position))
                position += self.batch_size
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _batch(self, position: int) -> Batch:
        """The batch at `position`, moved to the device and decoded there."""
        parts = self._gather(position)
        tokens_BL = torch.from_numpy(parts.pop("tokens")).to(self.device, torch.int64)
        index_B = torch.from_numpy(parts.pop("position") - position)
        hidden_BLD = None if self.split.encode is not None else self.split.states(parts, tokens_BL)
        return Batch(hidden_BLD, tokens_BL, index_B, position)

    def _gather(self, position: int) -> dict[str, np.ndarray]:
        """This process's rows of the batch at `position`, as stored, with their positions."""
        windows = [piece[:2] for piece in self.order.pieces(position, self.batch_size)]
        # A window's memory is reused once the next window is the current one. A batch within one window is converted
        # before that, without a copy. float32 needs no conversion on a CPU, and so it needs the copy.
        keep = len(windows) > 1 or self._as_stored
        pieces: dict[str, list[np.ndarray]] = {}
        for window in windows:
            positions, parts = self._window(*window)
            first, last = np.searchsorted(positions, [position, position + self.batch_size])
            for name, values in {"position": positions, **parts}.items():
                pieces.setdefault(name, []).append(np.array(values[first:last], copy=keep or None))
        return {name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in pieces.items()}

    def _positions(self, epoch: int, window: int) -> np.ndarray:
        """The positions within a window whose rows this process takes, ascending."""
        first, last = self.order.span(epoch, window)
        if self.world.size == 1:
            return np.arange(first, last)
        size, found = self.batch_size, []
        for start in range(first - first % size, last, size):
            found.append(start + places(self.order.rows_at(start, size), self.world.rank, self.world.size))
        positions = np.concatenate(found)
        return positions[(first <= positions) & (positions < last)]

    def _window(self, epoch: int, window: int) -> Loaded:
        """This process's rows of a window. The next window is read meanwhile."""
        if self._current is None or self._current[0] != (epoch, window):
            expected, future = self._ahead or ((epoch, window), self._load(epoch, window))
            assert expected == (epoch, window)
            self._current = (expected, future.result())
            following = self.order.after(epoch, window)
            self._ahead = (following, self._load(*following))
        return self._current[1]

    def _load(self, epoch: int, window: int) -> Future[Loaded]:
        """Start reading a window, into the memory of the window before the current one."""
        self._memory.reverse()
        positions = self._positions(epoch, window)
        rows = self.order.window_rows(epoch, window)[positions - self.order.span(epoch, window)[0]]
        return self._loader.submit(self._loaded, positions, rows, self._memory[0])

    def _loaded(self, positions: np.ndarray, rows: np.ndarray, into: dict[str, np.ndarray]) -> Loaded:
        """A window; `InputError` also if another store has taken the place of this one."""
        try:
            return Loaded(positions, self.split.load(rows, into))
        finally:  # also after an error, of which the other store may be the reason
            self.split.check_unreplaced()
