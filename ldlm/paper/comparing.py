"""When two figures of a table are apart: beyond what another training, and other texts, would change.

A difference counts if no seed of one row reaches a seed of the other, and if it exceeds t times the standard deviation
of a difference. That comes from the spread between trainings, pooled over the rows of the table, or a row's own where
that is larger: quiet rows say nothing of a noisy one. t is the 97.5 % quantile of Student's distribution with the
degrees of freedom of the pooled spread. Perplexities are compared by their logarithms. Rows that draw from the same
trainings, such as decoders of one run, are compared training by training, if there are enough of them to tell how much
the difference itself varies.

How often chance sets equal rows apart depends on how unequally rows vary; docs/paper.md says it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ldlm.evaluation import intervals
from ldlm.paper.printed import QUANTITIES

HELD, NOT_HELD, WITHIN, ONE, MISSING = "held", "not held", "within seed spread", "one measurement", "not run"
COLLAPSED = "not comparable, for entropy"
ENTROPY_SLACK = 0.3  # nats by which the texts of lower perplexity may have the lower entropy
FEWEST = 3  # degrees of freedom of a comparison training by training

Place = tuple[str, str, int | None]  # row, quantity, evaluations
Values = Sequence[Sequence[float | None]]  # by training, and by set of texts


@dataclass(frozen=True)
class Noise:
    """Standard deviation of the figure of one training, and its degrees of freedom."""

    std: float
    freedom: float

    @property
    def quantile(self) -> float:
        """t: Student's 97.5 % quantile; 0 without any degree of freedom."""
        return intervals.student(self.freedom) if self.freedom else 0.0

    @property
    def bound(self) -> float:
        """t·s: what chance gives in 5 % of cases, in both directions together; 0 without any spread."""
        return self.quantile * self.std

    def of(self, values: Sequence[float]) -> float:
        """The standard deviation of figures of one row: this one, or their own where that is larger."""
        return max(self.std, float(np.std(values, ddof=1)))


