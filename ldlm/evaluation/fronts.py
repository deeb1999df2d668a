"""Several runs on one frontier: the scores and the cost of each run with each of its ways to draw (Fig. 1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ldlm import markdown
from ldlm.evaluation.frontier import INTERVALS, External, compared, with_interval
from ldlm.evaluation.scores import SetScores


@dataclass(frozen=True, kw_only=True)
class Point:
    """Texts drawn from a run in one of its ways at one budget, and their scores."""

    run: str
    method: str
    way: str  # in words; the points of a way make a line
    budget: int  # network evaluations per text, at most
    rows: int  # of the sampler
    evaluations: float  # of the network, as counted: the mean over batches of texts
    seconds: float  # per text
    gen_ppl: float | None  # None if no text has a token to score
    entropy: float  # nats
    diversity: float
    intervals: Mapping[str, list[float] | None] | None = None  # [low, high] of gen_ppl and of entropy; not recorded
    num_texts: int
    diversity_texts: int | None = None  # None: not recorded
    batch_size: int | None = None  # texts at a time, if the number of evaluations depends on it
    sampler: Mapping[str, Any]  # its settings

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Point:
        """Inverse of `to_json`."""
        return cls(**{field.name: row[field.name] for field in fields(cls) if field.name in row})

    def to_json(self) -> dict[str, Any]:
        """The fields by name; `batch_size` only where it matters, and intervals unless an earlier version had none."""
        optional = ("batch_size", "intervals")
        return {name: value for name, value in asdict(self).items() if name not in optional or value is not None}


@dataclass(frozen=True, kw_only=True)
class Fronts:
    """All findings of the sweeps of several runs, or of the sweep of one rival."""

    points: Sequence[Point]
    runs: Mapping[str, Mapping[str, Any]]  # by name: method, checkpoint, precision and device
    externals: Mapping[External, SetScores]
    real: SetScores | None  # of the reference
    about: Mapping[str, Any]  # what all figures depend on, by key in the JSON

    def to_json(self) -> dict[str, Any]:
        """The content of `frontier.json`, and of the `sweep.json` of a rival."""
        return {
            "points": [point.to_json() for point in self.points],
            "runs": {name: dict(about) for name, about in self.runs.items()},
            **compared(self.externals, self.real),
            **self.about,
        }

    def table(self) -> str:
        """All points by budget, and the settings of each way (Markdown). Ends with a newline."""
        summary = self.to_json()
        head, rows = written(summary)
        runs = (
            f"- {name}: {one['method']} at step {one['step']:,}, {one['precision']} on {one['device']}"
            for name, one in self.runs.items()
        )
        ways = (f"- {name}, {way}: {_words(settings)}" for (name, way), settings in common(summary["points"]).items())
        known = [INTERVALS] if self.real is not None or any(point.intervals for point in self.points) else []
        parts = [
            f"Scorer {self.about['scorer']}, {self.about['texts']:,} texts each; diversity of "
            f"{self.about['diversity_texts']:,} texts of each; boundaries {self.about['boundaries']}.",
            "\n".join(runs),
            "## Every run at each budget",
            markdown.table(head, rows),
            " ".join([*known, COUNTED_AS, NO_WIN]),
            "## Settings of the samplers",
            "\n".join(ways),
        ]
        return "\n\n".join(parts) + "\n"


SHOWN = ("name", "steps")  # settings that a table already shows, as the way and the rows
COUNTED_AS = (
    "Rows are steps of the sampler; evaluations are counted calls of the network. A sampler that reuses an evaluation "
    "until a token of the batch changes saves fewer of them the more texts it draws at a time."
)
NO_WIN = "A low perplexity at an entropy far below that of real text is no win: it comes from repetition."


def lines(points: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The points by run and way, in the order of their budgets."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for point in points:
        found.setdefault((point["run"], point["way"]), []).append(point)
    return {key: sorted(rows, key=lambda row: row["budget"]) for key, rows in found.items()}


def common(points: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """By run and way, the sampler's settings that are the same at all budgets, except its name and steps."""
    return {
        key: {
            name: value
            for name, value in rows[0]["sampler"].items()
            if name not in SHOWN and all(row["sampler"][name] == value for row in rows)
        }
        for key, rows in lines(points).items()
    }


# ----------------------------------------------------------------------------------------------------------------------
# The table

Cell = str | float | None
_FORMATS = {"gen. ppl": ".1f", "entropy": ".3f", "to real": "+.3f", "diversity": ".3f", "s/text": ".4f"}


def cells(summary: Mapping[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    """Head and rows of a frontier's table, from its JSON: the points by budget, other models, and real text.

    `to real` is the entropy minus that of real text.
    """
    head = ["budget", "run", "drawn by", "rows", "evaluations", "gen. ppl", "entropy", "to real", "diversity", "s/text"]
    real, same = summary["real"], common(summary["points"])

    def figures(row: Mapping[str, Any]) -> list[Cell]:
        to_real = None if real is None else row["entropy"] - real["entropy"]
        return [row["gen_ppl"], row["entropy"], to_real, row["diversity"], row.get("seconds")]

    rows: list[list[Cell]] = []
    for point in _by_budget(summary):
        known = same[point["run"], point["way"]]
        varying = {name: value for name, value in point["sampler"].items() if name not in {*known, *SHOWN}}
        way = ": ".join(filter(None, (point["way"], _words(varying))))
        rows.append([point["budget"], point["run"], way, point["rows"], point["evaluations"], *figures(point)])
    rows += [["", one["name"], "", "", one["nfe"], *figures(one)] for one in summary["externals"]]
    if real is not None:
        rows.append(["", "real text", "", "", "", *figures(real)])
    return head, rows


def _by_budget(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(summary["points"], key=lambda row: row["budget"])


def written(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table of a frontier, with its values as text, and their intervals."""
    head, rows = cells(summary)
    measured = [*_by_budget(summary), *summary["externals"], *([summary["real"]] if summary["real"] else [])]
    names = {"gen. ppl": "gen_ppl", "entropy": "entropy"}
    return head, [
        [
            with_interval(one, names[name], _FORMATS[name]) if name in names else _cell(cell, _FORMATS.get(name, ".6g"))
            for name, cell in zip(head, row, strict=True)
        ]
        for row, one in zip(rows, measured, strict=True)
    ]


def _cell(value: Cell, shown: str) -> str:
    return "–" if value is None else value if isinstance(value, str) else format(value, shown)


def _words(settings: Mapping[str, Any]) -> str:
    """Settings in words; those that are not set are left out."""
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in settings.items()
        if value is not None
    )
