"""A table or figure as measured: figures with their spread beside the paper's, and verdicts on the orderings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldlm import files, markdown
from ldlm.paper import findings, orderings, origin
from ldlm.paper.comparing import Figures, Place, Values
from ldlm.paper.exhibits import Exhibit
from ldlm.paper.orderings import Judged
from ldlm.paper.origin import Origin
from ldlm.paper.plan import Plan
from ldlm.paper.printed import QUANTITIES, shown
from ldlm.paper.rows import Row
from ldlm.paper.settings import TINY


@dataclass(frozen=True)
class Cell:
    """A figure of a row over seeds."""

    by_seed: tuple[tuple[float | None, ...], ...]  # for each training seed, one value per sampling seed
    trainings: int  # as planned

    @property
    def values(self) -> list[float]:
        """One figure per seed: a mean per training, or one per sampling seed if a single training is planned."""
        known = [[value for value in seed if value is not None] for seed in self.by_seed]
        return [float(np.mean(seed)) for seed in known if seed] if self.trainings > 1 else known[0]

    @property
    def mean(self) -> float | None:
        """Mean over the values; None without any."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def std(self) -> float | None:
        """Standard deviation of a sample; None for fewer than two values."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Result:
    """Figures and verdicts of a table or figure."""

    plan: Plan
    cells: Mapping[Place, Cell]
    statements: Sequence[Judged]

    @property
    def exhibit(self) -> Exhibit:
        """The table or figure."""
        return self.plan.exhibit

    def to_json(self, command: str, text: Mapping[str, Any] | None, measured: Origin) -> dict[str, Any]:
        """The record that is committed: figures, verdicts, sizes, hardware, date and command."""
        size = self.plan.size
        return {
            "exhibit": self.exhibit.name,
            "title": self.exhibit.title,
            "scale": size.scale,
            "date": measured.date,
            "hardware": measured.hardware,
            "command": command,
            "versions": measured.versions,
            "text": None if text is None else dict(text),
            "seeds": self.plan.trainings,
            "sampling_seeds": self.plan.draws,
            "rows": [self._row(row) for row in self._rows()],
            "statements": [
                {"words": orderings.words(self.exhibit, one.statement), **one.to_json()} for one in self.statements
            ],
        }

    def _rows(self) -> list[Row]:
        rows = [row for group in self.exhibit.at(self.plan.size.scale) for row in group.rows]
        return [row for row in rows if row.key in self.plan.chosen]

    def _row(self, row: Row) -> dict[str, Any]:
        figures = []
        for (key, quantity, budget), cell in self.cells.items():
            if key == row.key:
                printed = row.printed.get(budget, {}).get(quantity)
                figures.append(
                    {
                        "quantity": quantity,
                        "evaluations": budget,
                        "by_seed": [list(seed) for seed in cell.by_seed],
                        "mean": cell.mean,
                        "std": cell.std,
                        "paper": None if printed is None else printed.text,
                    }
                )
        return {"row": row.key, "name": row.name, "steps": self._steps(row), "figures": figures}

    def _steps(self, row: Row) -> int | None:
        size = self.plan.size
        trained = any(planned.run is not None for planned in self.plan.rows if planned.row.key == row.key)
        return (size.steps or row.tiny.steps) if trained and size.scale == TINY else None

    def _steps_of(self, rows: Sequence[Row]) -> str:
        """`, 3,000 steps` of rows that were all trained for as many; rows of other groups may have others."""
        steps = {self._steps(row) for row in rows}
        (only,) = steps if len(steps) == 1 else (None,)
        return "" if only is None else f", {only:,} steps"

    # ------------------------------------------------------------------------------------------------------------------
    # As text

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of the table: our figure and the paper's for each column."""
        columns = self.exhibit.columns
        head = [""]
        for name in columns:
            head += [QUANTITIES[name].heading, *(["paper"] if self._is_printed(name) else [])]
        rows: list[list[str]] = []
        for group in self.exhibit.at(self.plan.size.scale):
            chosen = [row for row in group.rows if row.key in self.plan.chosen]
            if group.title and chosen:
                rows.append([f"*{group.title}{self._steps_of(chosen)}*", *[""] * (len(head) - 1)])
            for row in chosen:
                rows += self._lines(row, columns)
        return head, rows

    def _lines(self, row: Row, columns: Sequence[str]) -> list[list[str]]:
        """A line for each budget of a row, or one line without budgets."""
        budgets = [None] if row.real or not self.exhibit.budgets else self.exhibit.budgets_at(self.plan.size.scale)
        lines = []
        for budget in budgets:
            cells = []
            for quantity in columns:
                printed = row.printed.get(budget, {}).get(quantity)
                cells.append(self._shown((row.key, quantity, budget)))
                if self._is_printed(quantity):
                    cells.append("" if printed is None else printed.text)
            name = row.name if budget is None else f"{row.name}, {budget} evaluations"
            lines.append([name, *cells])
        return lines

    def _is_printed(self, quantity: str) -> bool:
        """Whether the paper prints figures for a column; for curves it has only pictures."""
        return any(quantity in cells for row in self.exhibit.rows.values() for cells in row.printed.values())

    def _shown(self, place: Place) -> str:
        cell = self.cells.get(place)
        if cell is None or cell.mean is None:
            return "–"
        spread = "" if cell.std is None else f" ± {shown(place[1], cell.std)}"
        return f"{shown(place[1], cell.mean)}{spread}"

    def verdicts(self) -> list[str]:
        """A line for each statement."""
        return [f"{orderings.words(self.exhibit, one.statement)}: {orderings.verdict(one)}" for one in self.statements]

    def markdown(self, record: Mapping[str, Any]) -> str:
        """The page of the table: its settings, the table, and the statements."""
        parts = [f"# {self.exhibit.label}: {self.exhibit.title}", caption(record), markdown.table(*self.table())]
        if self.statements:
            parts += ["The paper's orderings:", "\n".join(f"- {line}" for line in self.verdicts())]
        return "\n\n".join([*parts, f"`{record['command']}`"]) + "\n"


