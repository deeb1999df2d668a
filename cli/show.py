"""Results as text, and progress on stderr."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import sys
import textwrap
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, TextIO

import click

from ldlm import files
from ldlm.errors import InputError
from ldlm.progress import Progress, Task
from ldlm.sampling.frames import VISIBLE

PLAIN_EVERY = 30.0  # seconds between lines without a terminal
DRAW_EVERY = 0.1
COLUMNS = 80  # of a terminal that does not report its width
MOST_COLUMNS = 100  # of a text
INDENT = "  "
STEERING = {code: sign for code, sign in VISIBLE.items() if code != ord("\n")}
CLEAR = "\r\x1b[2K"  # clears the line of the cursor


def say(text: str) -> None:
    """Print a result. A closed pipe, as with `| head -1`, is no error: the work is done."""
    try:
        click.echo(text)
    except OSError as error:
        _redirect_to_null(sys.stdout)
        if error.errno != errno.EPIPE:
            raise


def _redirect_to_null(stream: TextIO) -> None:
    """Redirect an unwritable stream to /dev/null, so that later writes, also those at exit, succeed."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def open_streams() -> None:
    """Open /dev/null in place of any of stdin, stdout and stderr that the process was started without (`2>&-`).

    Otherwise the first files that it opens would get their descriptors, and messages would be written into them.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(opened, True)
    os.close(opened)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def fit(line: str, columns: int) -> str:
    """Cut a line to `columns` columns of a terminal."""
    used = 0
    for place, char in enumerate(line):
        used += 0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if used > columns:
            return line[:place]
    return line


def wrapped(text: str, special: Sequence[str] = (), columns: int | None = None) -> str:
    """A text for reading: indented, its line breaks kept, lines of at most 100 characters and the terminal's columns.

    `special` are tokens that are not words of the text; they are fainter on a terminal. Control characters are shown as
    signs.
    """
    width = min(columns or shutil.get_terminal_size((COLUMNS, 24)).columns, MOST_COLUMNS) - len(INDENT)
    lines = []
    for line in text.removesuffix("\n").expandtabs(1).split("\n"):
        begin = line[: len(line) - len(line.lstrip(" "))]
        lines += textwrap.wrap(line.translate(STEERING), max(width, 1), subsequent_indent=begin) or [""]
    faint = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    shown = "\n".join(INDENT + line if line else "" for line in lines)
    return re.sub(faint, lambda found: click.style(found[0], dim=True), shown) if faint else shown


def json_line(result: Any) -> str:
    """A result as one line of strict JSON; `InputError` names a number that is NaN or infinite."""
    if found := next(_not_finite(result, ""), None):
        raise InputError(f"the result can't be printed as JSON, because {found}; what it was made from is damaged")
    return json.dumps(result, ensure_ascii=False, allow_nan=False)


def _not_finite(value: Any, where: str) -> Iterator[str]:
    """A phrase "PLACE is nan" for each NaN or infinity in plain data."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{where.lstrip('.') or 'it'} is {value}"
    inside = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    )
    for name, item in inside:
        yield from _not_finite(item, f"{where}.{name}")


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table: the first column and columns of words are left-aligned, the others right-aligned."""
    cells = [list(map(str, headers)), *([value(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    left = [i == 0 or _of_words([row[i] for row in cells[1:]]) for i in range(len(headers))]
    aligned = [
        "  ".join(c.ljust(w) if words else c.rjust(w) for c, w, words in zip(row, widths, left, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([aligned[0], "  ".join("-" * w for w in widths), *aligned[1:]])


def _of_words(cells: Sequence[str]) -> bool:
    """Whether each cell of a column that has a value begins with a letter."""
    said = [cell for cell in cells if cell != value(None)]
    return bool(said) and all(cell[:1].isalpha() and cell not in ("nan", "inf") for cell in said)


def pairs(values: Mapping[str, Any], indent: int = 0) -> str:
    """One `name  value` line per entry, nested ones indented."""
    width = max((len(name) for name in values), default=0)
    lines = []
    for name, entry in values.items():
        if isinstance(entry, Mapping):
            lines += [" " * indent + name, pairs(entry, indent + 2)]
        elif "bytes" in name and isinstance(entry, int):
            lines.append(f"{' ' * indent}{name.ljust(width)}  {entry:,} ({files.amount(entry)})")
        else:
            lines.append(f"{' ' * indent}{name.ljust(width)}  {value(entry)}")
    return "\n".join(lines)


def value(entry: Any) -> str:
    """A value as text, with three or four significant digits of a float."""
    if isinstance(entry, bool) or entry is None:
        return {True: "yes", False: "no", None: "-"}[entry]
    if isinstance(entry, int):
        return f"{entry:,}"
    if isinstance(entry, float):
        return (
            f"{entry:,.0f}"
            if abs(entry) >= 1000
            else f"{entry:.4g}"
            if abs(entry) < 0.01
            else f"{entry:.3f}".rstrip("0").rstrip(".")
        )
    return str(entry)


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class Terminal(Progress):
    """Progress on stderr: a line that is redrawn on a terminal, elsewhere a plain line every 30 seconds.

    Output that can't be written is dropped: a closed stderr does not stop the work.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()

    def task(self, name: str, total: int, unit: str, done: int = 0) -> Task:
        return TerminalTask(self, name, total, unit, done)

    def note(self, text: str) -> None:
        self.write(f"{CLEAR if self.live else ''}{text}\n")

    def draw(self, line: str, ending: str = "") -> None:
        """Redraw the line on a terminal, cut to leave room for the whole ending; elsewhere print it."""
        if self.live:
            # Some terminals wrap a line that is exactly as wide as they are.
            self.write(CLEAR + fit(line, self._columns() - 1 - len(ending)) + ending)
        else:
            self.write(f"{line}{ending}\n")

    def _columns(self) -> int:
        """Current width of the terminal, which the user may have resized."""
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or COLUMNS
        except (OSError, ValueError):
            return COLUMNS

    def write(self, text: str) -> None:
        """Write and flush; a stream that fails is redirected to /dev/null."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            _redirect_to_null(self.stream)


class TerminalTask(Task):
    """The line of one task: units, rate, remaining time, figures. A `total` of 0 means unknown."""

    def __init__(self, terminal: Terminal, name: str, total: int, unit: str, done: int) -> None:
        self.terminal, self.name, self.total, self.unit = terminal, name, total, unit
        self.first = self.done = done
        self.figures: dict[str, float | str] = {}
        self.started = self.drawn = time.monotonic()

    def advance(self, count: int, **figures: float | str) -> None:
        self.done += count
        self.figures.update(figures)
        now = time.monotonic()
        if now - self.drawn >= (DRAW_EVERY if self.terminal.live else PLAIN_EVERY):
            self.drawn = now
            self.terminal.draw(self._line(now))

    def _line(self, now: float) -> str:
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        amount = f"{self.done:,}/{self.total:,}" if self.total else f"{self.done:,}"
        parts = [f"{self.name}  {amount} {self.unit}s", f"{rate:,.1f}/s"]
        if self.total and rate and self.done < self.total:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        parts += [f"{name} {value(figure)}" for name, figure in self.figures.items()]
        return "  ".join(parts)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, InputError):  # its message is to be the only line
            if self.terminal.live:
                self.terminal.draw("")
            return
        now = time.monotonic()
        how = "in" if kind is None else "stopped after"
        self.terminal.draw(self._line(now), f"  {how} {duration(now - self.started)}")
        if self.terminal.live:
            self.terminal.write("\n")
