"""The program that Ray runs on the nodes of a cluster: pieces of text as tasks, blocks and shards in workers.

Arguments and results are numbers and JSON. If bad input, a node or the storage is at fault, the result says so: an
exception would come back pickled and wrapped.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ldlm import presence
from ldlm.completion import is_complete
from ldlm.errors import InputError, StorageError, Unreadable
from ldlm.features import digests
from ldlm.features.digests import Seen
from ldlm.features.helpers import OWN_THREADS
from ldlm.features.helping import packing_of
from ldlm.features.packing import Packing, as_piece
from ldlm.features.shared_work import Tally
from ldlm.location import Location, locate
from ldlm.progress import SILENT

if TYPE_CHECKING:
    from ldlm.features.extraction import Extraction

# Keys of a receipt that has nothing else: bad text, which is bad on every node; something that this node lacks and
# another may have; a file that is gone, as after another process's seal; a fault of the storage.
REFUSED, UNREADABLE, GONE, FAILED = "refused", "unreadable", "gone", "failed"


@contextmanager
def _present(out: str) -> Iterator[None]:
    """Be at work in the store `out` for one call, so that a process that wants to delete there waits for its end.

    A process that wants to be alone there waits for the command that made this call, and the command waits for its
    workers: so the call goes on, as the command does, and does not wait for that process in turn.
    """
    place = _place(out)
    with ExitStack() as stack:
        with suppress(InputError):
            if not isinstance(place, Path) or place.is_dir():  # else this node does not see the store
                stack.enter_context(presence.present(place, "none"))
        yield


def _place(out: str) -> Location:
    return locate(out) if "://" in out else Path(out)


def _receipt(work: Callable[[], Mapping[str, Any]], bad: str = UNREADABLE) -> str:
    """The result of `work` as JSON, or a message under the key of its fault; `bad` is the key for bad input."""
    where = f"on {socket.gethostname()}: "
    try:
        return json.dumps(work())
    except InputError as error:
        return json.dumps({UNREADABLE if isinstance(error, Unreadable) else bad: f"{where}{error}"})
    except FileNotFoundError as error:
        return json.dumps({GONE: f"{where}{error}"})
    except (StorageError, OSError) as error:
        return json.dumps({FAILED: f"{where}{error}"})


def _enter(folder: str) -> None:
    """Change to the folder in which the command was given, since its paths may be relative to it."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise Unreadable(
            f"{folder}, in which the command was given, can't be entered ({error.strerror}); run it in a folder that "
            f"all nodes have"
        ) from None


def precision(device: str) -> str:
    """A receipt with the `precision` that `auto` means on a device of this node."""

    def work() -> Mapping[str, Any]:
        from ldlm import compute, runtime

        return {"precision": compute.precision_on("auto", runtime.device(device))}

    return _receipt(work)


def tokenize(task: str, number: int, piece: str) -> str:
    """Tokenise a piece; returns a receipt with the `bytes` of its tokens, 0 if another process has done it.

    `task` is that of `Packing.task`, plus the store as `out` and the command's folder as `at`.
    """

    def work() -> Mapping[str, Any]:
        packing, wanted = _packing(task), as_piece(json.loads(piece))
        _look(packing, None if packing.config.dataset else wanted.place)
        with _present(json.loads(task)["out"]):
            tally = Tally(SILENT, "", {number: wanted.size}, set)
            packing.share_pieces({number: wanted}, tally)
        return {"bytes": tally.bytes}

    return _receipt(work, bad=REFUSED)


@lru_cache(maxsize=1)
def _packing(task: str) -> Packing:
    os.environ[OWN_THREADS] = "false"  # a task has one core
    read = json.loads(task)
    _enter(read["at"])
    if not (_place(read["folder"]) / "tokenizer.json").is_file():
        if is_complete(_place(read["out"])):
            raise FileNotFoundError(f"{read['out']} was sealed, and its token rows are gone")
        raise Unreadable(
            f"the token rows of {read['out']}, in {read['folder']}, can't be seen; all nodes must see that folder"
        )
    packing = packing_of(read)
    return replace(packing, seen=_Here(packing.seen))


class _Here(dict[str, Seen]):
    """The hash, size and times of the text's files, by path: this node's once it has looked, else the command's."""

    def __init__(self, seen: Mapping[str, Seen]) -> None:
        super().__init__(seen)
        self.looked = set[str]()


def _look(packing: Packing, path: str | None) -> None:
    """See a file of the text, or all, as this node does; `Unreadable` if it is another text.

    A node may have copies on a disk of its own, with times of their own.
    """
    seen = packing.seen
    assert isinstance(seen, _Here)
    new = [one for one in ([path] if path is not None else seen) if one in seen and one not in seen.looked]
    for missing in (one for one in new if not Path(one).exists()):
        raise Unreadable(f"there is no file {missing}; all nodes need the text under the same path")
    for place, here in digests.seen([Path(one) for one in new if seen[one].differs(Path(one))]).items():
        if here.sha256 != seen[str(place)].sha256:
            raise Unreadable(f"{place} is not the text that the command has hashed; all nodes need the same text")
        seen[str(place)] = here
    seen.looked.update(new)


class Worker:
    """A process with the encoder, loaded once. Ray runs up to two of its methods at a time, in threads.

    One of two shards is encoded while the other is compressed and written.
    """

    def __init__(self, task: str) -> None:
        self.task = json.loads(task)
        self.turn = Lock()  # to encode
        self.opening = Lock()

    @property
    def extraction(self) -> Extraction:
        """The extraction that this worker has joined, with its text packed."""
        with self.opening:
            return self._opened

    @cached_property
    def _opened(self) -> Extraction:
        from ldlm import config as configs
        from ldlm.features.begin import joined

        _enter(self.task["at"])
        config = configs.from_dict(configs.ExtractConfig, self.task["config"])
        made = joined(config, _place(self.task["out"]), self.task["fingerprints"], self.task["mark"])
        if not made.pack():
            raise FileNotFoundError(f"{made.out} was sealed, and its token rows are gone")
        return made

    def _receipt(self, work: Callable[[], Mapping[str, Any]]) -> str:
        """The receipt of a call, during which this worker is at work in the store."""

        def at_work() -> Mapping[str, Any]:
            with _present(self.task["out"]):
                return work()

        return _receipt(at_work)

    def ready(self) -> str:
        """Load the encoder and open the rows; returns a receipt with the store as `out`."""

        def work() -> Mapping[str, Any]:
            return {"out": str(self.extraction.out)}

        return self._receipt(work)

    def block(self, block: int) -> str:
        """Spool the raw states of a block; returns a receipt with their `bytes`."""

        def work() -> Mapping[str, Any]:
            tally = Tally(SILENT, "", {block: 0}, set)
            self.extraction.share_blocks([block], tally, self.turn)
            return {"bytes": tally.bytes}

        return self._receipt(work)

    def describe(self) -> str:
        """Merge the statistics and write the store's description."""

        def work() -> Mapping[str, Any]:
            with self.turn:
                self.extraction.describe()
            return {}

        return self._receipt(work)

    def shard(self, split: str, shard: int) -> str:
        """Write a shard; returns a receipt with its `bytes`, 0 if another process has done it."""

        def work() -> Mapping[str, Any]:
            item = (split, shard)
            tally = Tally(SILENT, "", {item: 0}, set)
            self.extraction.share_shards([item], tally, self.turn)
            return {"bytes": tally.bytes}

        return self._receipt(work)
