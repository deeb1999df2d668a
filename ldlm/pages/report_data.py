"""The parts of a report: the files of a run as records, and the sections and blocks of its page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic

from ldlm.config import AnyTrainConfig
from ldlm.pages import curves
from ldlm.pages.chart import Chart, number
from ldlm.pages.curves import Config_co

Row = Mapping[str, Any]
Figure = tuple[str, str, str]  # name, value, and what to compare it with


@dataclass(frozen=True)
class SampleSet:
    """A file that `ldlm sample` wrote: its record, and all rows."""

    name: str  # of the file, relative to the run's folder
    about: Row
    rows: Sequence[Row]


@dataclass(frozen=True)
class Report(Generic[Config_co]):
    """The records in a run's files, as the stages wrote them; None for those that do not exist."""

    name: str
    config: Config_co
    manifest: Row | None  # of a complete run
    status: Row | None
    features: Row | None
    parameters: Mapping[str, int]  # by part; empty while the features are unknown
    metrics: Sequence[Row]
    decoders: Sequence[Row]  # oldest first
    samples: Sequence[SampleSet]
    special_tokens: Sequence[str]
    sweep: Row | None
    verdict: str  # of the sweep
    interpolation: Row | None
    path: Sequence[Row]  # the texts of the first pair, from one end to the other
    trace: Row | None
    likelihood: Row | None

    @property
    def course(self) -> curves.Course[Config_co]:
        """The measurements taken during the training."""
        return curves.Course(self.config, self.metrics)

    @property
    def complete(self) -> bool:
        """Whether the training has taken all its steps."""
        return self.manifest is not None

    @property
    def step(self) -> int:
        """The last known step."""
        steps = [line["step"] for line in self.metrics]
        return max([0, *steps, *(record["step"] for record in (self.manifest, self.status) if record is not None)])

    @property
    def tokens(self) -> int:
        """Number of tokens trained on; 0 while their number per row is unknown."""
        per_row = 0 if self.features is None else self.features["shapes"]["seq_len"]
        return self.step * self.config.batch_size * per_row

    def lines(self, kind: str) -> list[Row]:
        """The lines of the metrics of that kind."""
        return curves.of_kind(self.metrics, kind)


AnyReport = Report[AnyTrainConfig]


# ----------------------------------------------------------------------------------------------------------------------
# Sections, and the blocks in them; `report.html` shows each kind


@dataclass(frozen=True)
class Charts:
    """Charts side by side."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Table:
    """A table that scrolls by itself if it is wider than the page; the first column names the row."""

    kind: ClassVar[str] = "table"
    name: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Hint:
    """A note on what is missing, and the command that makes it."""

    kind: ClassVar[str] = "hint"
    text: str
    command: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading within a section, with a sentence below it."""

    kind: ClassVar[str] = "heading"
    title: str
    lead: str


@dataclass(frozen=True)
class Text:
    """A text in pieces, each marked if it is a special token, and a caption."""

    about: str
    pieces: Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class Texts:
    """Texts as a list; with a title in `folded`, it is folded at first and opened by that title."""

    kind: ClassVar[str] = "texts"
    texts: Sequence[Text]
    folded: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and values; `wide` ones have a line each."""

    kind: ClassVar[str] = "facts"
    title: str
    values: Mapping[str, Any]
    wide: bool = False


@dataclass(frozen=True)
class Settings:
    """Settings, one a line."""

    kind: ClassVar[str] = "settings"
    title: str
    lines: Sequence[str]


Block = Charts | Table | Hint | Heading | Texts | Facts | Settings


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    lead: str
    blocks: Sequence[Block]


NOTHING_YET = Hint("Nothing has been measured yet.")


def charts(made: Iterable[Chart]) -> list[Block]:
    """The charts that have values, as a block; a hint if none has."""
    there = [chart for chart in made if chart.has_values]
    return [Charts(there)] if there else [NOTHING_YET]


def missing(report: AnyReport, id: str, title: str, text: str, command: str) -> Section | None:
    """A section that names the command which makes what it lacks; None while the run is in progress.

    `RUN` in the command stands for the run's name.
    """
    return Section(id, title, "", [Hint(text, command.replace("RUN", report.name))]) if report.complete else None


def texts(report: AnyReport, found: Iterable[tuple[str, str]], folded: str = "") -> Texts:
    """Texts, each with a caption, their special tokens marked."""
    special = sorted(report.special_tokens, key=len, reverse=True)
    pattern = "|".join(map(re.escape, special))

    def marked(text: str) -> list[tuple[str, bool]]:
        return [(piece, piece in special) for piece in (re.split(f"({pattern})", text) if pattern else [text])]

    return Texts([Text(about, marked(text)) for about, text in found], folded)


def of_step(report: AnyReport, step: int) -> str:
    """Words for the step of the run from which something was made."""
    return f"the model at step {step:,}" + (f" (it is now at {report.step:,})" if step != report.step else "")


def model_name(name: str) -> str:
    """A model's id, or the last part of a folder's path: a report may be passed on, so it shows no paths."""
    return Path(name).name if Path(name).is_absolute() else name


def cell(value: float | None, shown: Any = number) -> str:
    """A number in a table; a dash if there is none."""
    return "–" if value is None else shown(value)
