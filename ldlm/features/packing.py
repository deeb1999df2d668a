"""Packing a text into token rows, by any number of processes (SPEC 1).

Every piece of the text (`pieces`) is tokenised once, by whichever process claims it, into a file or object of its own
(`tokenized`). Once all are there, the number of tokens before each is known, and with it the place of every row: rows
are read straight from the pieces that they span. They are the rows of `text.pack`, whatever the pieces and the
processes. Beside the pieces, in a folder or, for machines that share no disk, in an object store, there are:

    plan.json         the pieces, in order
    tokenizer.json    for helping processes
    rows.json         last: names and tokens of the pieces, and the first and last token of each split
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from ldlm import config as configs
from ldlm import emptying, files
from ldlm.config import ExtractConfig
from ldlm.features import corpus, digests, pieces, text, textfiles
from ldlm.features.digests import Seen
from ldlm.features.helpers import Helpers, divided, own_threads
from ldlm.features.pieces import Piece
from ldlm.features.shards import SPLITS
from ldlm.features.shared_work import Tally, share
from ldlm.features.shares import Share, in_turn
from ldlm.features.tokenized import ENDS, Kept, KeptFiles, KeptObjects, Tokenized, name_of, values
from ldlm.leases import Leases, waits
from ldlm.location import Location, user_cache
from ldlm.presence import CLAIMS
from ldlm.progress import SILENT, Progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Item = TypeVar("Item")
HandOutPieces = Callable[[Mapping[int, Piece], Tally[int]], None]  # pieces by number, and the tally of what is done


class Ends(NamedTuple):
    """The tokens that begin and end a row."""

    bos: int
    eos: int


@dataclass(frozen=True)
class Packing:
    """The packing of the text of `config` in `folder`. Claims of pieces are leases in the folder `claims`.

    Both may be in an object store: then this machine has a folder of its own, `work`, named like `folder`, for locks
    and for a piece in transit.
    """

    config: ExtractConfig
    folder: Location
    claims: Location
    tokenizer: Tokenizer  # the bare one of the library tokenizers
    ends: Ends
    progress: Progress = SILENT
    share: Share | None = None  # the part of the pieces that this process and its helpers do first
    seen: Mapping[str, Seen] = field(default_factory=dict)  # of the text's files, when they were hashed

    @cached_property
    def leases(self) -> Leases:
        """The leases of pieces."""
        return Leases(self.claims, self.claims if isinstance(self.claims, Path) else self.work / CLAIMS)

    @contextmanager
    def turn(self, found: Callable[[], Item | None]) -> Iterator[Item | None]:
        """Yield what is `found`, or None under the lease with which one process at a time makes what is missing.

        The pieces are removed under the same lease. In an object store, where a thousand processes would queue for the
        lease, they wait only until what is missing is there.
        """
        pauses = waits()
        while isinstance(self.folder, Path) or (there := found()) is None:
            if (lease := self.leases.claim("pack")) is not None:
                with lease:
                    yield found()
                return
            self.leases.sleep(next(pauses))
        yield there

    @property
    def work(self) -> Path:
        """This machine's own folder, for pieces that are kept in an object store."""
        return user_cache() / self.folder.name

    @cached_property
    def kept(self) -> Kept:
        """Where the pieces are kept."""
        with_ends = bool(self.config.validation_docs)
        if isinstance(self.folder, Path):
            return KeptFiles(self.folder, with_ends)
        return KeptObjects(self.folder, with_ends, self.work)

    # ------------------------------------------------------------------------------------------------------------------
    # Pieces: planned by one process, tokenised by all

    @property
    def _plan_path(self) -> Location:
        return self.folder / "plan.json"

    def planned(self) -> list[Piece] | None:
        """The pieces in order; None while no process has decided them, and once they have been removed."""
        data = files.content(self._plan_path)
        return None if data is None else _as_pieces(data)

    def plan(self, size: int = pieces.SIZE) -> list[Piece]:
        """Decide the pieces, of about `size` bytes each; of several processes, the first one's count."""
        with self._as_hashed(self.seen):
            planned = pieces.plan(self.config, size)
        files.write_atomic(self.folder / "tokenizer.json", self.tokenizer.to_str())
        data = json.dumps(planned)  # on one line: a terabyte has 30,000 pieces
        return _as_pieces(files.write_once(self._plan_path, data.encode()))

    @property
    def done(self) -> bool:
        """Whether the rows are counted, and not removed yet."""
        return (self.folder / "rows.json").is_file()

    def remove(self, check: Callable[[], None]) -> None:
        """Remove everything, the plan first: its absence tells other processes that no piece is wanted any more.

        `check` comes before each removal, and raises an error once another process may have begun the store anew.
        """
        emptying.remove(self.folder / "plan.json", check)
        emptying.remove_folder(self.folder, check)

    def tokenize(self, planned: list[Piece], helpers: int | None = None, hand_out: HandOutPieces | None = None) -> None:
        """Tokenise every planned piece, together with other processes; returns when all are done.

        `helpers` processes are started for it, by default one for each further core but no more than there are pieces
        for: the tokenizers of fewer processes than cores share the cores as threads. An engine that has the pieces
        tokenised elsewhere gives `hand_out`, which takes those that are left.
        """
        if hand_out is not None:
            helpers = 0
        processes, threads = (helpers or 0) + 1, 1 if helpers else None
        if helpers is None:
            processes, threads = divided(len(planned) - len(self.kept.numbers()))
        own = self.share and self.share.part(0, processes)  # the part of the first of its processes
        sizes = dict(enumerate(piece.size for piece in planned))
        unit = "part" if self.config.dataset else "byte"
        with (
            own_threads(threads),
            Helpers(processes - 1, self.task(), self.progress) as helping,
            Tally(self.progress, "tokenize", sizes, self.kept.numbers, unit=unit) as tally,
        ):
            # In an object store a lease costs a request.
            numbers = in_turn(list(sizes), own, apart=not isinstance(self.folder, Path))
            left = {number: planned[number] for number in numbers if number not in tally.before}
            if hand_out is not None:
                hand_out(left, tally)
            else:
                self.share_pieces(left, tally, helping.check)

    def share_pieces(
        self, wanted: Mapping[int, Piece], tally: Tally[int], check: Callable[[], None] = lambda: None
    ) -> None:
        """Tokenise pieces, by number, unless others do; returns when all are done. `check` is called before each."""

        def work(number: int) -> ExitStack:
            check()
            return self._tokenized(number, wanted[number], tally)

        share(
            wanted,
            done=self._done,
            work=work,
            finish=lambda number, made: made.close(),
            claim=lambda number: self.leases.claim(f"piece-{number:06d}"),
            recorded=tally.recorded,
        )

    def task(self) -> dict[str, Any]:
        """The task of a helping process, for JSON, from which `helping.packing_of` makes a packing again."""
        return {
            "folder": str(self.folder),
            "claims": str(self.claims),
            "split_special_tokens": self.tokenizer.encode_special_tokens,  # which a tokenizer's file leaves out
            "ends": self.ends,
            "share": self.share,
            "seen": self.seen,
            "config": configs.to_dict(self.config),
        }

    def _done(self, number: int) -> bool:
        """Whether a piece is done; when the store is sealed, first the plan is removed, and then the pieces."""
        return self.kept.has(number) or not self._plan_path.is_file()

    def _tokenized(self, number: int, piece: Piece, tally: Tally[int]) -> ExitStack:
        """Tokenise a piece into temporary files; closing the result makes them durable and puts them in place."""
        left = piece.size
        with ExitStack() as made:
            into = made.enter_context(self.kept.writing(number))
            with self._as_hashed(self.seen if self.config.dataset else [piece.place]):
                batches = ahead(text.batched_parts(pieces.documents(self.config, piece)))
                for tokens in text.stream(batches, self.tokenizer, self.ends.eos):
                    into.write(tokens.ids, tokens.ends)
                    tally.bytes += tokens.ids.nbytes
                    step = min(left, tokens.ids.nbytes)  # a token is about as many bytes of text
                    left -= step
                    tally.advance(number, step)
            tally.advance(number, left)
            return made.pop_all()

    def _as_hashed(self, paths: Iterable[str]) -> AbstractContextManager[None]:
        """Read these files, as far as they were hashed, as `digests.as_hashed` says."""
        return digests.as_hashed({path: self.seen[path] for path in paths if path in self.seen})

    # ------------------------------------------------------------------------------------------------------------------
    # Rows: counted by one process, read by all

    def rows(self, planned: list[Piece]) -> dict[str, TokenRows]:
        """The rows of each split that has any, once every piece is tokenised."""
        path = self.folder / "rows.json"
        data = files.content(path) or files.write_once(path, json.dumps(self._counted(planned)).encode())
        record = json.loads(bytes(data))
        edges = np.concatenate([[0], np.cumsum(record["tokens"], dtype=np.int64)])
        chunk = self.config.seq_len - 2
        names = record.get("names") or map(name_of, range(len(planned)))  # which earlier versions did not write
        paths = [self.kept.path(name) for name in names]
        splits = {split: record[split] for split in SPLITS}
        return {
            split: TokenRows(paths, edges, first, (last - first) // chunk, chunk, self.ends)
            for split, (first, last) in splits.items()
            if last - first >= chunk
        }

    def _counted(self, planned: list[Piece]) -> dict[str, Any]:
        """The record of the rows; `InputError` if a file has no text, or held-out documents leave none."""
        found = self.kept.found(range(len(planned)))
        tokens = [one.tokens for one in found]
        with_text = {piece.place for piece, count in zip(planned, tokens, strict=True) if count}
        for path in (*self.config.data, *self.config.validation_data):
            if path not in with_text:
                raise textfiles.no_text(path)
        first = sum(count for piece, count in zip(planned, tokens, strict=True) if piece.split == "train")
        if self.config.validation_docs:
            first = self._held_out(found)
        names = [one.name for one in found]
        return {"names": names, "tokens": tokens, "train": [0, first], "validation": [first, sum(tokens)]}

    def _held_out(self, found: list[Tokenized]) -> int:
        """The number of tokens before the first document that is held out."""
        edges = np.concatenate([[0], np.cumsum([one.documents for one in found])])
        before = corpus.boundary(self.config, int(edges[-1]))
        number = int(np.searchsorted(edges, before)) - 1  # of the piece with the last document before it
        last = before - 1 - int(edges[number])
        path = self.kept.path(found[number].name, ENDS)
        ends = values(path, last, last + 1, found[number].documents)
        return sum(one.tokens for one in found[:number]) + int(ends[0])


def as_piece(found: list[Any]) -> Piece:
    """A piece read from JSON, which has no tuples."""
    split, place, part, size = found
    return Piece(split, place, tuple(part) if isinstance(part, list) else part, size)


def _as_pieces(data: files.Buffer) -> list[Piece]:
    return [as_piece(one) for one in json.loads(bytes(data))]


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each fetched by a thread while the one before it is worked on."""
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ldlm-ahead") as thread:
        waiting = thread.submit(next, iterator, None)
        while (item := waiting.result()) is not None:
            waiting = thread.submit(next, iterator, None)
            yield item


@dataclass(frozen=True)
class TokenRows:
    """Token rows of a split, read from the files or objects of the pieces that they span.

    They are read, not mapped: pages of a memory map would count as the process's memory.
    """

    paths: Sequence[Location]
    edges: np.ndarray  # int64, the number of tokens before each piece, and in all
    first: int  # the split's first token
    rows: int
    chunk: int  # L − 2
    ends: Ends

    @property
    def seq_len(self) -> int:
        """L, with BOS and EOS."""
        return self.chunk + 2

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start … stop as (rows, L) int32; fewer at the end."""
        stop = min(stop, self.rows)
        return text.wrapped(self._tokens(start * self.chunk, stop * self.chunk), self.chunk, *self.ends)

    def _tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens start … stop of the split, int32."""
        start, stop = start + self.first, stop + self.first
        found = np.empty(stop - start, np.int32)
        number, place = int(np.searchsorted(self.edges, start, side="right")) - 1, start
        while place < stop:
            before, after = int(self.edges[number]), int(self.edges[number + 1])
            until = min(stop, after)
            if until > place:  # a piece may be empty
                part = values(self.paths[number], place - before, until - before, after - before)
                found[place - start : until - start] = part
            number, place = number + 1, max(place, until)
        return found
