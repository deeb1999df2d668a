"""Documents of text files: plain text, JSON lines, a JSON array or parquet, compressed or not.

`detection` opens a file, and `formats` reads it. A document is a line of plain text, or one field of a JSON object or
parquet row; null and blank ones are skipped. Lines of plain text longer than `documents.LONGEST` come in parts.
Whatever fails while a file is read is an `InputError` that names the file and the place in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from ldlm.errors import InputError
from ldlm.features import digests, formats
from ldlm.features.detection import (
    JSON_NAMES,
    NAMES,
    STANDARD_INPUT,
    Span,
    check_exists,
    ending,
    is_stream,
    opened,
)
from ldlm.features.documents import not_blank
from ldlm.features.formats import Row, as_they_stand
from ldlm.location import Location
from ldlm.progress import SILENT, Progress

TABLES = {".csv": ",", ".tsv": r"\t"}  # names of tables of values, with what divides them


def file_documents(paths: Iterable[str | Path], column: str = "text") -> Iterator[str]:
    """The documents of files, in order; a long line of plain text comes in parts.

    `InputError`, with the file's name, for a file that is absent, empty, damaged, not UTF-8 or without that column.
    """
    for path in map(Path, paths):
        found = False
        for document in documents_of(path, column):
            found = True
            yield document
        if not found:
            raise no_text(path)


def documents_of(path: Path, column: str, span: Span | None = None) -> Iterator[str]:
    """The documents of one file, or of a part of it, if there are any."""
    return not_blank(row.text for row in rows(path, column, span))


def no_text(path: str | Path) -> InputError:
    """The error for a file without documents."""
    return InputError(f"{path} holds no text; give a file with a document per line, JSON lines or parquet")


def rows(path: Path, column: str = "text", span: Span | None = None, beside: Sequence[str] = ()) -> Iterator[Row]:
    """Every row of a file, including blank and null ones but not blank lines of plain text; long lines come in parts.

    With a `span`, the rows of that part of the file. Of parquet only the columns `beside` are read with the text; of
    JSON all fields are.
    """
    with opened(path, span) as source:
        if source.kind == "plain":
            yield from (Row(part, {}) for part in not_blank(formats.lines(source)))
        elif source.kind == "parquet":
            yield from formats.parquet(source, column, beside)
        else:
            yield from (formats.row(source, value, column, place) for value, place in formats.values(source, column))


# ----------------------------------------------------------------------------------------------------------------------
# Before a file is read


def fingerprints(
    paths: Iterable[str | Path], progress: Progress = SILENT, store: Location | None = None
) -> dict[str, str]:
    """The sha256 of files, by path; `InputError` for one that can't be read more than once. `store` as in `digests`."""
    return {name: found.sha256 for name, found in seen(paths, progress, store).items()}


def seen(
    paths: Iterable[str | Path], progress: Progress = SILENT, store: Location | None = None
) -> dict[str, digests.Seen]:
    """The sha256, size and times of files, by path; arguments and errors as those of `fingerprints`."""
    named = [str(path) for path in paths]
    for name in named:
        check_file(Path(name))
    found = digests.seen([Path(name) for name in named], progress, store)
    return {name: found[Path(name)] for name in named}


def check_file(path: Path) -> None:
    """`InputError` for a pipe, which can be read only once, for an absent file and for a folder."""
    if is_stream(path):
        what = "- (standard input)" if path == STANDARD_INPUT else f"{path} (a pipe)"
        raise InputError(
            f"{what} can be read only once, and this text is read several times and its hash recorded; save it to a "
            f"file and give that"
        )
    check_exists(path)


def check_streams(paths: Iterable[Path]) -> None:
    """`InputError` when standard input or a pipe, which can be read once, is given twice."""
    streams = list(filter(is_stream, paths))
    for i, path in enumerate(streams):
        if any(path == other or _names(path).samefile(_names(other)) for other in streams[:i]):
            raise InputError(f"{path} is given twice and can be read only once; save it to a file and give that")


