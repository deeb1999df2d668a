"""Dividing work among processes: every item once, a dead worker's item done by another."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from patience import patience

from ldlm.features import shared_work
from ldlm.features.shared_work import share
from ldlm.leases import Leases

WORKER = """
import sys, time
from pathlib import Path
from ldlm.features.shared_work import share
from ldlm.leases import Leases
root = Path(sys.argv[1])
leases = Leases(root / "claims", root / "claims")
def work(item):
    with open(root / f"started-{item}", "a") as file:
        file.write("x")
    time.sleep(0.05)
    (root / f"done-{item}").touch()
share(range(12), done=lambda i: (root / f"done-{i}").exists(), work=work, claim=lambda i: leases.claim(str(i)))
"""


def worker(root: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WORKER, str(root)])


def test_three_workers_do_every_item_once(tmp_path):
    workers = [worker(tmp_path) for _ in range(3)]
    assert [process.wait(timeout=patience()) for process in workers] == [0, 0, 0]
    assert [(tmp_path / f"started-{i}").read_text() for i in range(12)] == ["x"] * 12


def test_what_a_killed_worker_held_is_done_by_another(tmp_path):
    first = worker(tmp_path)
    while not (tmp_path / "started-3").exists():
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "done-11").exists()
    assert worker(tmp_path).wait(timeout=patience()) == 0
    assert all((tmp_path / f"done-{i}").exists() for i in range(12))


def leases(folder: Path) -> Leases:
    return Leases(folder, folder)


def claims(folder: Path):
    made = leases(folder)
    return lambda item: made.claim(str(item))


def test_nothing_is_done_that_is_done(tmp_path):
    worked: list[int] = []
    share([1, 2], done=lambda item: item == 1, work=worked.append, claim=claims(tmp_path))
    assert worked == [2]


def test_an_item_is_finished_while_the_next_is_worked_on_and_stays_claimed_until_then(tmp_path):
    began, order, held = threading.Event(), [], []

    def work(item):
        order.append(f"work {item}")
        if item == 1:
            began.set()
        return item * 10

    def finish(item, made):
        if item == 0:
            assert began.wait(timeout=patience())  # the next one is at work
        held.append(leases(tmp_path).claim(str(item)) is None)
        order.append(f"finish {item}: {made}")

    share(range(4), done=lambda i: False, work=work, finish=finish, claim=claims(tmp_path))
    assert held == [True] * 4
    assert [entry for entry in order if "finish" in entry] == [f"finish {i}: {10 * i}" for i in range(4)]
    # No more than one waits for its end: an item is at most two ahead of what is finished.
    assert all(order.index(f"work {i + 2}") > order.index(f"finish {i}: {10 * i}") for i in range(2))
    for item in range(4):
        with leases(tmp_path).claim(str(item)):
            pass


@pytest.mark.parametrize("bad", [0, 2, 3])
def test_what_goes_wrong_when_an_item_is_finished_is_raised_and_the_others_are_whole(tmp_path, bad):
    finished = []

    def finish(item, made):
        if item == bad:
            raise OSError("no room")
        finished.append(item)

    with pytest.raises(OSError, match="no room"):
        share(range(4), done=lambda i: False, work=lambda i: None, finish=finish, claim=claims(tmp_path))
    assert finished == list(range(bad))


def test_what_is_begun_is_finished_when_the_next_item_fails(tmp_path):
    finished = []

    def work(item):
        if item == 2:
            raise ValueError

    def finish(item, made):
        time.sleep(0.05)
        finished.append(item)

    with pytest.raises(ValueError):
        share(range(4), done=lambda i: False, work=work, finish=finish, claim=claims(tmp_path))
    assert finished == [0, 1]


def test_one_that_waits_for_many_items_of_others_looks_at_few_at_a_time():
    made, looks, counts = set(), [], []

    def soon(seconds):
        counts.append(len(looks))
        looks.clear()
        if len(counts) == 5:
            made.update(range(100))

    share(range(100), done=made.__contains__, work=made.add, claim=looks.append, sleep=soon)
    assert counts[:5] == [100 + shared_work.AT_ONCE, *[shared_work.AT_ONCE] * 4]


@pytest.mark.parametrize(("takes", "next_at"), [(0.5, 30.5), (10.0, 210.0)])
def test_the_longer_a_look_at_what_others_have_done_takes_the_rarer_it_is(takes, next_at):
    now, looks = [0.0], []

    def recorded():
        looks.append(now[0])
        now[0] += takes
        return {1}

    known = shared_work._Known(recorded, lambda: now[0])
    while len(looks) < 2:
        assert known(1)
        assert not known(2)
        now[0] += 0.25
    assert next_at <= looks[1] <= next_at + 0.5
