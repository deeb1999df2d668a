"""How the threads of a process wait for work: a matter for a command, and none for programs that import the package."""

from __future__ import annotations

import os

CHOSEN_BY_THE_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SPIN_COUNT = 1_000  # rounds of a loop, a few microseconds; libgomp's own default is 300,000


def bound_spinning() -> None:
    """Let OpenMP's threads sleep soon when they wait, unless the user has chosen; to be called before torch is loaded.

    Spinning threads answer the next operation a little sooner, and on a machine that others use as well they hold the
    cores that the thread they wait for needs: a step then takes ten times as long (`python -m benchmarks loaded`).
    Child processes inherit it.
    """
    if not any(name in os.environ for name in CHOSEN_BY_THE_USER):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
