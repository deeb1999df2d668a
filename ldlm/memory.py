"""How the process keeps its memory: a matter for a command, and none for a program that imports this package."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h


def keep_freed() -> None:
    """Let glibc keep up to 2 GiB of what is freed, and hand it out again. To be called before there are threads.

    It would give large blocks back to the kernel at once, and a training step on a CPU would spend a third of its time
    on new pages (benchmarks/LOG.md). Other C libraries have no mallopt, and go without.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_ARENA_MAX, 1)  # the other threads' own arenas give back what is above 64 MiB whatever they are told
