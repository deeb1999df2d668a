"""How a process keeps its memory."""

import subprocess
import sys

PROBE = """
import resource, sys
import numpy as np
from ldlm import runtime
if sys.argv[1] == "settled":
    runtime.device("cpu")
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**26, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Page faults of the third block of 64 MiB, after two of them have been freed."""
    done = subprocess.run([sys.executable, "-c", PROBE, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_what_is_freed_is_handed_out_again_without_new_pages():
    pages = 2**26 // 2**12
    assert faults("settled") < pages / 100
    assert faults("as it is") > pages / 100, "so that the other figure says something; huge pages count for 512"