def caption(record: Mapping[str, Any]) -> str:
    """The line above a table: scale, seeds, hardware and date of its figures."""
    trainings, sets = record["seeds"], record["sampling_seeds"]
    steps = sorted({row["steps"] for row in record["rows"] if row["steps"] is not None})
    where = record["hardware"]
    when = f"Reported on {record['date']}." if where is None else f"{where}, {record['date']}."
    if trainings == 0:
        return f"Computed, nothing is trained. {when}"
    trained = f", {' and '.join(f'{count:,}' for count in steps)} training steps" if steps else ""
    seeds = _counted(trainings, "training seed")
    if sets:
        seeds += f", {_counted(sets, 'sampling seed')}{' each' if trainings > 1 else ''}"
    over = "training seeds" if trainings > 1 else "sampling seeds" if sets > 1 else None
    spread = "" if over is None else f"; mean ± standard deviation over {over}"
    return f"Scale {record['scale']}{trained}; {seeds}{spread}. {when}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def collect(plan: Plan, folder: Path) -> Result:
    """Collect the figures of everything in the folder."""
    found: dict[Place, dict[int, tuple[float | None, ...]]] = {}
    for planned in plan.rows:
        for (quantity, budget), values in findings.of_row(folder, planned, plan.exhibit.columns).items():
            found.setdefault((planned.row.key, quantity, budget), {})[planned.seed] = tuple(values)
    seeds = {key: [one.seed for one in plan.rows if one.row.key == key] for key, _, _ in found}
    cells = {  # a training without a figure keeps its place
        place: Cell(tuple(by_seed.get(seed, ()) for seed in seeds[place[0]]), plan.size.seeds)
        for place, by_seed in found.items()
    }
    figures = Figures({place: _by_training(plan, cell) for place, cell in cells.items()}, _runs(plan))
    statements = [
        orderings.judge(plan.exhibit, one, figures)
        for one in plan.exhibit.statements
        if all(key in plan.chosen for key, _ in one.places)
    ]
    return Result(plan, cells, statements)


def _by_training(plan: Plan, cell: Cell) -> Values:
    """Figures by training, and by set of texts. The paper's deviations are over the sets of one training."""
    if plan.size.scale == TINY or plan.size.seeds > 1:
        return cell.by_seed
    return [(value,) for seed in cell.by_seed for value in seed]


def _runs(plan: Plan) -> dict[str, tuple[str, ...]]:
    """The trainings of each row."""
    keys = dict.fromkeys(planned.row.key for planned in plan.rows)
    return {key: tuple(one.run for one in plan.rows if one.row.key == key and one.run is not None) for key in keys}


def write(result: Result, folder: Path, command: str, *, report: bool = False) -> dict[str, Any]:
    """Write the table as JSON and Markdown into the folder; return the record.

    With `report`, this process has measured nothing but what takes no job.
    """
    text, jobs = folder / "text" / "text.json", result.plan.jobs
    measured = origin.of_jobs(jobs, folder, here=not report or not jobs)
    record = files.finite(result.to_json(command, files.read_json(text) if text.exists() else None, measured))
    stem = f"{result.exhibit.name}-{result.plan.size.scale}"
    files.write_json(folder / f"{stem}.json", record)
    files.write_atomic(folder / f"{stem}.md", result.markdown(record))
    return record
