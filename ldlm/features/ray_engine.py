"""An extraction whose pieces, blocks and shards are handed out by Ray, over one machine or a cluster.

Pieces of text are Ray tasks of one core each. Then a worker starts on each GPU, loads the encoder once and is given
numbers of blocks and shards, two at a time. Ray places tasks and workers, and starts a lost worker again where there is
room; what it had is given to another, which makes it at once, or after five minutes if its lease was on another
machine. The ledger, not a result of Ray's, says what is done, so the same command resumes an extraction that ended with
its cluster. The bytes are those of one process.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ldlm import config as configs
from ldlm.config import ExtractConfig, LaunchConfig
from ldlm.errors import InputError, StorageError, Unreadable
from ldlm.features import ray_worker
from ldlm.features.extraction import Extraction, Shard
from ldlm.features.ledger import shard_name
from ldlm.features.pieces import Piece
from ldlm.features.shards import CORES
from ldlm.features.shared_work import Tally
from ldlm.location import Location
from ldlm.progress import Progress

LOCAL = "local"
RETRIES = 3  # of an item whose worker was lost: after more losses, the item is probably the reason
AT_ONCE = 2  # items of a worker: one is encoded while the other is written
PATIENCE = 60.0  # seconds without a worker after which the user is told
CONNECT_SECONDS = 10.0
FAULTS: dict[str, type[Exception]] = {
    ray_worker.REFUSED: InputError,
    ray_worker.UNREADABLE: Unreadable,
    ray_worker.GONE: FileNotFoundError,
    ray_worker.FAILED: StorageError,
}
LOCAL_BYTES = 2**27  # of Ray's object store on this machine, which numbers and receipts pass through


def library() -> Any:
    """Ray; `InputError` if it is not installed."""
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError:
        raise InputError(
            "--engine ray needs Ray on every node: pip install 'ldlm[ray]', or -e '.[ray]' in a checkout"
        ) from None


@contextmanager
def connected(config: ExtractConfig, launch: LaunchConfig, progress: Progress) -> Iterator[RayEngine]:
    """The engine on the cluster of `launch`, or on its own Ray on this machine, which ends with the block."""
    ray = library()
    address = launch.address or os.environ.get("RAY_ADDRESS") or LOCAL
    alone = {
        "include_dashboard": False,
        "object_store_memory": LOCAL_BYTES,
        "num_cpus": max(CORES, launch.workers or 1),
    }
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a Ray that is started here
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of a coming change
    _check_reachable(address)
    try:
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        ray.init(address=address, **quiet, **(alone if address == LOCAL else {}))
    except (ConnectionError, ValueError, RuntimeError) as error:  # the last for another version of Ray
        if address == LOCAL:
            raise
        raise _no_cluster(address, error) from None
    try:
        yield RayEngine(ray, config, launch, progress)
    finally:
        ray.shutdown()


@dataclass
class RayEngine:
    """Hands out the items of an extraction. `serve` must come before the methods that do so."""

    ray: Any
    config: ExtractConfig
    launch: LaunchConfig
    progress: Progress
    _workers: list[Any] = field(default_factory=list)
    _live: list[Any] = field(default_factory=list)  # those that have loaded the encoder
    _coming: dict[Any, Any] = field(default_factory=dict)  # the others, by the call that is waited for
    _remind_at: float = math.inf  # of the monotonic clock

    def __post_init__(self) -> None:
        kind, _, number = self.config.device.partition(":")
        self.gpus = 0 if kind == "cpu" else int(self.ray.cluster_resources().get("GPU", 0))
        if number:
            raise InputError(f"--device {self.config.device} is one GPU, and Ray gives each worker its own; use cuda")
        if kind == "cuda" and not self.gpus:
            raise InputError("--device cuda: the Ray cluster has no GPU; use cpu")
        self.device = "cuda" if self.gpus else "cpu"

    def decided(self, out: Location, overwrite: bool) -> ExtractConfig:
        """The configuration, with the precision that `auto` means on a worker if the store is yet to be begun."""
        begun = not overwrite and (out / "config.yaml").is_file()
        if not self.gpus or self.config.precision != "auto" or begun or self.config.kind == "scratch":
            return self.config
        task = self.ray.remote(num_cpus=1, num_gpus=1)(ray_worker.precision)
        return replace(self.config, precision=self._content(self.ray.get(task.remote(self.device)))["precision"])

    def serve(self, extraction: Extraction) -> None:
        """Hand out the items of this extraction, which this process has begun and which needs no encoder here."""
        self.extraction = extraction

    # ------------------------------------------------------------------------------------------------------------------
    # What is handed out

    def pieces(self, wanted: Mapping[int, Piece], tally: Tally[int]) -> None:
        """Have pieces tokenised, as many at a time as the cluster has cores, with as many again waiting."""
        task = self.ray.put(json.dumps({**self.extraction.packing.task(), **self._places()}))
        remote = self.ray.remote(num_cpus=1, max_retries=RETRIES)(ray_worker.tokenize)
        queue, flying = deque(wanted.items()), dict[Any, int]()
        with self._all_ended(flying):
            while queue or flying:
                room = 2 * int(self.ray.cluster_resources().get("CPU", 1)) - len(flying)
                for _ in range(min(len(queue), max(room, 0 if flying else 1))):
                    number, piece = queue.popleft()
                    flying[remote.remote(task, number, json.dumps(piece))] = number
                done, _ = self.ray.wait(list(flying), num_returns=1, timeout=PATIENCE)
                if not done:
                    self.progress.note("no piece of the text came back for a minute; the Ray cluster may have no room")
                for call in done:
                    number = flying.pop(call)
                    receipt = self._receipt(call)  # of the last attempt, if Ray had to try again
                    if receipt is None:
                        raise self._too_often(f"piece {number} of the text")
                    tally.bytes += receipt["bytes"]
                    tally.advance(number, wanted[number].size)

    def blocks(self, blocks: Sequence[int], tally: Tally[int]) -> None:
        """Have the raw states of blocks spooled."""
        named = {block: f"block {block}" for block in blocks}
        self._hand_out(named, lambda worker, block: worker.block.remote(block), tally)

    def describe(self) -> None:
        """Have the statistics merged by a worker, since blocks may have to be encoded again."""
        self._hand_out({0: "the merging of the statistics"}, lambda worker, _: worker.describe.remote(), None)

    def shards(self, shards: Sequence[Shard], tally: Tally[Shard]) -> None:
        """Have shards written."""
        named = {(split, number): f"shard {shard_name(split, number)}" for split, number in shards}
        self._hand_out(named, lambda worker, item: worker.shard.remote(*item), tally)

    # ------------------------------------------------------------------------------------------------------------------
    # Workers

    def _start(self) -> None:
        """Ask Ray for the workers, once; it starts them when it has room."""
        if self._workers:
            return
        nodes = [int(node["Resources"].get("CPU", 0)) for node in self.ray.nodes() if node["Alive"]]
        count = self.launch.workers or self.gpus or max(1, sum(map(bool, nodes)))
        cores = cores_of_one(nodes, count)
        place = {"num_gpus": 1, "num_cpus": 1} if self.gpus else {"num_cpus": cores}
        made = self.ray.remote(
            max_restarts=-1, max_task_retries=0, max_concurrency=AT_ONCE, scheduling_strategy="SPREAD", **place
        )(ray_worker.Worker)
        config = replace(self.extraction.config, device=self.device)
        store = {"fingerprints": self.extraction.fingerprints, "mark": self.extraction.own_seal.mark}
        task = {"config": configs.to_dict(config), **store, **self._places()}
        self._workers = [made.remote(json.dumps(task)) for _ in range(count)]
        for worker in self._workers:
            self._await(worker)
        self._remind_at = time.monotonic() + PATIENCE

    def _places(self) -> dict[str, str]:
        """The store, and the folder in which the command was given."""
        out = self.extraction.out
        return {"out": str(out.absolute() if isinstance(out, Path) else out), "at": os.getcwd()}

    def _await(self, worker: Any) -> None:
        """Wait for a worker to load the encoder; if that kills it, Ray starts it again, but not forever."""
        self._coming[worker.ready.options(max_task_retries=RETRIES).remote()] = worker

    def _hand_out(self, items: Mapping[Any, str], call: Callable[[Any, Any], Any], tally: Tally[Any] | None) -> None:
        """Have workers do every item, with `call(worker, item)`; returns when each has a receipt.

        `items` has the name that errors give each.
        """
        self._start()
        queue, flying, lost = deque(items), dict[Any, tuple[Any, Any]](), Counter[Any]()
        with self._all_ended(flying):
            while queue or flying:
                for worker in self._free(worker for worker, _ in flying.values()):
                    if queue:
                        item = queue.popleft()
                        flying[call(worker, item)] = (worker, item)
                done, _ = self.ray.wait([*flying, *self._coming], num_returns=1, timeout=PATIENCE)
                self._remind()
                for one in done:
                    if one in self._coming:
                        self._welcome(one)
                        continue
                    worker, item = flying.pop(one)
                    receipt = self._receipt(one)
                    if receipt is None:
                        lost[item] += 1
                        if lost[item] > RETRIES:
                            raise self._too_often(items[item])
                        queue.appendleft(item)
                        self._lost(worker)
                    elif tally is not None:
                        tally.bytes += receipt["bytes"]
                        tally.advance(item, tally.sizes[item])

    @contextmanager
    def _all_ended(self, flying: Mapping[Any, Any]) -> Iterator[None]:
        """After an error within the block, cancel calls and wait for those under way, which would go on writing."""
        try:
            yield
        except Exception:
            with suppress(self.ray.exceptions.RayError):
                for call in flying:
                    self.ray.cancel(call)
                if flying:
                    self.ray.wait(list(flying), num_returns=len(flying))
            raise

    def _remind(self) -> None:
        """Tell the user once about workers that are not ready, and again as long as none is."""
        if not self._coming or time.monotonic() < self._remind_at:
            return
        count = f"{len(self._coming)} of {len(self._workers)} workers"
        self.progress.note(
            f"{count} are not ready; waiting for room in the Ray cluster, or for them to load the encoder"
        )
        self._remind_at = math.inf if self._live else time.monotonic() + PATIENCE

    def _free(self, at_work: Iterable[Any]) -> Iterator[Any]:
        """Live workers, each once per item it can take, the least busy first; `at_work` has one per item under way."""
        busy = Counter(map(id, at_work))
        for load in range(AT_ONCE):
            yield from (worker for worker in self._live if busy[id(worker)] <= load)

    def _welcome(self, call: Any) -> None:
        """Count a worker that has loaded the encoder among the live ones, and drop one that never will."""
        worker = self._coming.pop(call)
        if self._receipt(call) is not None:
            self._live.append(worker)
            return
        self.progress.note("a worker was lost each time it loaded the encoder, and is left out")
        if not self._live and not self._coming:
            raise StorageError("every worker of the Ray cluster was lost while it loaded the encoder; see Ray's logs")

    def _lost(self, worker: Any) -> None:
        """Wait for a worker that was lost; it may have had a second item, whose loss reports it again."""
        if worker in self._live:
            self._live.remove(worker)
            self.progress.note("a worker was lost, and others do its part")
            self._await(worker)

    def _receipt(self, call: Any) -> dict[str, Any] | None:
        """The receipt of a call; None if its worker was lost."""
        errors = self.ray.exceptions
        try:
            return self._content(self.ray.get(call))
        except errors.RayTaskError:  # a fault of ours, with its traceback
            raise
        except errors.RayError:
            return None

    def _content(self, receipt: str) -> dict[str, Any]:
        """The content of a receipt. Raises the exception of `FAULTS` for one that reports a fault."""
        found: dict[str, Any] = json.loads(receipt)
        for key, kind in FAULTS.items():
            if key in found:
                raise kind(found[key])
        return found

    def _too_often(self, what: str) -> StorageError:
        return StorageError(
            f"{what} was given to {RETRIES + 1} workers, and all were lost; look at Ray's logs, and run it again"
        )


def cores_of_one(nodes: Sequence[int], count: int) -> int:
    """Cores for each of `count` workers, so that all fit on nodes with these numbers of cores, even on the smallest."""
    nodes = [cores for cores in nodes if cores]
    return max(1, min(nodes, default=1) // -(-count // max(1, len(nodes))))


def _check_reachable(address: str) -> None:
    """`InputError` if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    place = urlsplit(f"//{address.rpartition('://')[2]}")
    try:
        if place.port is not None:
            socket.create_connection((place.hostname or "", place.port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> InputError:
    return InputError(f"--address {address}: no Ray cluster for this command there ({' '.join(str(error).split())})")
