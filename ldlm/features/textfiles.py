"""Documents of files of any kind: plain text, JSON lines, a JSON array or parquet, compressed or not.

The content tells the kind; a name matters only where it promises JSON or parquet and the content is neither. A document
is a line of plain text, or one field of a JSON object or parquet row. One that is null or blank is passed over.

A document is held whole, but for a line of plain text that is longer than `LONGEST` characters: that comes in parts, so
that memory does not grow with it. Whatever fails while a file is read is an `InputError` that names file and place.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count as count_from
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ldlm import files
from ldlm.errors import InputError

LONGEST = 2**16  # characters of a document that are tokenised at once, and bytes of a line that are read at once
HEAD = 2**16  # bytes that tell a file's kind
PARQUET_ROWS = 1024  # that are held at once
STANDARD_INPUT = Path("-")
BOM = "\ufeff"
JSON_NAMES = (".json", ".jsonl", ".ndjson", ".jsonlines")
NAMES = (*JSON_NAMES[1:], ".parquet", ".txt")  # of text; .json also ends the records that stand beside samples
PACKED = (".gz", ".zst", ".bz2", ".xz")

Kind = Literal["plain", "json lines", "json array", "parquet"]


class Row(NamedTuple):
    """A document, None for null, and the JSON object that it stands in."""

    text: str | None
    fields: Mapping[str, Any]


def file_documents(paths: Iterable[str | Path], column: str = "text") -> Iterator[str]:
    """The documents of files, in order; a line longer than `LONGEST` in parts, all but its last of class `Part`.

    `InputError` names the file for what is absent, empty, damaged, not UTF-8 or without that column.
    """
    for path in map(Path, paths):
        found = False
        for document in not_blank(row.text for row in rows(path, column)):
            found = True
            yield document
        if not found:
            raise InputError(f"{path} holds no text")


def rows(path: Path, column: str = "text") -> Iterator[Row]:
    """Every row of a file, blank and null ones included, but no blank line of plain text; a long one in parts."""
    with _opened(path) as source:
        if source.kind == "plain":
            yield from (Row(part, {}) for part in not_blank(_lines(source)))
        elif source.kind == "parquet":
            yield from (Row(text, {}) for text in _parquet(source, column))
        else:
            values = _json_lines(source) if source.kind == "json lines" else _json_array(source)
            yield from (_row(source, value, column, place) for value, place in values)


# ----------------------------------------------------------------------------------------------------------------------
# Long documents


class Part(str):
    """A part of a document that the next string goes on with."""

    __slots__ = ()


def parts(document: str) -> Iterator[str]:
    """A document in parts of at most `LONGEST` characters; a function of its text alone."""
    if len(document) <= LONGEST:
        return iter((document,))
    return _cut(document[start : start + LONGEST] for start in range(0, len(document), LONGEST))


def _cut(pieces: Iterable[str]) -> Iterator[str]:
    """The parts of a document that comes in pieces of any size; the last may be empty."""
    held = ""
    for piece in pieces:
        held += piece
        while len(held) > LONGEST:
            place = _place(held)
            yield Part(held[:place])
            held = held[place:]
    yield held


# Where tokens end whatever follows: before a space, which GPT-2's begin with and BERT's drop; else before other white
# space, but for control characters, over which BERT's words go on; else between a letter and punctuation, as in scripts
# that write no spaces. The last such place is taken.
_PLACES = [
    re.compile(f"(?s:.*){here}")
    for here in (r"(?<=\S)(?= )", r"(?<=\S)(?=[^\S\v\f\x1c-\x1f\x85])", r"(?<=[^\W_])(?=[.,;:!?…。、，；：！？])")
]


def _place(text: str) -> int:
    """Where to cut a text, by its first `LONGEST` characters."""
    found = (pattern.match(text, 0, LONGEST) for pattern in _PLACES)
    return next((match.end() for match in found if match), LONGEST)


def not_blank(documents: Iterable[str | None]) -> Iterator[str]:
    """The documents that hold more than white space; parts of one stay together."""
    inside = False
    for document in documents:
        if document is not None and (inside or document.strip()):
            yield document
            inside = isinstance(document, Part)


def count(documents: Iterable[str]) -> int:
    """How many documents there are, of which some may be in parts."""
    return sum(not isinstance(document, Part) for document in documents)


def section(documents: Iterable[str], start: int, stop: int | None = None) -> Iterator[str]:
    """The documents from number `start` to before `stop`, or to the end."""
    number = 0
    for document in documents if stop != 0 else ():
        if number >= start:
            yield document
        number += not isinstance(document, Part)
        if number == stop:
            return


def whole(documents: Iterable[str]) -> Iterator[str]:
    """The documents, each put together from its parts."""
    held: list[str] = []
    for document in documents:
        held.append(document)
        if not isinstance(document, Part):
            yield document if len(held) == 1 else "".join(held)
            held.clear()


# ----------------------------------------------------------------------------------------------------------------------
# Before a file is read


def fingerprints(paths: Iterable[str | Path]) -> dict[str, str]:
    """The sha256 of files that are read more than once, by path; `InputError` for one that can't be."""
    return {str(path): _fingerprint(Path(path)) for path in paths}


