"""How a process keeps its memory, and shares the cores."""

import subprocess
import sys
import threading

import pytest
import torch

from ldlm import runtime

PROBE = """
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a fault for a huge page would stand for 512
import numpy as np
from ldlm import memory
if sys.argv[1] == "kept":
    memory.keep_freed()
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
    assert faults("kept") < pages / 100
    assert faults("as it is") > pages / 100, "so that the other figure says something"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),  # a process alone has torch's own number
        ({"LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}, None),  # told so
        ({"LOCAL_WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}, 4),  # as torchrun starts them
        ({"LOCAL_WORLD_SIZE": "3", "OMP_NUM_THREADS": "2"}, None),  # told so
        ({"LOCAL_WORLD_SIZE": "16", "OMP_NUM_THREADS": "1"}, 1),
    ],
)
def test_processes_of_a_job_share_the_cores(monkeypatch, environment, expected):
    chosen = []
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda process: range(12))
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    runtime.device("cpu")
    assert chosen == ([] if expected is None else [expected])


def test_a_lone_thread_leaves_the_number_of_threads_of_all_others_as_it_is():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        inside, later = [], []

        def work(seen):
            torch.zeros(2**17).half().float()  # an operation that torch would share out
            seen.append(torch.get_num_threads())

        for kind, seen in ((runtime.LoneThread, inside), (threading.Thread, later)):
            thread = kind(target=work, args=(seen,))
            thread.start()
            assert torch.get_num_threads() == 3
            thread.join()
        assert (inside, later) == ([1], [3])
    finally:
        torch.set_num_threads(before)


def test_what_ran_on_the_processor_is_not_said_of_the_gpu_beside_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    assert runtime.occasion(torch.device("cpu"))["hardware"] == runtime.processor()
    assert runtime.occasion(torch.device("cuda"))["hardware"] == runtime.occasion()["hardware"] == "H200"
