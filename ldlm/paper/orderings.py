"""Orderings that the paper states, judged by our measurements: held, not held, or within the seed spread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ldlm.paper.exhibits import Exhibit, Statement
from ldlm.paper.printed import QUANTITIES

HELD, NOT_HELD, WITHIN, ONE, MISSING = "held", "not held", "within seed spread", "one measurement", "not run"
VERDICTS = (HELD, WITHIN, NOT_HELD, ONE, MISSING)
Figures = Mapping[tuple[str, str, int | None], Sequence[float]]  # by row, quantity and evaluations


@dataclass(frozen=True)
class Judged:
    """A statement and its verdict; `paper` tells whether the paper's own printed figures have this order."""

    statement: Statement
    verdict: str
    pairs: tuple[str, ...]  # verdicts of neighbours
    paper: bool | None  # None if the paper does not print all its figures

    def to_json(self) -> dict[str, Any]:
        """All fields by name."""
        one = self.statement
        return {
            "rising": list(one.rising),
            "quantity": one.figure,
            "row": one.of,
            "evaluations": one.at,
            "verdict": self.verdict,
            "pairs": list(self.pairs),
            "paper": self.paper,
        }


def judge(exhibit: Exhibit, statement: Statement, measured: Figures) -> Judged:
    """The verdict on a statement, from the measured figures: one value per seed for each."""
    values = [measured.get((key, quantity, statement.at), ()) for key, quantity in statement.places]
    single = all(QUANTITIES[quantity].single for _, quantity in statement.places)
    pairs = tuple(_pair(a, b, single) for a, b in pairwise(values))
    return Judged(statement, _together(pairs), pairs, _printed(exhibit, statement))


def _pair(a: Sequence[float], b: Sequence[float], single: bool) -> str:
    """Verdict on a < b: decided only if the ranges of their values do not overlap."""
    if not a or not b:
        return MISSING
    if min(len(a), len(b)) < 2 and not single:
        return ONE
    if max(a) < min(b):
        return HELD
    return NOT_HELD if min(a) > max(b) else WITHIN


def _together(pairs: Sequence[str]) -> str:
    """Verdict on a chain: the worst of its pairs."""
    return next(verdict for verdict in (NOT_HELD, MISSING, ONE, WITHIN, HELD) if verdict in pairs)


def _printed(exhibit: Exhibit, statement: Statement) -> bool | None:
    values = []
    for key, quantity in statement.places:
        cell = exhibit.rows[key].printed.get(statement.at, {}).get(quantity)
        if cell is None:
            return None
        values.append(cell.mean)
    return all(a < b for a, b in pairwise(values))


def words(exhibit: Exhibit, statement: Statement) -> str:
    """The statement as text: `Gen. PPL: MSE < CE + MSE < CE`."""
    at = "" if statement.at is None else f" at {statement.at} evaluations"
    if statement.of is not None:
        chain = " < ".join(QUANTITIES[name].heading for name in statement.rising)
        return f"{exhibit.rows[statement.of].name}{at}: {chain}"
    assert statement.figure is not None
    chain = " < ".join(exhibit.rows[key].name for key in statement.rising)
    return f"{QUANTITIES[statement.figure].heading}{at}: {chain}"


def counts(verdicts: Iterable[str]) -> str:
    """Counts like `5 held, 1 within seed spread`, in the order of `VERDICTS`."""
    found = Counter(verdicts)
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS if found[verdict])