def _fingerprint(path: Path) -> str:
    check_file(path)
    with _failing(lambda: str(path)):
        return files.sha256_file(path)


def check_file(path: Path) -> None:
    """`InputError` for a pipe, an absent file and a folder, which can't be read more than once."""
    if _is_stream(path):
        what = "- (standard input)" if path == STANDARD_INPUT else f"{path} (a pipe)"
        raise InputError(
            f"{what} can be read only once, and this text is read several times and its hash recorded; save it to a "
            f"file and give that"
        )
    _check(path)


def check_streams(paths: Iterable[Path]) -> None:
    """`InputError` when standard input or a pipe, which can be read once, is given twice."""
    streams = list(filter(_is_stream, paths))
    for i, path in enumerate(streams):
        if any(path == other or _names(path).samefile(_names(other)) for other in streams[:i]):
            raise InputError(f"{path} is given twice and can be read only once; save it to a file and give that")


def _names(path: Path) -> Path:
    return Path("/dev/stdin") if path == STANDARD_INPUT else path


def remarks(paths: Iterable[str | Path], column: str) -> Iterator[str]:
    """A line for each file that is read as JSON though its name does not say so."""
    for path in map(Path, paths):
        if _is_stream(path):
            continue
        with _opened(path) as source:
            if source.kind.startswith("json") and _ending(path) not in JSON_NAMES:
                yield f"{path} holds JSON, of which the field {column!r} is read; {_as_they_stand(path, source.packed)}"


def text_bytes(path: Path) -> int | None:
    """The size of the text that a file can hold at most; None where that is not known before it is read."""
    with _opened(path) as source:
        return None if source.packed or source.kind == "parquet" else path.stat().st_size


def is_named_text(path: Path) -> bool:
    """Whether a file's name says that it holds texts, compressed or not."""
    return _ending(path) in NAMES


def _ending(path: Path) -> str:
    """The name's ending in small letters, below that of a compression."""
    return (Path(path.stem) if path.suffix.lower() in PACKED else path).suffix.lower()


def _is_stream(path: Path) -> bool:
    return path == STANDARD_INPUT or (path.exists() and not (path.is_file() or path.is_dir()))


def _check(path: Path) -> None:
    if not path.exists():
        raise InputError(f"there is no file {path}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the text files in it, for example {path}/*.txt")


def _as_they_stand(path: Path, packed: bool) -> str:
    first, name = _unpacked(path, packed)
    return f"to take its lines as they stand, {first}make each a text: jq -Rc '{{text: .}}' {name} > lines.jsonl"


def _unpacked(path: Path, packed: bool) -> tuple[str, str]:
    """What to do before a command reads a file, and the name that it then has."""
    return ("unpack it and ", path.stem if path.suffix.lower() in PACKED else path.name) if packed else ("", path.name)


# ----------------------------------------------------------------------------------------------------------------------
# From bytes to a kind


@dataclass(frozen=True)
class _Source:
    """An open file of a known kind, at its first byte of content."""

    path: Path
    kind: Kind
    packed: bool
    stream: io.BufferedReader


@contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    with ExitStack() as held:
        outer = _Stream(path, _standard_input() if path == STANDARD_INPUT else held.enter_context(_file(path)))
        unpack = next((made for magic, made in _UNPACKERS.items() if magic.match(outer.head)), None)
        inner = outer if unpack is None else _Stream(path, held.enter_context(unpack(io.BufferedReader(outer))))
        if inner.head.startswith(codecs.BOM_UTF8):
            inner.skip(len(codecs.BOM_UTF8))
        kind = _kind(path, inner.head, packed=unpack is not None)
        if kind == "parquet" and (unpack is not None or _is_stream(path)):
            how = "unpack it first" if unpack is not None else "save it to a file and give that"
            raise InputError(f"{path} holds parquet, which is read from its end; {how}")
        yield _Source(path, kind, unpack is not None, io.BufferedReader(inner, 2 * LONGEST))


def _standard_input() -> Any:
    if sys.stdin is None:
        raise InputError("- is standard input, and that is closed; give the name of a file")
    return sys.stdin.buffer


def _file(path: Path) -> Any:
    _check(path)
    with _failing(lambda: str(path)):
        return open(path, "rb", buffering=0)


def _zstd(stream: Any) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")


# By the first bytes: zstd's are its frame's, or those of a frame to skip, with which pzstd begins.
_UNPACKERS: dict[re.Pattern[bytes], Callable[[Any], Any]] = {
    re.compile(rb"\x1f\x8b\x08"): lambda stream: gzip.GzipFile(fileobj=stream),
    re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"): bz2.BZ2File,
    re.compile(rb"\xfd7zXZ\x00"): lzma.LZMAFile,
    re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"): _zstd,
}


class _Stream(io.RawIOBase):
    """Bytes of a file that may come from a pipe, with a look ahead at the first ones."""

    def __init__(self, path: Path, stream: Any) -> None:
        self.path, self._stream, self._taken = path, stream, 0
        self.head = b""
        while len(self.head) < HEAD and (more := self._more(HEAD - len(self.head))):
            self.head += more
        self._ahead = memoryview(self.head)

    def skip(self, size: int) -> None:
        self.head, self._ahead = self.head[size:], self._ahead[size:]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._ahead[: len(buffer)] if self._ahead else self._more(len(buffer))
        self._ahead = self._ahead[len(found) :]
        buffer[: len(found)] = found
        return len(found)

    def _more(self, size: int) -> bytes:
        with _failing(lambda: f"{self.path}, after {self._taken:,} bytes of text,"):
            found = self._stream.read(size)
        self._taken += len(found)
        return found