@dataclass(frozen=True)
class Figures:
    """All figures of a table by place, and the trainings of each row by the names of their folders."""

    values: Mapping[Place, Values]
    runs: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def compare(self, a: Place, b: Place) -> str:
        """Verdict on a < b, two figures of one quantity or, if they are measured once, of any."""
        one, other = self.means(a), self.means(b)
        if not one or not other:
            return MISSING
        if QUANTITIES[a[1]].single and QUANTITIES[b[1]].single:
            return _verdict(_mean(other) - _mean(one))
        if min(len(one), len(other)) < 2:
            return ONE
        shared = self._shared(a, b)
        difference = self._unpaired(a, b) if shared is None else _paired(shared)
        if difference and self._is_cheap(*((a, b) if difference > 0 else (b, a))):
            return COLLAPSED
        return _verdict(difference)

    def means(self, place: Place) -> dict[int, float]:
        """The mean over sets of texts by training, for those that are there; of the logarithms of perplexities."""
        return {number: _mean(values) for number, values in self._known(place).items()}

    def _known(self, place: Place) -> dict[int, list[float]]:
        scale = math.log if QUANTITIES[place[1]].ratio else float
        known = {
            number: [scale(value) for value in values if value is not None]
            for number, values in enumerate(self.values.get(place, ()))
        }
        return {number: values for number, values in known.items() if values}

    def _unpaired(self, a: Place, b: Place) -> float:
        """The difference b − a of rows with trainings of their own, if the two are apart, else 0."""
        one, other = ([*self.means(place).values()] for place in (a, b))
        noise = self._noise(a[1], a[2])
        bound = noise.quantile * math.sqrt(sum(noise.of(values) ** 2 / len(values) for values in (one, other)))
        difference = _mean(other) - _mean(one)
        overlap = max(one) >= min(other) if difference > 0 else max(other) >= min(one)
        return 0.0 if overlap or abs(difference) <= bound else difference

    def _shared(self, a: Place, b: Place) -> np.ndarray | None:
        """Means (R, T) of the R rows with the trainings of a and b, which come first; None if they are too few."""
        if a[1:] != b[1:] or not self.runs.get(a[0]) or self.runs[a[0]] != self.runs.get(b[0]):
            return None
        keys = [key for key in dict.fromkeys((a[0], b[0], *self.runs)) if self.runs[key] == self.runs[a[0]]]
        rows = [self.means((key, *a[1:])) for key in keys]
        trainings = sorted(rows[0].keys() & rows[1].keys())
        found = np.array([[row[one] for one in trainings] for row in rows if row.keys() >= {*trainings}])
        return found if (found.shape[0] - 1) * (found.shape[1] - 1) >= FEWEST else None

    def _is_cheap(self, low: Place, high: Place) -> bool:
        """Whether a perplexity is low by collapse: its texts have much the lower entropy."""
        entropy = QUANTITIES[low[1]].entropy
        if entropy is None:
            return False
        one, other = (self.means((key, entropy, budget)) for key, _, budget in (low, high))
        return bool(one and other) and _mean(one) < _mean(other) - ENTROPY_SLACK

    def _noise(self, quantity: str, budget: int | None) -> Noise:
        """Spread of a figure between trainings, pooled over the rows; at least the spread between sets of texts.

        Rows with the same trainings, which vary together, count as one.
        """
        alike: dict[object, list[dict[int, list[float]]]] = {}
        for place in self.values:
            if place[1:] == (quantity, budget):
                alike.setdefault(tuple(self.runs.get(place[0], ())) or place[0], []).append(self._known(place))
        trainings = pooled([[_mean(values) for values in row.values()] for row in rows] for rows in alike.values())
        sets = [[row.get(number, []) for row in rows] for rows in alike.values() for number in set().union(*rows)]
        texts, size = pooled(sets), np.mean([len(values) for rows in sets for values in rows if values])
        of_texts = Noise(texts.std / math.sqrt(size), texts.freedom)
        return max(trainings, of_texts, key=lambda one: one.bound)


def _paired(y_RT: np.ndarray) -> float:
    """The difference of the second and the first row, if the two are apart beyond how differences vary, else 0.

    How much differences vary is pooled over the rows; if that of the two varies more, by its own. What all rows of a
    training have in common is taken out; the rest varies with (R − 1)(T − 1) degrees of freedom.
    """
    rows, trainings = y_RT.shape
    rest_RT = y_RT - y_RT.mean(0) - y_RT.mean(1, keepdims=True) + y_RT.mean()
    freedom = (rows - 1) * (trainings - 1)
    noise = Noise(math.sqrt(2 * float((rest_RT**2).sum()) / freedom), freedom)  # of a difference of two rows
    differences = y_RT[1] - y_RT[0]
    apart = abs(differences.mean()) > noise.quantile * noise.of(differences) / math.sqrt(trainings)
    one_sign = (differences > 0).all() or (differences < 0).all()
    return float(differences.mean()) if apart and one_sign else 0.0


def pooled(groups: Iterable[Sequence[Sequence[float]]]) -> Noise:
    """The standard deviation within sequences, pooled over groups, each of which counts as much as one sequence."""
    squares, freedom = 0.0, 0.0
    for group in groups:
        arrays = [np.asarray(values) for values in group if len(values)]
        if arrays:
            squares += float(np.mean([((array - array.mean()) ** 2).sum() for array in arrays]))
            freedom += float(np.mean([len(array) - 1 for array in arrays]))
    return Noise(math.sqrt(squares / freedom) if freedom else 0.0, freedom)


def _verdict(difference: float) -> str:
    return HELD if difference > 0 else NOT_HELD if difference < 0 else WITHIN


def _mean(values: Iterable[float] | Mapping[int, float]) -> float:
    return float(np.mean([*(values.values() if isinstance(values, Mapping) else values)]))
