"""How idle OpenMP threads wait. Commands set it; programs that import the package keep their own setting."""

from __future__ import annotations

import os

CHOSEN_BY_THE_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SPIN_COUNT = 1_000  # iterations of a loop, a few microseconds; libgomp's own default is 300,000


def bound_spinning() -> None:
    """Let idle OpenMP threads sleep soon, unless the user has set how they wait. Call it before torch is loaded.

    Spinning threads start the next operation a little sooner. But on a shared machine they hold cores that working
    threads need, and a step takes ten times as long (`python -m benchmarks loaded`). Child processes inherit the
    setting.
    """
    if not any(name in os.environ for name in CHOSEN_BY_THE_USER):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