@contextmanager
def _failing(place: Callable[[], str]) -> Iterator[None]:
    """What the system and the libraries raise about the bytes of a file, as one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the libraries of each format raise kinds of their own, and all mean the same here
        reason = getattr(error, "strerror", None) or str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"{place()} can't be read: {reason.rstrip('.')}; make a whole copy of it") from None


_OBJECT = re.compile(rb'(?:\{\s*\}\s*)*\{\s*"(?:[^"\\]|\\.)*"\s*:')
_ARRAY = re.compile(rb'\[\s*(?:\{\s*["}]|"(?:[^"\\]|\\.)*(?:"\s*[,\]]|\Z))')


def _kind(path: Path, head: bytes, packed: bool) -> Kind:
    """The kind of content that begins with `head`; `InputError` for what is no text at all."""
    ending, start = _ending(path), head.lstrip()
    if head.startswith(b"PAR1") and (ending == ".parquet" or b"\0" in head):
        return "parquet"
    if ending == ".parquet":
        raise InputError(f"{path} is not a parquet file, which begins with PAR1; rename it by what it holds")
    _check_encoding(path, head, packed)
    if _ARRAY.match(start) or (ending == ".json" and start.startswith(b"[")):
        return "json array"
    return "json lines" if _OBJECT.match(start) or ending in JSON_NAMES else "plain"


_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"} | {
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def _check_encoding(path: Path, head: bytes, packed: bool) -> None:
    """`InputError` for UTF-16, UTF-32 and what is binary."""
    found = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    for name, high, low in (("utf-16le", head[1::2], head[::2]), ("utf-16be", head[::2], head[1::2])):
        if found is None and b"\0" not in low and high.count(0) > 0.9 * len(low):
            found = name
    if found is not None:
        first, name = _unpacked(path, packed)
        raise InputError(
            f"{path} is {found[:6].upper()}, and UTF-8 is needed; {first}convert it, for example with "
            f"iconv -f {found} -t utf-8 {name} > utf8-{name}"
        )
    if head[257:262] == b"ustar" or (_CONTROLS.search(head) and not _is_utf8(head)):
        raise InputError(
            f"{path} is an archive or binary: neither text nor JSON nor parquet, and not packed by gzip, zstd, bzip2 "
            f"or xz alone; unpack or convert it"
        )


_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # which text has only by mistake


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # which lets the last character be cut
    except UnicodeDecodeError:
        return False
    return True


# ----------------------------------------------------------------------------------------------------------------------
# The kinds


def _lines(source: _Source) -> Iterator[str]:
    """The lines of plain text without their ends; what is longer than `LONGEST` in parts."""
    number = 0
    while line := source.stream.readline(LONGEST):
        number += 1
        if len(line) < LONGEST or line.endswith(b"\n"):
            yield _utf8(source, number, line).removeprefix(BOM).rstrip("\r\n")
        else:
            yield from _cut(_pieces(source, number, line.removeprefix(codecs.BOM_UTF8)))


def _pieces(source: _Source, number: int, piece: bytes) -> Iterator[str]:
    """A line that begins with `piece`, piece by piece, without its end."""
    decoder, held = codecs.getincrementaldecoder("utf-8")(), ""
    while piece:
        following = b"" if piece.endswith(b"\n") else source.stream.readline(LONGEST)
        held += _utf8(source, number, piece, partial(decoder.decode, final=not following))
        yield (text := held.rstrip("\r\n"))
        held, piece = held[len(text) :], following


def _utf8(source: _Source, number: int, line: bytes, decode: Callable[[bytes], str] = bytes.decode) -> str:
    if b"\0" in line:
        first, name = _unpacked(source.path, source.packed)
        raise InputError(
            f"{source.path}, line {number} holds a NUL byte, which is no character of a text; make a whole copy, or "
            f"{first}remove them: tr -d '\\0' < {name} > text.txt"
        )
    try:
        return decode(line)
    except UnicodeDecodeError as error:
        raise _not_utf8(f"{source.path}, line {number}", error) from None


def _not_utf8(place: str, error: UnicodeDecodeError) -> InputError:
    byte = error.object[error.start]
    return InputError(
        f"{place} is not UTF-8 (byte 0x{byte:02x}); convert it, for example with iconv -f latin1 -t utf-8"
    )


def _json_lines(source: _Source) -> Iterator[tuple[Any, str]]:
    """The values of JSON lines, each with its place."""
    number = 0
    while line := source.stream.readline():
        number += 1
        text, place = _utf8(source, number, line).removeprefix(BOM), f"{source.path}, line {number}"
        if text.strip():
            yield _value(source, partial(json.loads, text), place), place


def _json_array(source: _Source) -> Iterator[tuple[Any, str]]:
    """The elements of a JSON array, each with its place."""
    window = _Window(source)
    window.take("[")
    for number in count_from(1) if window.peek() != "]" else ():
        place = f"{source.path}, element {number}"
        yield _value(source, window.value, place), place
        if window.peek() != ",":
            break
        window.take(",")
    window.take("]")
    if window.peek():
        raise InputError(f"{source.path} holds more behind the end of its JSON array; give a JSON object per line")


class _Window:
    """The characters of a JSON array, of which no more are held than its current element needs."""

    def __init__(self, source: _Source) -> None:
        self._source, self._characters = source, io.TextIOWrapper(source.stream, "utf-8", newline="")
        self._held, self._place, self._ended = "", 0, False

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            self._place = _BLANK.match(self._held, self._place).end()  # type: ignore[union-attr]
            if self._place < len(self._held) or self._ended:
                return self._held[self._place : self._place + 1]
            self._more()

    def take(self, expected: str) -> None:
        if self.peek() != expected:
            found = repr(self.peek()) if self.peek() else "the end of the file"
            raise InputError(f"{self._source.path} is not a JSON array: {expected!r} is missing before {found}")
        self._place += 1

    def value(self) -> Any:
        """The next value; `JSONDecodeError` when there is none."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._held, self._place)
            except json.JSONDecodeError as error:
                if self._ended or not (error.msg.startswith("Unterm") or error.pos > len(self._held) - _LITERAL):
                    raise
            else:
                if end < len(self._held) or self._ended:  # else it may be a number that goes on
                    self._place = end
                    return value
            self._more()

    def _more(self) -> None:
        held = self._held[self._place :]
        place = f"{self._source.path} behind {held[-40:]!r}"
        with _failing(lambda: place):
            try:
                more = self._characters.read(max(HEAD, len(held)))
            except UnicodeDecodeError as error:
                raise _not_utf8(place, error) from None
        self._held, self._place, self._ended = held + more, 0, not more


