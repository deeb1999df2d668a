"""The speed of training: rows and tokens per second, waiting for data, and use of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SETTLED = 30.0  # seconds after which a run's speed is compared with the machine's


@dataclass
class Speedometer:
    """Measures the speed of training between two readings, leaving out what is not training."""

    step: int  # at the last reading
    rows_per_step: int
    tokens_per_row: int
    flops_per_token: Callable[[int], int] | None = None  # of step s
    flops_limit: Callable[[], float] | None = None  # FLOP/s of plain matrix products on all devices
    _started: float = field(default_factory=time.perf_counter)
    _looked: float = field(default_factory=time.perf_counter)
    _waited: float = 0.0  # seconds since the last reading
    _paused: float = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block out, since it is not training."""
        started = time.perf_counter()
        yield
        self._paused += time.perf_counter() - started

    def look(self, step: int) -> dict[str, float]:
        """Figures of the steps since the last reading, as recorded under `timing` in the metrics."""
        now = time.perf_counter()
        seconds = max(1e-9, now - self._looked - self._paused)
        rows_per_second, waited = (step - self.step) * self.rows_per_step / seconds, self._waited
        self.step, self._looked, self._waited, self._paused = step, now, 0.0, 0.0
        timing = {
            "rows_per_second": round(rows_per_second, 2),
            "tokens_per_second": round(rows_per_second * self.tokens_per_row),
            "data_wait": round(waited / seconds, 4),
        }
        if self.flops_per_token is not None and self.flops_limit is not None and now - self._started > SETTLED:
            flops_per_second = rows_per_second * self.tokens_per_row * self.flops_per_token(step - 1)
            timing["flops_utilisation"] = round(flops_per_second / self.flops_limit(), 4)
        return timing
