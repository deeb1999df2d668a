"""Results as text, and progress on stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from ldlm.errors import InputError
from ldlm.progress import Progress, Task

PLAIN_EVERY = 30.0  # seconds between lines where there is no terminal
DRAW_EVERY = 0.1


def json_line(result: Any) -> str:
    """A result as one line of strict JSON; `InputError` names a number that JSON has no word for."""
    if found := next(_not_finite(result, ""), None):
        raise InputError(f"the result can't be printed as JSON, for {found}; what it was made from is damaged")
    return json.dumps(result, ensure_ascii=False, allow_nan=False)


def _not_finite(value: Any, where: str) -> Iterator[str]:
    """Where NaN or infinity stands in plain data, and which of them."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{where.lstrip('.') or 'it'} is {value}"
    inside = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    )
    for name, item in inside:
        yield from _not_finite(item, f"{where}.{name}")


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns, the first left-aligned and the others right-aligned."""
    cells = [list(map(str, headers)), *([value(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def pairs(values: Mapping[str, Any], indent: int = 0) -> str:
    """One `name  value` line per entry, nested ones indented."""
    width = max((len(name) for name in values), default=0)
    lines = []
    for name, entry in values.items():
        if isinstance(entry, Mapping):
            lines += [" " * indent + name, pairs(entry, indent + 2)]
        elif "bytes" in name and isinstance(entry, int):
            lines.append(f"{' ' * indent}{name.ljust(width)}  {entry:,} ({size(entry)})")
        else:
            lines.append(f"{' ' * indent}{name.ljust(width)}  {value(entry)}")
    return "\n".join(lines)


def value(entry: Any) -> str:
    """A number with the digits one wants to read."""
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


def size(count: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class Terminal(Progress):
    """A line that redraws itself on a terminal; elsewhere a plain line every 30 seconds. Always on stderr."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr

    def task(self, name: str, total: int, unit: str, done: int = 0) -> Task:
        return TerminalTask(self.stream, name, total, unit, done)

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class TerminalTask(Task):
    """One task's line: share, rate, remaining time, figures. `total` 0 means unknown."""

    def __init__(self, stream: TextIO, name: str, total: int, unit: str, done: int) -> None:
        self.stream, self.name, self.total, self.unit = stream, name, total, unit
        self.first = self.done = done
        self.figures: dict[str, float | str] = {}
        self.live = stream.isatty()
        self.started = self.drawn = time.monotonic()

    def advance(self, count: int, **figures: float | str) -> None:
        self.done += count
        self.figures.update(figures)
        now = time.monotonic()
        if now - self.drawn >= (DRAW_EVERY if self.live else PLAIN_EVERY):
            self.drawn = now
            self._draw(self._line(now))

    def _line(self, now: float) -> str:
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        amount = f"{self.done:,}/{self.total:,}" if self.total else f"{self.done:,}"
        parts = [f"{self.name}  {amount} {self.unit}s", f"{rate:,.1f}/s"]
        if self.total and rate and self.done < self.total:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        parts += [f"{name} {value(figure)}" for name, figure in self.figures.items()]
        return "  ".join(parts)

    def _draw(self, line: str) -> None:
        self.stream.write(f"\r\x1b[2K{line}" if self.live else f"{line}\n")
        self.stream.flush()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, InputError):  # its one line says it all
            if self.live:
                self._draw("")
            return
        now = time.monotonic()
        self._draw(f"{self._line(now)}  {'in' if kind is None else 'stopped after'} {duration(now - self.started)}")
        if self.live:
            self.stream.write("\n")
