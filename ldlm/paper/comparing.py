"""When two figures of a table are apart: beyond what another training, and other texts, would change.

A difference counts if no seed of one row reaches a seed of the other, and if it exceeds what chance gives: t·s, where s
is the standard deviation between trainings, pooled over all rows of the table, and t the 97.5 % quantile of Student's
distribution with the degrees of freedom of s. Perplexities are compared by their logarithms. Rows that draw from the
same trainings, such as decoders of one run, are compared text set by text set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ldlm.paper.printed import QUANTITIES

HELD, NOT_HELD, WITHIN, ONE, MISSING = "held", "not held", "within seed spread", "one measurement", "not run"
COLLAPSED = "not comparable, for entropy"
CONFIDENCE = 0.975
ENTROPY_SLACK = 0.3  # nats by which the texts of lower perplexity may have the lower entropy
FEWEST_DIFFERENCES = 4  # of a comparison text set by text set

Place = tuple[str, str, int | None]  # row, quantity, evaluations
Values = Sequence[Sequence[float | None]]  # by training, and by set of texts


@dataclass(frozen=True)
class Noise:
    """Standard deviation of the figure of one training, and its degrees of freedom."""

    std: float
    freedom: int


@dataclass(frozen=True)
class Figures:
    """All figures of a table by place, and the trainings of each row by the names of their folders."""

    values: Mapping[Place, Values]
    runs: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def compare(self, a: Place, b: Place) -> str:
        """Verdict on a < b."""
        one, other = self._known(a), self._known(b)
        if not one or not other:
            return MISSING
        if QUANTITIES[a[1]].single and QUANTITIES[b[1]].single:
            return _verdict(_mean(one) < _mean(other), _mean(one) > _mean(other))
        if min(len(one), len(other)) < 2:
            return ONE
        difference = self._paired(a, b) if self._share_trainings(a, b) else self._unpaired(a, b)
        if difference and self._is_cheap(*((a, b) if difference > 0 else (b, a))):
            return COLLAPSED
        return _verdict(difference > 0, difference < 0)

    def _known(self, place: Place) -> list[list[float]]:
        """The values that are there, by training; those of perplexities as logarithms."""
        scale = math.log if QUANTITIES[place[1]].ratio else float
        known = [[scale(value) for value in values if value is not None] for values in self.values.get(place, ())]
        return [values for values in known if values]

    def _unpaired(self, a: Place, b: Place) -> float:
        """The difference b − a if the two are apart, else 0."""
        one, other = ([_mean([values]) for values in self._known(place)] for place in (a, b))
        difference = float(np.mean(other) - np.mean(one))
        overlap = max(one) >= min(other) if difference > 0 else max(other) >= min(one)
        noise = max((self.noise[place[1]] for place in (a, b)), key=lambda found: found.std)
        error = noise.std * math.sqrt(1 / len(one) + 1 / len(other))
        return 0.0 if overlap or abs(difference) <= _quantile(noise.freedom) * error else difference

    def _paired(self, a: Place, b: Place) -> float:
        """The difference b − a of rows that share their trainings, if the two are apart, else 0."""
        scale = math.log if QUANTITIES[a[1]].ratio else float
        both = [
            (one, other)
            for pair in zip(self.values[a], self.values[b], strict=True)
            for one, other in zip(*pair, strict=True)
        ]
        found = np.array([scale(y) - scale(x) for x, y in both if x is not None and y is not None])
        error = found.std(ddof=1) / math.sqrt(len(found))
        one_sign = (found > 0).all() or (found < 0).all()
        return float(found.mean()) if one_sign and abs(found.mean()) > _quantile(len(found) - 1) * error else 0.0

    def _share_trainings(self, a: Place, b: Place) -> bool:
        runs = self.runs.get(a[0])
        counts = [[len(sets) for sets in self.values[place]] for place in (a, b)]
        return (
            bool(runs)
            and runs == self.runs.get(b[0])
            and a[1] == b[1]
            and counts[0] == counts[1]
            and sum(counts[0]) >= FEWEST_DIFFERENCES
        )

    def _is_cheap(self, low: Place, high: Place) -> bool:
        """Whether a perplexity is low by collapse: its texts have much the lower entropy."""
        if low[1] != "gen_ppl":
            return False
        entropies = [self._known((key, "entropy", budget)) for key, _, budget in (low, high)]
        return all(entropies) and _mean(entropies[0]) < _mean(entropies[1]) - ENTROPY_SLACK

    @cached_property
    def noise(self) -> Mapping[str, Noise]:
        """What another training would change, by quantity: at least what other texts would."""
        found = {}
        for quantity in dict.fromkeys(name for _, name, _ in self.values):
            rows = [self._known(place) for place in self.values if place[1] == quantity]
            trainings = pooled([[_mean([values]) for values in row] for row in rows])
            texts = pooled([values for row in rows for values in row])
            sets = np.mean([len(values) for row in rows for values in row] or [1])
            of_texts = Noise(texts.std / math.sqrt(sets), texts.freedom)
            found[quantity] = max(trainings, of_texts, key=lambda one: one.std)
        return found


def pooled(groups: Iterable[Sequence[float]]) -> Noise:
    """The standard deviation within groups, pooled over them."""
    arrays = [np.asarray(group) for group in groups if len(group)]
    freedom = sum(len(array) - 1 for array in arrays)
    squares = sum(float(((array - array.mean()) ** 2).sum()) for array in arrays)
    return Noise(math.sqrt(squares / freedom) if freedom else 0.0, freedom)


def _verdict(less: bool, more: bool) -> str:
    return HELD if less else NOT_HELD if more else WITHIN


def _mean(values: Sequence[Sequence[float]]) -> float:
    """The mean over trainings of their means over sets of texts."""
    return float(np.mean([np.mean(sets) for sets in values]))


def _quantile(freedom: int) -> float:
    from scipy.stats import t  # takes a while to import, and the list of tables needs none

    return float(t.ppf(CONFIDENCE, freedom))
