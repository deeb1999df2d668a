"""What Ray runs on the nodes of a cluster for `ray_engine`: pieces as tasks, blocks and shards in workers.

Arguments and results are numbers and JSON. Where bad input or the storage is at fault, the result says so: an exception
would come back pickled and wrapped.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ldlm.errors import InputError, StorageError
from ldlm.features.helpers import OWN_THREADS
from ldlm.features.helping import packing_of
from ldlm.features.packing import Packing, as_piece
from ldlm.features.shared_work import Tally
from ldlm.progress import SILENT

if TYPE_CHECKING:
    from ldlm.features.extraction import Extraction

REFUSED, FAILED = "refused", "failed"  # keys of a receipt that has nothing else


def _receipt(work: Callable[[], Mapping[str, Any]]) -> str:
    """What `work` returns, as JSON; where the input or the storage is at fault, a message under REFUSED or FAILED."""
    where = f"on {socket.gethostname()}: "
    try:
        return json.dumps(work())
    except InputError as error:
        return json.dumps({REFUSED: f"{where}{error}"})
    except (StorageError, OSError) as error:
        return json.dumps({FAILED: f"{where}{error}"})


def _enter(folder: str) -> None:
    """Go to the folder in which the command was given, from which its paths may be relative."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(
            f"{folder}, in which the command was given, can't be entered ({error.strerror}); give it in a folder that "
            f"all nodes have"
        ) from None


def precision(device: str) -> str:
    """A receipt with the `precision` that `auto` is on a device of this node."""

    def work() -> Mapping[str, Any]:
        from ldlm import compute, runtime

        return {"precision": compute.precision_on("auto", runtime.device(device))}

    return _receipt(work)


def tokenize(task: str, number: int, piece: str) -> str:
    """Tokenise a piece; a receipt with the `bytes` of its tokens. `task` is `helpers.as_json`'s, and `folder`'s."""

    def work() -> Mapping[str, Any]:
        packing = _packing(task)
        wanted = as_piece(json.loads(piece))
        packing.share_pieces({number: wanted}, Tally(SILENT, "", {number: wanted.size}, set))
        return {"bytes": packing.path(number).stat().st_size}

    return _receipt(work)


@lru_cache(maxsize=1)
def _packing(task: str) -> Packing:
    os.environ[OWN_THREADS] = "false"  # a task has one core
    read = json.loads(task)
    _enter(read["at"])
    return packing_of(read)


class Worker:
    """A process with the encoder, loaded once. Ray runs up to two of its methods at a time, in threads.

    One of two shards is encoded while the other is compressed and written.
    """

    def __init__(self, task: str) -> None:
        self.task = json.loads(task)
        self.turn = Lock()  # to encode

    @cached_property
    def extraction(self) -> Extraction:
        """The extraction that this worker has joined, with its text packed."""
        from ldlm import config as configs
        from ldlm.features.begin import joined
        from ldlm.location import locate

        _enter(self.task["at"])
        place = self.task["out"]
        out = locate(place) if "://" in place else Path(place)
        config = configs.from_dict(configs.ExtractConfig, self.task["config"])
        made = joined(config, out, self.task["fingerprints"])
        made.pack()
        return made

    def ready(self) -> str:
        """Load the encoder and open the rows; a receipt with the `node`."""

        def work() -> Mapping[str, Any]:
            with self.turn:
                return {"node": socket.gethostname(), "out": str(self.extraction.out)}

        return _receipt(work)

    def block(self, block: int) -> str:
        """Spool the raw states of a block; a receipt with their `bytes`."""

        def work() -> Mapping[str, Any]:
            tally = Tally(SILENT, "", {block: 0}, set)
            with self.turn:
                self.extraction.share_blocks([block], tally)
            return {"bytes": tally.bytes}

        return _receipt(work)

    def describe(self) -> str:
        """Merge the statistics and write the store's description."""

        def work() -> Mapping[str, Any]:
            with self.turn:
                self.extraction.describe()
            return {}

        return _receipt(work)

    def shard(self, split: str, shard: int) -> str:
        """Write a shard; a receipt with its `bytes`, 0 where another process has done it."""

        def work() -> Mapping[str, Any]:
            item = (split, shard)
            tally = Tally(SILENT, "", {item: 0}, set)
            try:
                self.extraction.share_shards([item], tally, self.turn)
            except FileNotFoundError:  # another process has sealed the store and removed the rows
                if not (self.extraction.out / "manifest.json").is_file():
                    raise
            return {"bytes": tally.bytes}

        return _receipt(work)
