"""How malloc keeps freed memory. Commands set it; programs that import the package keep their own setting."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # from malloc.h


def keep_freed() -> None:
    """Let glibc keep up to 2 GiB of freed memory for reuse. Call it before threads are started.

    By default glibc returns large blocks to the kernel at once, and a training step on a CPU spends a third of its time
    on new pages (benchmarks/LOG.md). Other C libraries have no mallopt and are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_ARENA_MAX, 1)  # arenas of other threads would still return anything above 64 MiB
