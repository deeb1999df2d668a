"""Packing a text into token rows by any number of processes (SPEC 1).

Every piece of the text (`pieces`) is tokenised once, by whichever process claims it, into a file of its own. Once all
are there, the number of tokens before each is known, and with it the place of every row: rows are read straight from
the files of the pieces that they run across. They are the rows of `text.pack`, whatever the pieces and the processes.

    plan.json         the pieces, in order
    tokenizer.json    for helping processes
    000000.tokens     int32, the documents of a piece, each followed by EOS; whole or absent, like all files here
    000000.ends       int64, the number of its tokens up to the end of each document; where some are held out
    rows.json         last: tokens of each piece, and the first and last token of each split
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from ldlm import files
from ldlm.config import ExtractConfig
from ldlm.features import corpus, pieces, text, textfiles
from ldlm.features.helpers import Helpers, workers
from ldlm.features.pieces import Piece
from ldlm.features.shards import SPLITS
from ldlm.features.shared_work import Tally, share
from ldlm.features.shares import Share, in_turn
from ldlm.leases import Leases
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
    """The packing of the text of `config` in `folder`. Claims of pieces are leases in the folder `claims`."""

    config: ExtractConfig
    folder: Path
    claims: Path
    tokenizer: Tokenizer  # the bare one, of the library tokenizers
    ends: Ends
    progress: Progress = SILENT
    share: Share | None = None  # of the pieces, which this process and its helpers do first

    @cached_property
    def leases(self) -> Leases:
        """The leases of pieces."""
        return Leases(self.claims, self.claims)

    # ------------------------------------------------------------------------------------------------------------------
    # Pieces: planned by one process, tokenised by all

    @property
    def _plan_path(self) -> Path:
        return self.folder / "plan.json"

    def planned(self) -> list[Piece] | None:
        """The pieces in order; None while no process has decided them, and once they have been removed."""
        data = files.content(self._plan_path)
        return None if data is None else _as_pieces(data)

    def plan(self, size: int = pieces.SIZE) -> list[Piece]:
        """Decide the pieces, of about `size` bytes; of several processes, the first decides them."""
        planned = pieces.plan(self.config, size)
        files.write_atomic(self.folder / "tokenizer.json", self.tokenizer.to_str())
        data = json.dumps(planned)  # on one line: a terabyte has 30,000 pieces
        return _as_pieces(files.write_once(self._plan_path, data.encode()))

    @property
    def done(self) -> bool:
        """True once the rows are counted, and until they are removed."""
        return (self.folder / "rows.json").is_file()

    def remove(self) -> None:
        """Remove everything; by its plan's absence other processes know that no piece is wanted any more."""
        self._plan_path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def tokenize(self, planned: list[Piece], helpers: int | None = None, hand_out: HandOutPieces | None = None) -> None:
        """Tokenise every planned piece, together with other processes; returns when all are done.

        `helpers` processes are started for it, by default as many as the machine has cores left and work is for. An
        engine that has the pieces tokenised elsewhere gives `hand_out`, which takes those that are left.
        """
        if hand_out is not None:
            helpers = 0
        wanted = min(len(planned) - len(self._recorded()), workers()) - 1 if helpers is None else helpers
        sizes = dict(enumerate(piece.size for piece in planned))
        unit = "part" if self.config.dataset else "byte"
        with (
            Helpers(max(0, wanted), self.task(), self.progress) as helping,
            Tally(self.progress, "tokenize", sizes, self._recorded, unit=unit) as tally,
        ):
            numbers = in_turn(list(sizes), self.share)
            left = {number: planned[number] for number in numbers if number not in tally.before}
            if hand_out is not None:
                hand_out(left, tally)
            else:
                self.share_pieces(left, tally, helping.check)

    def share_pieces(
        self, wanted: Mapping[int, Piece], tally: Tally[int], check: Callable[[], None] = lambda: None
    ) -> None:
        """Tokenise pieces, by number, unless others do; returns when they are done. `check` is called before each."""

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
        """The task of a helping process."""
        return {
            "folder": str(self.folder),
            "claims": str(self.claims),
            "split_special_tokens": self.tokenizer.encode_special_tokens,  # which a tokenizer's file leaves out
            "ends": self.ends,
            "share": self.share,
            "config": self.config,
        }

    def path(self, number: int) -> Path:
        """The file of a piece's tokens."""
        return self.folder / f"{number:06d}.tokens"

    def _ends_path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.ends"

    def _recorded(self) -> set[int]:
        return {int(path.stem) for path in files.matching(self.folder, "[0-9]*.tokens")}

    def _done(self, number: int) -> bool:
        """True where a piece is done; when the store is sealed the plan goes first, and then the pieces."""
        return self.path(number).exists() or not self._plan_path.exists()

    def _tokenized(self, number: int, piece: Piece, tally: Tally[int]) -> ExitStack:
        """Tokenise a piece into temporary files; closing the result makes them durable and puts them in place."""
        left = piece.size
        batches = ahead(text.batched_parts(pieces.documents(self.config, piece)))
        with ExitStack() as made:
            tokens_file = made.enter_context(_written(self.path(number)))
            ends_file = made.enter_context(_written(self._ends_path(number))) if self.config.validation_docs else None
            before = 0
            for tokens in text.stream(batches, self.tokenizer, self.ends.eos):
                tokens_file.write(tokens.ids.tobytes())
                if ends_file is not None:
                    ends_file.write((before + tokens.ends).tobytes())
                before += len(tokens.ids)
                tally.bytes += tokens.ids.nbytes
                step = min(left, tokens.ids.nbytes)  # a token is about as many bytes of text
                left -= step
                tally.advance(number, step)
            tally.advance(number, left)
            return made.pop_all()  # the file of ends comes first: that of the tokens says that the piece is done

    # ------------------------------------------------------------------------------------------------------------------
    # Rows: counted by one process, read by all

    def rows(self, planned: list[Piece]) -> dict[str, TokenRows]:
        """The rows of each split that has any, once every piece is tokenised."""
        path = self.folder / "rows.json"
        if not path.is_file():
            files.write_once(path, json.dumps(self._counted(planned)).encode())
        record = files.read_json(path)
        edges = np.concatenate([[0], np.cumsum(record["tokens"], dtype=np.int64)])
        chunk = self.config.seq_len - 2
        paths = [self.path(number) for number in range(len(planned))]
        splits = {split: record[split] for split in SPLITS}
        return {
            split: TokenRows(paths, edges, first, (last - first) // chunk, chunk, self.ends)
            for split, (first, last) in splits.items()
            if last - first >= chunk
        }

    def _counted(self, planned: list[Piece]) -> dict[str, Any]:
        """The record of the rows; `InputError` where a file has no text, or held-out documents leave none."""
        tokens = [self.path(number).stat().st_size // 4 for number in range(len(planned))]
        with_text = {piece.place for piece, count in zip(planned, tokens, strict=True) if count}
        for path in (*self.config.data, *self.config.validation_data):
            if path not in with_text:
                raise textfiles.no_text(path)
        first = sum(count for piece, count in zip(planned, tokens, strict=True) if piece.split == "train")
        if self.config.validation_docs:
            first = self._held_out(tokens)
        return {"tokens": tokens, "train": [0, first], "validation": [first, sum(tokens)]}

    def _held_out(self, tokens: list[int]) -> int:
        """The number of tokens before the first document that is held out."""
        counts = [self._ends_path(number).stat().st_size // 8 for number in range(len(tokens))]
        edges = np.concatenate([[0], np.cumsum(counts)])
        before = corpus.boundary(self.config, int(edges[-1]))
        number = int(np.searchsorted(edges, before)) - 1  # of the piece with the last document before it
        ends = np.fromfile(self._ends_path(number), np.int64, 1, offset=8 * (before - 1 - int(edges[number])))
        return sum(tokens[:number]) + int(ends[0])


def as_piece(found: list[Any]) -> Piece:
    """A piece as JSON gives it back, which has no tuples."""
    split, place, part, size = found
    return Piece(split, place, tuple(part) if isinstance(part, list) else part, size)


def _as_pieces(data: files.Buffer) -> list[Piece]:
    return [as_piece(one) for one in json.loads(bytes(data))]


@contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which is durable and in place when the block ends; of several, the first one stays."""
    with files.replacing(path, once=True) as temporary, open(temporary, "wb") as file:
        yield file


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each taken by a thread while the one before it is worked on."""
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ldlm-ahead") as thread:
        waiting = thread.submit(next, iterator, None)
        while (item := waiting.result()) is not None:
            waiting = thread.submit(next, iterator, None)
            yield item


@dataclass(frozen=True)
class TokenRows:
    """Token rows of a split, read from the files of pieces that they run across.

    They are read and not mapped: pages of a memory map would count as the process's memory.
    """

    paths: list[Path]
    edges: np.ndarray  # int64, the number of tokens before each piece, and of all
    first: int  # token of the split
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
                found[place - start : until - start] = self._part(number, place - before, until - before)
            number, place = number + 1, max(place, until)
        return found

    def _part(self, number: int, start: int, stop: int) -> np.ndarray:
        """Tokens start … stop of a piece. Its file is opened each time: there may be more than can be open at once."""
        with open(self.paths[number], "rb") as file:
            return np.frombuffer(os.pread(file.fileno(), 4 * (stop - start), 4 * start), np.int32)