def _names(path: Path) -> Path:
    return Path("/dev/stdin") if path == STANDARD_INPUT else path


def remarks(paths: Iterable[str | Path], column: str) -> Iterator[str]:
    """A remark on each file that is read as JSON, or as lines, although its name doesn't say so."""
    for path in map(Path, paths):
        if is_stream(path):
            continue
        with opened(path) as source:
            if source.kind.startswith("json") and ending(path) not in JSON_NAMES:
                advice = as_they_stand(path, source.compressed)
                yield f"{path} holds JSON, of which the field {column!r} is read; {advice}"
            if source.kind == "plain" and ending(path) in TABLES:
                yield (
                    f"{path} is read as lines of text, its header and marks included; to read one of its columns: "
                    f"{_as_parquet(path)}"
                )


def check_no_table(path: Path, column: str) -> None:
    """`InputError` for a table of values with the column, or with `text`, whose lines are no texts."""
    if is_stream(path) or ending(path) not in TABLES:
        return
    with opened(path) as source:
        header = next(formats.lines(source), "") if source.kind == "plain" else ""
    mark = "\t" if ending(path) == ".tsv" else ","
    names = [name.strip().strip('"') for name in header.split(mark)]
    if found := next((name for name in (column, "text") if name in names), None):
        raise InputError(
            f"{path} is a table with a column {found!r}, and not lines of text; to read that column: "
            f"{_as_parquet(path)}"
        )


def _as_parquet(path: Path) -> str:
    """The command that makes a table of values a parquet file."""
    how = f'delimiter="{TABLES[ending(path)]}", newlines_in_values=True'
    read = f'csv.read_csv("{path.name}", parse_options=csv.ParseOptions({how}))'
    made = path.name[: path.name.lower().index(ending(path))] + ".parquet"
    return f"python -c 'from pyarrow import csv, parquet; parquet.write_table({read}, \"{made}\")'"


def field_names(path: Path, column: str) -> list[str] | None:
    """Names of the columns, or of the fields of the first row; None where rows have none, and for a stream."""
    if is_stream(path):
        return None
    with opened(path) as source:
        if source.kind == "plain":
            return None
        if source.kind == "parquet":
            return list(formats.parquet_table(path).schema_arrow.names)
        value, _ = next(formats.values(source, column), (None, None))
        return list(value) if isinstance(value, dict) else None


def spans(path: Path, size: int) -> list[tuple[Span | None, int]]:
    """The parts in which a file is read, and about how many bytes each has: `size` if the file can be divided.

    They are byte ranges of lines or row groups of parquet; None is the whole file: a JSON array, or a compressed file.
    All parts in order give the file's rows, however small the parts are.
    """
    with opened(path) as source:
        kind, compressed = source.kind, source.compressed
    whole = path.stat().st_size
    if compressed or kind == "json array":
        return [(None, whole)]
    if kind == "parquet":
        return _row_groups(path, size)
    count = max(1, -(-whole // size))
    edges = [whole * number // count for number in range(count + 1)]
    return [(Span(start, stop), stop - start) for start, stop in pairwise(edges)]


def _row_groups(path: Path, size: int) -> list[tuple[Span | None, int]]:
    """Stretches of row groups, each the shortest with at least `size` bytes of its columns."""
    table = formats.parquet_table(path)
    found: list[tuple[Span | None, int]] = []
    start = held = 0
    for group in range(table.num_row_groups):
        held += table.metadata.row_group(group).total_byte_size
        if held >= size or group + 1 == table.num_row_groups:
            found.append((Span(start, group + 1), held))
            start, held = group + 1, 0
    return found


def text_bytes(path: Path) -> int | None:
    """An upper bound in bytes on the text of a file; None if it isn't known before the file is read."""
    with opened(path) as source:
        return None if source.compressed or source.kind == "parquet" else path.stat().st_size


def is_named_text(path: Path) -> bool:
    """Whether a file's name says that it holds text, compressed or not."""
    return ending(path) in NAMES
