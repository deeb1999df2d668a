"""Open a text file: decompress it, and detect its format and encoding from its content.

The name matters only if it promises JSON or parquet.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ldlm.errors import InputError, Unreadable
from ldlm.features import documents

HEAD = 2**16  # bytes from which a format is detected
STANDARD_INPUT = Path("-")
JSON_NAMES = (".json", ".jsonl", ".ndjson", ".jsonlines")
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
NAMES = (*JSON_NAMES[1:], ".parquet", ".txt")  # of text; not .json, in which the records beside samples also end

Kind = Literal["plain", "json lines", "json array", "parquet"]


class Span(NamedTuple):
    """A part of a file: the lines that begin within these bytes, or these row groups of parquet."""

    start: int
    stop: int


class Reader(io.BufferedReader):
    """A buffered stream that counts the bytes of the lines it returns, and of the byte order mark before the first."""

    def __init__(self, raw: io.RawIOBase, mark: int) -> None:
        super().__init__(raw, 2 * documents.LONGEST)
        self.taken, self._mark = 0, mark

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        self.taken += self._mark + len(line)
        self._mark = 0
        return line


@dataclass(frozen=True)
class OpenFile:
    """An open file of a known format, at its first byte of content or of `span`."""

    path: Path
    kind: Kind
    compressed: bool
    stream: Reader
    span: Span | None = None

    def goes_on(self) -> bool:
        """Whether the next line, if there is one, begins within the span."""
        return self.span is None or self.span.start + self.stream.taken < self.span.stop

    def line(self, number: int) -> Place:
        """The place of a line, numbered from the first that is read."""
        return Place(self, number)


@dataclass(frozen=True)
class Place:
    """A line as messages name it. The lines before a span are counted only when a message needs their number."""

    source: OpenFile
    number: int

    def __str__(self) -> str:
        return f"{self.source.path}, line {self.number + self._before()}"

    def _before(self) -> int:
        """The number of lines before the first that is read."""
        span = self.source.span
        if span is None or span.start == 0:
            return 0
        with open(self.source.path, "rb") as file:
            sizes = (min(2**24, span.start - start) for start in range(0, span.start, 2**24))
            return sum(file.read(size).count(b"\n") for size in sizes)


@contextmanager
def opened(path: Path, span: Span | None = None) -> Iterator[OpenFile]:
    """Open a file or `-`, standard input; `InputError` when it is absent, damaged or not text.

    With a `span`, which only an uncompressed file can have, lines are read from the first that begins in it.
    """
    with ExitStack() as held:
        outer = _Stream(path, _standard_input() if path == STANDARD_INPUT else held.enter_context(_file(path)))
        unpack = next((made for magic, made in _UNPACKERS.items() if magic.match(outer.head)), None)
        inner = outer if unpack is None else _Stream(path, held.enter_context(unpack(io.BufferedReader(outer))))
        if mark := len(codecs.BOM_UTF8) if inner.head.startswith(codecs.BOM_UTF8) else 0:
            inner.skip(mark)
        kind = _kind(path, inner.head, compressed=unpack is not None)
        if kind == "parquet" and (unpack is not None or is_stream(path)):
            how = "unpack it first" if unpack is not None else "save it to a file and give that"
            raise InputError(f"{path} holds parquet, which is read from its end; {how}")
        if kind == "parquet" or span is None or span.start == 0:
            yield OpenFile(path, kind, unpack is not None, Reader(inner, mark), span)
        else:
            inner.go_to(span.start - 1)  # the last byte before the span, which may end a line
            yield _after_a_line(OpenFile(path, kind, False, Reader(inner, 0), span._replace(start=span.start - 1)))


def _after_a_line(source: OpenFile) -> OpenFile:
    """The file from its next line on, or from past its span if no line begins before."""
    while (line := source.stream.readline(documents.LONGEST)) and not line.endswith(b"\n") and source.goes_on():
        pass
    assert source.span is not None
    first = source.span.start + source.stream.taken
    source.stream.taken = 0
    return replace(source, span=source.span._replace(start=first))


def _standard_input() -> Any:
    if sys.stdin is None:
        raise InputError("- is standard input, and that is closed; give the name of a file")
    return sys.stdin.buffer


def _file(path: Path) -> Any:
    check_exists(path)
    with as_input_error(lambda: str(path)):
        return open(path, "rb", buffering=0)


def _zstd(stream: Any) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")


# Keyed by the first bytes. pzstd writes a skippable frame before the first zstd frame.
_UNPACKERS: dict[re.Pattern[bytes], Callable[[Any], Any]] = {
    re.compile(rb"\x1f\x8b\x08"): lambda stream: gzip.GzipFile(fileobj=stream),
    re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"): bz2.BZ2File,
    re.compile(rb"\xfd7zXZ\x00"): lzma.LZMAFile,
    re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"): _zstd,
}


class _Stream(io.RawIOBase):
    """The bytes of a file or a pipe, the first of which can be inspected before they are read."""

    def __init__(self, path: Path, stream: Any) -> None:
        self.path, self._stream, self._taken = path, stream, 0
        self.head = b""
        while len(self.head) < HEAD and (more := self._more(HEAD - len(self.head))):
            self.head += more
        self._ahead = memoryview(self.head)

    def skip(self, size: int) -> None:
        self.head, self._ahead = self.head[size:], self._ahead[size:]

    def go_to(self, offset: int) -> None:
        with as_input_error(lambda: str(self.path)):
            self._stream.seek(offset)
        self._taken, self._ahead = offset, self._ahead[:0]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._ahead[: len(buffer)] if self._ahead else self._more(len(buffer))
        self._ahead = self._ahead[len(found) :]
        buffer[: len(found)] = found
        return len(found)

    def _more(self, size: int) -> bytes:
        with as_input_error(lambda: f"{self.path}, after {self._taken:,} bytes of text,"):
            found = self._stream.read(size)
        self._taken += len(found)
        return found


@contextmanager
def as_input_error(place: Callable[[], str]) -> Iterator[None]:
    """Within the block, any error about the bytes of a file becomes an `InputError` of one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each format's library raises exceptions of its own, and all mean the same here
        reason = getattr(error, "strerror", None) or str(error).strip().split("\n")[0] or type(error).__name__
        kind = Unreadable if isinstance(error, OSError) and error.errno is not None else InputError
        raise kind(f"{place()} can't be read: {reason.rstrip('.')}; get an intact copy of it") from None


