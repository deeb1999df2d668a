"""How long OpenMP's threads spin is decided before torch is loaded, and only by commands."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch  # noqa: F401, so that its OpenMP is there

from ldlm import waiting

COMMAND = "from ldlm.cli import main; main(['train', '--dump-config'], standalone_mode=False)"
LIBRARY = "import ldlm"


@cache
def libgomp():
    """The path of the OpenMP that torch loads, which reads the environment when it is loaded."""
    return next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line)


def spin_count(code, **environment):
    """What libgomp says it was told, in a new process that runs `code`; its default differs between machines.

    It is loaded without torch, which would take seconds, but for `code` that imports torch itself.
    """
    code = code if "import torch" in code else f"{code}; import ctypes; ctypes.CDLL({libgomp()!r})"
    env = {k: v for k, v in os.environ.items() if k not in waiting.CHOSEN_BY_THE_USER}
    env |= {"OMP_DISPLAY_ENV": "verbose", **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    return re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)[1]


@pytest.mark.parametrize(
    "chosen", [{"GOMP_SPINCOUNT": "77"}, {"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}]
)
def test_what_the_user_has_chosen_stays(chosen):
    assert spin_count(COMMAND, **chosen) == spin_count(LIBRARY, **chosen)


def test_a_command_bounds_the_spinning_and_a_program_that_imports_the_package_does_not():
    assert spin_count(COMMAND) == spin_count(f"{COMMAND}; import torch") == str(waiting.SPIN_COUNT)
    assert spin_count(LIBRARY) != str(waiting.SPIN_COUNT)
