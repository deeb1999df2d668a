"""Orderings that the paper states, judged by our measurements: held, not held, or within the seed spread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ldlm.paper.comparing import COLLAPSED, HELD, MISSING, NOT_HELD, ONE, WITHIN, Figures
from ldlm.paper.exhibits import Exhibit, Statement
from ldlm.paper.printed import QUANTITIES

VERDICTS = (HELD, WITHIN, NOT_HELD, COLLAPSED, ONE, MISSING)


@dataclass(frozen=True)
class Judged:
    """A statement and its verdict; `paper` tells whether the paper's own printed figures have this order."""

    statement: Statement
    verdict: str
    pairs: tuple[str, ...]  # verdicts of neighbours
    ends: str | None  # verdict on the first and the last; None of a pair
    paper: bool | None  # None where the paper prints no figures of it

    def to_json(self) -> dict[str, Any]:
        """All fields by name."""
        one = self.statement
        return {
            "rising": list(one.rising),
            "quantity": one.quantity,
            "row": one.row,
            "evaluations": one.at,
            "verdict": self.verdict,
            "pairs": list(self.pairs),
            "ends": self.ends,
            "paper": self.paper,
        }


def judge(exhibit: Exhibit, statement: Statement, measured: Figures) -> Judged:
    """A statement, by the figures of one table or figure."""
    places = [(key, quantity, statement.at) for key, quantity in statement.places]
    pairs = tuple(measured.compare(a, b) for a, b in pairwise(places))
    ends = measured.compare(places[0], places[-1]) if len(places) > 2 else None
    return Judged(statement, _together(pairs, ends), pairs, ends, _printed(exhibit, statement))


def _together(pairs: Sequence[str], ends: str | None) -> str:
    """Verdict on a chain: the worst of its pairs, and not held where its ends are reversed."""
    if ends == NOT_HELD:
        return NOT_HELD
    return next(verdict for verdict in (NOT_HELD, MISSING, ONE, COLLAPSED, WITHIN, HELD) if verdict in pairs)


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
    if statement.row is not None:
        chain = " < ".join(QUANTITIES[name].heading for name in statement.rising)
        return f"{exhibit.rows[statement.row].name}{at}: {chain}"
    assert statement.quantity is not None
    chain = " < ".join(exhibit.rows[key].name for key in statement.rising)
    return f"{QUANTITIES[statement.quantity].heading}{at}: {chain}"


def verdict(one: Judged) -> str:
    """The verdict as text; of a chain whose neighbours are not all apart it tells if its ends are."""
    return f"{one.verdict}, its ends held" if one.ends == HELD != one.verdict else one.verdict


def counts(verdicts: Iterable[str]) -> str:
    """Counts like `5 held, 1 within seed spread`, in the order of `VERDICTS`."""
    found = Counter(verdicts)
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS if found[verdict])
