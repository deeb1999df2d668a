"""Dividing work among processes: every item once, a dead worker's item done by another."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldlm.claims import among, claim, entry, share, sole
from ldlm.errors import InputError

WORKER = """
import sys, time
from pathlib import Path
from ldlm.claims import share
root = Path(sys.argv[1])
def work(item):
    with open(root / f"started-{item}", "a") as file:
        file.write("x")
    time.sleep(0.05)
    (root / f"done-{item}").touch()
share(range(12), done=lambda i: (root / f"done-{i}").exists(), work=work, lock=lambda i: root / "locks" / str(i))
"""

TRY = """
import sys
from pathlib import Path
from ldlm.claims import claim
with claim(Path(sys.argv[1]), wait=False) as mine:
    print(mine)
"""


def worker(root: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WORKER, str(root)])


def test_a_lock_that_another_process_holds_is_not_given(tmp_path):
    command = [sys.executable, "-c", TRY, str(tmp_path / "l")]
    with claim(tmp_path / "l") as mine:
        assert mine
        held = subprocess.run(command, capture_output=True, text=True, check=True)
    free = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (held.stdout.strip(), free.stdout.strip()) == ("False", "True")


def test_three_workers_do_every_item_once(tmp_path):
    workers = [worker(tmp_path) for _ in range(3)]
    assert [process.wait(timeout=60) for process in workers] == [0, 0, 0]
    assert [(tmp_path / f"started-{i}").read_text() for i in range(12)] == ["x"] * 12


def test_what_a_killed_worker_held_is_done_by_another(tmp_path):
    first = worker(tmp_path)
    while not (tmp_path / "started-3").exists():
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "done-11").exists()
    assert worker(tmp_path).wait(timeout=60) == 0
    assert all((tmp_path / f"done-{i}").exists() for i in range(12))


def test_nothing_is_done_that_is_done(tmp_path):
    worked: list[int] = []
    share([1, 2], done=lambda item: item == 1, work=worked.append, lock=lambda item: tmp_path / str(item))
    assert worked == [2]


@pytest.mark.parametrize("lock", [claim, entry, sole, among])
def test_a_file_system_without_locks_is_refused_in_one_line(tmp_path, monkeypatch, lock):
    def flock(descriptor, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    where = tmp_path / "lock" if lock is claim else tmp_path
    with pytest.raises(InputError, match=rf"{where} can't be locked \(Function not impl.*--output"), lock(where):
        pass


def test_many_work_in_a_folder_or_one_has_it_to_itself(tmp_path):
    busy = pytest.raises(InputError, match=f"another process is at work in {tmp_path}")
    with among(tmp_path), among(tmp_path), busy, sole(tmp_path):
        pass
    with sole(tmp_path):
        for lock in (sole, among):
            with pytest.raises(InputError, match=f"another process .*{tmp_path}"), lock(tmp_path):
                pass
    with among(tmp_path):
        pass
