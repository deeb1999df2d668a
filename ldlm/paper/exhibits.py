"""The tables and figures of the paper, read strictly from `exhibits/NAME.yaml`: rows, columns and statements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ldlm import files
from ldlm.errors import InputError
from ldlm.paper import rows
from ldlm.paper.printed import quantity
from ldlm.paper.rows import Row, check_keys, flag

FOLDER = Path(__file__).with_name("exhibits")
NAMES = (*(f"table-{number}" for number in range(1, 10)), *(f"figure-{number}" for number in (1, 3, 4, 5, 6)))
MEASURES = ("texts", "paths", "training", "times", "schedule")
PICTURES = ("frontier", "dynamics", "noise", "warmup", "times")
KEYS = {
    "title", "section", "shows", "columns", "measures", "picture", "groups", "statements", "budgets", "tiny_budgets",
    "tiny", "evaluations", "texts",
}  # fmt: skip


@dataclass(frozen=True)
class Statement:
    """An ordering that the paper states: a quantity over rows, or quantities of one row, in rising order."""

    rising: tuple[str, ...]  # keys of rows, or quantities of `row`
    quantity: str | None = None
    row: str | None = None
    at: int | None = None  # evaluations, in tables with budgets

    @property
    def places(self) -> list[tuple[str, str]]:
        """The compared values in order, each as (key of the row, quantity)."""
        if self.row is not None:
            return [(self.row, name) for name in self.rising]
        assert self.quantity is not None
        return [(key, self.quantity) for key in self.rising]


@dataclass(frozen=True)
class Group:
    """Rows shown together, and what is measured for them."""

    title: str
    rows: tuple[Row, ...]
    measures: str  # texts | paths | training | times | schedule
    tiny: bool  # whether it can be run at --scale tiny, without a GPU


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A table or figure."""

    name: str
    title: str
    section: str
    shows: str
    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    statements: tuple[Statement, ...]
    picture: str | None
    budgets: tuple[int, ...]  # evaluations of the denoiser, at --scale paper; empty if there is no sweep
    tiny_budgets: tuple[int, ...]
    evaluations: int  # if there is no sweep
    texts: int  # of each sampling seed, at --scale paper

    @property
    def label(self) -> str:
        """The name as the paper writes it: `Table 1`."""
        return self.name.replace("-", " ").capitalize()

    @property
    def tiny(self) -> bool:
        """Whether any of it can be run at `--scale tiny`."""
        return any(group.tiny for group in self.groups)

    @property
    def rows(self) -> dict[str, Row]:
        """All rows by key."""
        return {row.key: row for group in self.groups for row in group.rows}

    def at(self, scale: str) -> Iterator[Group]:
        """Groups that are run at a scale."""
        return (group for group in self.groups if group.tiny or scale == "paper")

    def budgets_at(self, scale: str) -> tuple[int, ...]:
        """Budgets of evaluations at a scale."""
        return self.budgets if scale == "paper" else self.tiny_budgets or self.budgets

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Keys of the rows given by key or printed name, by default all; `InputError` for a name without a row."""
        found = []
        for name in names:
            there = [row.key for row in self.rows.values() if name in (row.key, row.short, row.name)]
            if not there:
                known = ", ".join(row.short for row in self.rows.values())
                raise InputError(f"{self.label} has no row {name!r}; it has {known}")
            found += there
        return list(dict.fromkeys(found)) or list(self.rows)


@cache
def load(name: str) -> Exhibit:
    """The table or figure of that name, like `table-1`; `InputError` lists the names."""
    if name not in NAMES:
        raise InputError(f"there is no {name!r}; choose list, or one of {', '.join(NAMES)}")
    return parse(name, files.read_yaml(FOLDER / f"{name}.yaml"))


def parse(name: str, data: Mapping[str, Any]) -> Exhibit:
    """A table or figure from its file's settings; `InputError`, naming it and the key, for anything unknown."""
    check_keys(name, data, KEYS, needed=("title", "section", "shows", "columns", "groups", "statements"))
    picture = data.get("picture")
    if picture is not None and picture not in PICTURES:
        raise InputError(f"{name}: there is no picture {picture!r}; known are {', '.join(PICTURES)}")
    groups = tuple(_group(name, one, data) for one in data["groups"])
    known = {row.key for group in groups for row in group.rows}
    return Exhibit(
        name=name,
        title=str(data["title"]),
        section=str(data["section"]),
        shows=str(data["shows"]),
        columns=tuple(quantity(one, f"{name}, columns") for one in data["columns"]),
        groups=groups,
        statements=tuple(_statement(name, one, known) for one in data["statements"]),
        picture=picture,
        budgets=tuple(data.get("budgets", ())),
        tiny_budgets=tuple(data.get("tiny_budgets", ())),
        evaluations=int(data.get("evaluations", 128)),
        texts=int(data.get("texts", 1_000)),
    )


def _group(name: str, data: Any, above: Mapping[str, Any]) -> Group:
    where = f"{name}, groups"
    if not isinstance(data, dict):
        raise InputError(f"{where}: a group has rows, not {data!r}")
    check_keys(where, data, {"title", "rows", "measures", "tiny"}, needed=("rows",))
    measures = data.get("measures", above.get("measures", "texts"))
    if measures not in MEASURES:
        raise InputError(f"{where}: measures is one of {', '.join(MEASURES)}, not {measures!r}")
    tiny = flag(where, data, "tiny", flag(name, above, "tiny", True))
    return Group(str(data.get("title", "")), tuple(map(rows.load, data["rows"])), measures, tiny)


def _statement(name: str, data: Any, known: set[str]) -> Statement:
    where = f"{name}, statements"
    if not isinstance(data, dict):
        raise InputError(f"{where}: a statement has `rising`, and `quantity` or `row`, not {data!r}")
    check_keys(where, data, {"rising", "quantity", "row", "at"}, needed=("rising",))
    if ("quantity" in data) == ("row" in data):
        raise InputError(f"{where}: a statement compares a quantity of rows, or quantities of one row")
    made = Statement(tuple(data["rising"]), data.get("quantity"), data.get("row"), data.get("at"))
    for key, compared in made.places:
        quantity(compared, where)
        if key not in known:
            raise InputError(f"{where}: {key} is no row of {name}")
    return made
