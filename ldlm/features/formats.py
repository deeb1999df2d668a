"""The documents of each format: plain text, JSON lines, a JSON array, parquet."""

from __future__ import annotations

import codecs
import io
import json
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count as count_from
from pathlib import Path
from typing import Any, NamedTuple

from ldlm.errors import InputError
from ldlm.features import documents
from ldlm.features.detection import JSON_NAMES, OpenFile, Place, as_input_error, ending, unpacked
from ldlm.features.documents import check_whole, cut

PARQUET_ROWS, PARQUET_TEXT = 1024, 2**22  # the most rows in memory at once, and bytes of their text on average
PARQUET_BYTES = 2**20  # of a file that are read at once: without a number, pyarrow reads a column of a row group whole
WINDOW = 2**16  # characters of a JSON array that are read at once
BOM = "\ufeff"


class Row(NamedTuple):
    """A document, None for null, and the JSON object or the columns of parquet beside it."""

    text: str | None
    fields: Mapping[str, Any]


def lines(source: OpenFile) -> Iterator[str]:
    """The lines of plain text without line ends; a line longer than `documents.LONGEST` comes in parts."""
    number = 0
    while source.goes_on() and (line := source.stream.readline(documents.LONGEST)):
        number += 1
        if len(line) < documents.LONGEST or line.endswith(b"\n"):
            yield _utf8(source, number, line).removeprefix(BOM).rstrip("\r\n")
        else:
            yield from cut(_pieces(source, number, line.removeprefix(codecs.BOM_UTF8)))


def _pieces(source: OpenFile, number: int, piece: bytes) -> Iterator[str]:
    """A long line that begins with `piece`, in pieces, without its line end."""
    decoder, held = codecs.getincrementaldecoder("utf-8")(), ""
    while piece:
        following = b"" if piece.endswith(b"\n") else source.stream.readline(documents.LONGEST)
        held += _utf8(source, number, piece, partial(decoder.decode, final=not following))
        yield (text := held.rstrip("\r\n"))
        held, piece = held[len(text) :], following


def _utf8(source: OpenFile, number: int, line: bytes, decode: Callable[[bytes], str] = bytes.decode) -> str:
    if b"\0" in line:
        first, name = unpacked(source.path, source.compressed)
        raise InputError(
            f"{source.line(number)} holds a NUL byte, which is not a character of text; get an intact copy, or "
            f"{first}remove them: tr -d '\\0' < {name} > text.txt"
        )
    try:
        return decode(line)
    except UnicodeDecodeError as error:
        raise _not_utf8(str(source.line(number)), error) from None


def _not_utf8(place: str, error: UnicodeDecodeError) -> InputError:
    byte = error.object[error.start]
    return InputError(
        f"{place} is not UTF-8 (byte 0x{byte:02x}); convert it, for example with iconv -f latin1 -t utf-8"
    )


def values(source: OpenFile, column: str) -> Iterator[tuple[Any, str | Place]]:
    """The values of JSON lines or of a JSON array, each with its place."""
    return json_lines(source, column) if source.kind == "json lines" else json_array(source)


def json_lines(source: OpenFile, column: str) -> Iterator[tuple[Any, Place]]:
    """The values of JSON lines, each with its place."""
    number = 0
    while source.goes_on() and (line := source.stream.readline()):
        number += 1
        text, place = _utf8(source, number, line).removeprefix(BOM), source.line(number)
        if text.strip():
            if number == 1:
                _check_apart(source, text, column, place)
            yield _value(source, partial(json.loads, text), place), place