_BLANK, _DECODER = re.compile(r"\s*"), json.JSONDecoder()
_LITERAL = 16  # more characters than an escape or a literal has that a window may cut


def _value(source: _Source, parse: Callable[[], Any], place: str) -> Any:
    """What `parse` finds at a place; `InputError` when that is not JSON."""
    try:
        return parse()
    except json.JSONDecodeError as error:
        lines = "; put an object that spreads over several lines on one, with jq -c ." if _is_begun(error) else ""
        raise InputError(f"{place} is not JSON: {error.msg}{lines}{_or_plain(source)}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nesting a thousand deep
        reason = str(error).split(":")[0]
        raise InputError(f"{place} can't be read as JSON: {reason}; correct or remove it") from None


def _or_plain(source: _Source) -> str:
    """Advice for plain text that was taken for JSON, which a name can rule out."""
    return "" if _ending(source.path) in JSON_NAMES else f"; {_as_they_stand(source.path, source.packed)}"


def _is_begun(error: json.JSONDecodeError) -> bool:
    return error.doc.startswith("{") and error.pos >= len(error.doc.rstrip())


def _row(source: _Source, value: Any, column: str, place: str) -> Row:
    """The row of a JSON object, or of a string in an array of strings."""
    fields = value if isinstance(value, dict) else {}
    text = fields.get(column, value)
    if not (isinstance(text, str) or (text is None and (column in fields or value is None))):
        found = ", ".join(fields) if fields else "none"
        raise InputError(f"{place} has no text in {column!r} (fields: {found}); set --text-column{_or_plain(source)}")
    check_whole(text or "", place)
    return Row(text, fields)


def check_whole(text: str, place: str) -> None:
    """`InputError` for half a character: a surrogate from JSON, or from bytes of a command line that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place} holds half a character, {error.object[error.start]!a}, which no tokenizer reads; remove it"
        ) from None


def _parquet(source: _Source, column: str) -> Iterator[str | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _failing(lambda: f"{source.path} is not a parquet file that is whole: it"):
        table = pq.ParquetFile(source.path)
    if column not in table.schema_arrow.names:
        fields = ", ".join(table.schema_arrow.names)
        raise InputError(f"{source.path} has no column {column!r} (columns: {fields}); set --text-column")
    if (count := table.schema_arrow.names.count(column)) > 1:
        raise InputError(f"{source.path} has {count} columns {column!r}; rename one, or set --text-column to another")
    kind = table.schema_arrow.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        raise InputError(f"{source.path}: column {column!r} holds {kind} and no text; set --text-column")
    batches, read = table.iter_batches(PARQUET_ROWS, columns=[column]), 0
    while True:
        with _failing(lambda: f"{source.path}, behind row {read:,},"):  # noqa: B023
            batch = next(batches, None)
            texts = [] if batch is None else batch.column(0).to_pylist()
        if batch is None:
            return
        yield from texts
        read += len(texts)
