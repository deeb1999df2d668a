"""How long a test waits for another process before it calls it hung: a multiple of what one takes to start here."""

import subprocess
import sys
import time
from functools import cache

STARTS = 60  # a process that starts, works on tiny data and ends takes a few of them, and a loaded machine a few more


@cache
def start_up() -> float:
    """Seconds from the start to the end of a process that imports torch and transformers, measured once."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch, transformers"], check=True)
    return time.monotonic() - began


def patience(starts: float = STARTS) -> float:
    """Seconds that `starts` such processes take, one after the other."""
    return starts * start_up()