_TEXTS = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:\s*\[\s*"')  # a field with a list of strings


def _check_apart(source: OpenFile, line: str, column: str, place: Place) -> None:
    """`InputError` if a first line begins an object, of several lines, with a list of texts and no single one."""
    if line.strip() != "{":
        return
    head = source.stream.peek()[:WINDOW].decode("utf-8", "ignore")
    if re.search(rf'{re.escape(json.dumps(column))}\s*:\s*"', head):
        return
    if found := _TEXTS.search(head):
        raise InputError(f"{place} begins an object with texts in {found[1]!r}; {_apart(source, found[1])}")


def json_array(source: OpenFile) -> Iterator[tuple[Any, str]]:
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
        raise InputError(f"{source.path} holds more after the end of its JSON array; give one JSON object per line")


class _Window:
    """The characters of a JSON array, with no more of them in memory than the current element needs."""

    def __init__(self, source: OpenFile) -> None:
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
                if end < len(self._held) or self._ended:  # a number at the end of the window may continue
                    self._place = end
                    return value
            self._more()

    def _more(self) -> None:
        held = self._held[self._place :]
        place = f"{self._source.path} after {held[-40:]!r}"
        with as_input_error(lambda: place):
            try:
                more = self._characters.read(max(WINDOW, len(held)))
            except UnicodeDecodeError as error:
                raise _not_utf8(place, error) from None
        self._held, self._place, self._ended = held + more, 0, not more


_BLANK, _DECODER = re.compile(r"\s*"), json.JSONDecoder()
_LITERAL = 16  # characters: longer than any escape or literal that the end of a window may cut


def _value(source: OpenFile, parse: Callable[[], Any], place: str | Place) -> Any:
    """The JSON value that `parse` reads at a place; `InputError` when it is not JSON."""
    try:
        return parse()
    except json.JSONDecodeError as error:
        lines = "; put an object that spreads over several lines on one, with jq -c ." if _is_begun(error) else ""
        raise InputError(f"{place} is not JSON: {error.msg}{lines}{_or_plain(source)}") from None
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, or a thousand levels
        reason = str(error).split(":")[0]
        raise InputError(f"{place} can't be read as JSON: {reason}; correct or remove it") from None


def _or_plain(source: OpenFile) -> str:
    """Advice in case the file is plain text that looks like JSON; none if its name says JSON."""
    return "" if ending(source.path) in JSON_NAMES else f"; {as_they_stand(source.path, source.compressed)}"


def _is_begun(error: json.JSONDecodeError) -> bool:
    return error.doc.startswith("{") and error.pos >= len(error.doc.rstrip())


def row(source: OpenFile, value: Any, column: str, place: str | Place) -> Row:
    """The row of a JSON object, or of a string in an array of strings."""
    fields = value if isinstance(value, dict) else {}
    text = fields.get(column, value)
    if not (isinstance(text, str) or (text is None and (column in fields or value is None))):
        raise InputError(f"{place} {_no_text(source, value, column)}{_or_plain(source)}")
    check_whole(text or "", place)
    return Row(text, fields)


TO_DECODE = 'decode them with their tokenizer, special tokens kept, and write {"text": …, "tokens": …}'


def _no_text(source: OpenFile, row: Any, column: str) -> str:
    """The complaint about an object without text in a field, or another value that is no text, with the remedy."""
    if _all(int, row):
        return f"holds {reprlib.repr(row)}, which are token ids; {TO_DECODE}"
    if type(row) is int and source.kind == "json array":  # which may be the ids of one text
        return f"holds {row}, as token ids do; {TO_DECODE}"
    fields: Mapping[str, Any] = row if isinstance(row, dict) else {}
    found = f"(fields: {', '.join(fields) if fields else 'none'})"
    other = any(isinstance(value, str) for value in fields.values())
    if column in fields:
        held = f"holds {reprlib.repr(fields[column])} in {column!r}, which"
        if _all(int, fields[column]):
            return f"{held} are token ids; {TO_DECODE}"
        if _all(str, fields[column]) and not other:
            return f"{held} is no text; {_apart(source, column)}"
        return f"{held} is no text; write it as a string, or set --text-column to another field {found}"
    missing = f"has no text in {column!r} {found}"
    if not other:
        for name, value in fields.items():
            if _all(int, value):
                return f"{missing}, but token ids in {name!r}; {TO_DECODE}"
            if _all(str, value):
                return f"{missing}, but a list in {name!r}; {_apart(source, name)}"
    return f"{missing}; " + ("set --text-column" if fields else f'write each text as {{"{column}": "…"}}')


def _all(kind: type, value: Any) -> bool:
    """Whether a value is a list, not empty, of values of a type."""
    return isinstance(value, list) and bool(value) and all(type(item) is kind for item in value)


def _apart(source: OpenFile, field: str) -> str:
    """Advice on a file with a list of texts in a field: the command by which each becomes a line."""
    first, name = unpacked(source.path, source.compressed)
    path = field if re.fullmatch(r"[A-Za-z_]\w*", field, re.ASCII) else json.dumps(field)
    return f"{first}make each of them a text: jq -c '.{path}[]|{{text:.}}' {name} > texts.jsonl"


def parquet_table(path: Path) -> Any:
    """A parquet file, opened with pyarrow; `InputError` when it is not whole."""
    import pyarrow.parquet as pq

    with as_input_error(lambda: f"{path} is not a whole parquet file: it"):
        return pq.ParquetFile(path, buffer_size=PARQUET_BYTES, pre_buffer=False)


def parquet(source: OpenFile, column: str, beside: Sequence[str] = ()) -> Iterator[Row]:
    """The texts of a column, including nulls, of the whole file or of the row groups in its span.

    Each with its values in the columns `beside`, as far as the file has them.
    """
    import pyarrow as pa

    table = parquet_table(source.path)
    fields = ", ".join(table.schema_arrow.names)
    kinds = dict(zip(table.schema_arrow.names, table.schema_arrow.types, strict=True))
    if column not in kinds:
        missing = f"{source.path} has no column {column!r} (columns: {fields})"
        ids = next((name for name, kind in kinds.items() if _is_ids(kind)), None)
        if ids is not None and not any(map(_is_text, kinds.values())):
            raise InputError(f"{missing}, but token ids in {ids!r}; {TO_DECODE}")
        raise InputError(f"{missing}; set --text-column")
    if (count := table.schema_arrow.names.count(column)) > 1:
        raise InputError(f"{source.path} has {count} columns {column!r}; rename one, or set --text-column to another")
    kind = kinds[column]
    if _is_ids(kind):
        raise InputError(f"{source.path}: column {column!r} holds token ids; {TO_DECODE}")
    if not _is_text(kind):
        raise InputError(
            f"{source.path}: column {column!r} holds {kind}, which is no text; write it as strings, or set "
            f"--text-column to another column (columns: {fields})"
        )
    groups = range(table.num_row_groups) if source.span is None else range(*source.span)
    read = sum(table.metadata.row_group(group).num_rows for group in range(groups.start))
    names = [column, *(name for name in beside if table.schema_arrow.names.count(name) == 1 and name != column)]
    at_once = PARQUET_ROWS if pa.types.is_dictionary(kind) else _rows_at_once(table, column, groups)
    batches = table.iter_batches(at_once, row_groups=list(groups), columns=names)
    while True:
        with as_input_error(lambda: f"{source.path}, after row {read:,},"):  # noqa: B023
            batch = next(batches, None)
            rows = [] if batch is None else batch.to_pylist()
        if batch is None:
            return
        yield from (Row(fields[column], fields) for fields in rows)
        read += len(rows)


def _is_text(kind: Any) -> bool:
    """Whether a type of pyarrow is one of strings."""
    from pyarrow import types

    value = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)


def _is_ids(kind: Any) -> bool:
    """Whether a type of pyarrow is one of lists of integers."""
    from pyarrow import types

    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(is_list(kind) for is_list in lists) and types.is_integer(kind.value_type)


def _rows_at_once(table: Any, column: str, groups: range) -> int:
    """The number of rows with `PARQUET_TEXT` bytes of a column, as they are on average.

    Not for a dictionary, which comes with every batch: many small ones would take hours.
    """
    place = [table.schema.column(number).path for number in range(len(table.schema))].index(column)
    found = [table.metadata.row_group(group) for group in groups]
    size = sum(group.column(place).total_uncompressed_size for group in found)
    return max(1, min(PARQUET_ROWS, PARQUET_TEXT * sum(group.num_rows for group in found) // max(1, size)))


def as_they_stand(path: Path, compressed: bool) -> str:
    """Advice on a file: the command by which each line of it becomes a text."""
    first, name = unpacked(path, compressed)
    return f"to take its lines as they stand, {first}make each a text: jq -Rc '{{text: .}}' {name} > lines.jsonl"
