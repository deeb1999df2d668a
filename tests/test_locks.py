"""Locks on folders and files: exclusive or shared, and gone with the process that held them."""

import errno
import fcntl
import subprocess
import sys
from functools import partial

import pytest

from ldlm.errors import InputError
from ldlm.locks import exclusive_lock, passed_on, shared_lock, tried

TRY = """
import sys
from pathlib import Path
from ldlm.locks import tried
with tried(Path(sys.argv[1])) as mine:
    print(mine)
"""


def test_a_lock_that_another_process_holds_is_not_given(tmp_path):
    command = [sys.executable, "-c", TRY, str(tmp_path / "l")]
    with tried(tmp_path / "l") as mine:
        assert mine
        held = subprocess.run(command, capture_output=True, text=True, check=True)
    free = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (held.stdout.strip(), free.stdout.strip()) == ("False", "True")


@pytest.mark.parametrize("lock", [passed_on, exclusive_lock, partial(exclusive_lock, wait=True), shared_lock])
def test_a_file_system_without_locks_is_refused_in_one_line(tmp_path, monkeypatch, lock):
    def flock(descriptor, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    where = tmp_path / "lock" if lock is passed_on else tmp_path
    with pytest.raises(InputError, match=rf"{where} can't be locked \(Function not impl.*--output"), lock(where):
        pass


def test_many_work_in_a_folder_or_one_has_it_to_itself(tmp_path):
    busy = pytest.raises(InputError, match=f"another process is at work in {tmp_path}")
    with shared_lock(tmp_path), shared_lock(tmp_path), busy, exclusive_lock(tmp_path):
        pass
    with exclusive_lock(tmp_path):
        for lock in (exclusive_lock, shared_lock):
            with pytest.raises(InputError, match=f"another process .*{tmp_path}"), lock(tmp_path):
                pass
    with shared_lock(tmp_path):
        pass
