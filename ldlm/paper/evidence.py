"""The state of the evidence for each table and figure, from the results committed in `results/`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldlm import files
from ldlm.paper import exhibits, orderings
from ldlm.paper.comparing import HELD, MISSING, NOT_HELD, ONE
from ldlm.paper.exhibits import Exhibit

FOLDER = Path(__file__).with_name("results")
REPRODUCED, PARTLY, CONTRADICTED, UNDECIDED, NOT_RUN, NEEDS_GPU = (
    "reproduced", "partly reproduced", "contradicted", "undecided", "not run", "needs a GPU"
)  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """A table or figure and the state of its evidence."""

    exhibit: Exhibit
    state: str  # reproduced, partly reproduced, contradicted, undecided, not run, or needs a GPU
    scale: str | None  # of the committed result; None without one
    date: str | None
    verdicts: str  # how many of the paper's orderings hold; empty without a result

    def to_json(self) -> dict[str, Any]:
        """All fields, those of the table or figure included, by name."""
        one = self.exhibit
        return {
            "name": one.name,
            "title": one.title,
            "section": one.section,
            "shows": one.shows,
            "rows": len(one.rows),
            "state": self.state,
            "scale": self.scale,
            "date": self.date,
            "orderings": self.verdicts,
        }


def of_all(folder: Path = FOLDER) -> Iterator[Evidence]:
    """The evidence for every table and figure. A result at the paper's scale takes precedence over a tiny one."""
    for name in exhibits.NAMES:
        exhibit = exhibits.load(name)
        there = [path for scale in ("paper", "tiny") if (path := folder / f"{name}-{scale}.json").exists()]
        if there:
            record = files.read_json(there[0])
            verdicts = [one["verdict"] for one in record["statements"]]
            shown = orderings.counts(verdicts)
            yield Evidence(exhibit, state(record, exhibit), record["scale"], record["date"], shown)
        else:
            yield Evidence(exhibit, NOT_RUN if exhibit.tiny else NEEDS_GPU, None, None, "")


def state(record: Mapping[str, Any], exhibit: Exhibit) -> str:
    """Contradicted if an ordering is reversed; if all were measured, reproduced if all hold, partly if some do."""
    verdicts = [one["verdict"] for one in record["statements"]]
    if NOT_HELD in verdicts:
        return CONTRADICTED
    measured = len(verdicts) == len(exhibit.statements) and not {MISSING, ONE} & {*verdicts}
    if not measured or HELD not in verdicts:
        return UNDECIDED
    return REPRODUCED if {*verdicts} == {HELD} else PARTLY
