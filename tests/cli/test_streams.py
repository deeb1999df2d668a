"""Commands whose stdin, stdout or stderr is closed, full or read by nobody finish their work, and their exit status is
that of the work."""

import json
import os
import subprocess
import sys

import pytest

EXTRACT = "extract-features --seq-len 16 --device cpu --output"


@pytest.fixture
def shell(gpt2, corpus, tmp_path):
    """`shell("extract-features … 2>&-")`: a command of a shell's, `ldlm` in it this one; its exit status."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "LDLM": f"{sys.executable} -m ldlm.cli"}

    def call(line):
        script = f'set -o pipefail; ldlm() {{ $LDLM "$@"; }}\n{line}'
        return subprocess.run(["bash", "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True)

    return call


def whole(store):
    """The store is sealed, and its files are what they should be: nothing else was written to them."""
    from ldlm.features.ledger import faults

    return json.loads((store / "manifest.json").read_text())["kind"] == "features" and faults(store) == []


# The second closes what the first does, and more.
@pytest.mark.parametrize("ending", [pytest.param("2>&-", marks=pytest.mark.slow), "<&- >&- 2>&-", "2>&1 | true"])
def test_the_work_is_done_whoever_listens(shell, gpt2, corpus, tmp_path, ending):
    done = shell(f"ldlm {EXTRACT} out --encoder {gpt2} --data {corpus} {ending}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert whole(tmp_path / "out")


@pytest.mark.parametrize("ending", [">&-", "<&-", "2>/dev/full", "| true", ">&- 2>&-"])
def test_a_result_that_nobody_reads_is_no_failure(shell, ending):
    done = shell(f"ldlm train --dump-config {ending}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("ending", ["2>&-", ">&- 2>&-", "2>/dev/full", "2>&1 | true"])
def test_a_refusal_has_its_status_whoever_listens(shell, ending):
    assert shell(f"ldlm train --set stepz=3 {ending}").returncode == 1


def test_a_result_that_finds_no_room_is_no_success(shell):
    done = shell("ldlm train --dump-config >/dev/full")
    assert done.returncode == 1
    assert done.stderr == "Error: No space left on device; make room and run the same command again\n"