_OBJECT = re.compile(rb'(?:\{\s*\}\s*)*\{\s*"(?:[^"\\]|\\.)*"\s*:')
_ARRAY = re.compile(rb'\[\s*(?:\{\s*["}]|"(?:[^"\\]|\\.)*(?:"\s*[,\]]|\Z))')
# A first line of token ids alone; of a long one only the beginning is there.
_IDS = re.compile(rb"\[[ \t]*\d+(?:[ \t]*,[ \t]*\d+)+[ \t]*(?:\][ \t\r]*(?:\n|\Z)|,?[ \t]*\Z)")


def _kind(path: Path, head: bytes, compressed: bool) -> Kind:
    """The format of content that begins with `head`; `InputError` when it is not text."""
    suffix, start = ending(path), head.lstrip()
    if head.startswith(b"PAR1") and (suffix == ".parquet" or b"\0" in head):
        return "parquet"
    if suffix == ".parquet":
        raise InputError(f"{path} is not a parquet file, which begins with PAR1; rename it to match its content")
    _check_encoding(path, head, compressed)
    if _ARRAY.match(start) or (suffix == ".json" and start.startswith(b"[")):
        return "json array"
    is_json = _OBJECT.match(start) or _IDS.match(start) or suffix in JSON_NAMES
    return "json lines" if is_json else "plain"


_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"} | {
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def _check_encoding(path: Path, head: bytes, compressed: bool) -> None:
    """`InputError` for UTF-16, UTF-32 and binary data."""
    found = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    for name, high, low in (("utf-16le", head[1::2], head[::2]), ("utf-16be", head[::2], head[1::2])):
        if found is None and b"\0" not in low and high.count(0) > 0.9 * len(low):
            found = name
    if found is not None:
        first, name = unpacked(path, compressed)
        raise InputError(
            f"{path} is {found[:6].upper()}, and UTF-8 is needed; {first}convert it, for example with "
            f"iconv -f {found} -t utf-8 {name} > utf8-{name}"
        )
    if head[257:262] == b"ustar" or (_CONTROLS.search(head) and not _is_utf8(head)):
        raise InputError(
            f"{path} is an archive or binary: neither text nor JSON nor parquet, and not compressed with gzip, zstd, "
            f"bzip2 or xz alone; unpack or convert it"
        )


_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # control characters that text contains only by mistake


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return True


# ----------------------------------------------------------------------------------------------------------------------
# Names


def ending(path: Path) -> str:
    """The suffix of a file's name in lower case, ignoring that of a compression."""
    return (Path(path.stem) if path.suffix.lower() in COMPRESSED else path).suffix.lower()


def is_stream(path: Path) -> bool:
    """Whether a path is standard input, or a pipe or device, which is read once and has no size."""
    return path == STANDARD_INPUT or (path.exists() and not (path.is_file() or path.is_dir()))


def check_exists(path: Path) -> None:
    """`InputError` where there is no file."""
    if not path.exists():
        raise InputError(f"there is no file {path}")
    if path.is_dir():
        inside = sorted(one for one in path.iterdir() if ending(one) in NAMES)
        shown = f", for example {path}/*{''.join(_suffixes(inside[0]))}" if inside else ""
        raise InputError(f"{path} is a folder; give the text files in it{shown}")


def _suffixes(path: Path) -> list[str]:
    """The suffix of a file's name, after which that of a compression may follow."""
    return path.suffixes[-2:] if path.suffix.lower() in COMPRESSED else [path.suffix]


def unpacked(path: Path, compressed: bool) -> tuple[str, str]:
    """For advice on a file: the first step, which unpacks it if it is compressed, and its name after that."""
    return (
        ("unpack it and ", path.stem if path.suffix.lower() in COMPRESSED else path.name)
        if compressed
        else ("", path.name)
    )
