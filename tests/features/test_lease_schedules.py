"""Random schedules of workers on nodes that see no lock of each other's: no item is lost, and none is mixed.

The workers are threads that run the real code, on real files, one at a time. Each stops before every operation that
changes the names of files, and the schedule decides who goes on, for whom time passes without a sign of life, and who
dies there. Machines differ in last bits: what a worker makes of an item has its name in it.
"""

import json
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ldlm import files
from ldlm.features import decided
from ldlm.features.shared_work import share
from ldlm.leases import EXPIRY, Leases
from ldlm.location import Bucket, ObjectPath

ITEMS, NODES, WORKERS = 2, 2, 3  # two of the workers are on one machine
PARTS = ("states", "scales")
OPERATIONS = ("open", "link", "replace", "rename", "unlink")
here = threading.local()  # .worker of a thread


class Killed(BaseException):
    pass


class Objects(Bucket):
    """An object store in memory, in which a worker stops before each request."""

    def call(self, operation, key, *args, **options):
        if (worker := getattr(here, "worker", None)) is not None:
            worker.stop()
        return super().call(operation, key, *args, **options)


class Worker:
    """A process: a thread that goes on when it is told so, to the next operation."""

    def __init__(self, name, node, root, scratch, clock):
        self.name, self.node, self.root = name, node, root
        self.go, self.back = threading.Semaphore(0), threading.Semaphore(0)
        self.dead = self.ended = False
        self.error = None
        own = scratch / f"locks-{node}"
        here_now = lambda: clock() + 60 * node  # noqa: E731  their clocks differ by a minute
        self.leases = Leases(root / "claims", own, clock=here_now, here=str(node), heartbeat=None)
        self.thread = threading.Thread(target=self.live, daemon=True)
        self.thread.start()

    def live(self):
        here.worker = self
        try:
            self.stop()
            share(
                range(ITEMS),
                done=lambda item: record(self.root, item).exists(),
                work=self.make,
                claim=lambda item: self.leases.claim(str(item)),
                clock=self.leases.clock,
                sleep=lambda seconds: self.stop(),
            )
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.ended = True
        self.back.release()

    def make(self, item):
        made = {f"{part}/{item}": f"{part} of {item} by {self.name}".encode() for part in PARTS}
        decided.put(self.root, made, record(self.root, item), {"item": item, "by": self.name})

    def stop(self):
        """Wait until this worker may go on."""
        if self.dead:
            raise Killed
        self.back.release()
        self.go.acquire()
        if self.dead:
            raise Killed

    def step(self):
        if not self.ended:
            self.go.release()
            self.back.acquire()
            if self.error is not None:
                raise self.error

    def kill(self):
        """End it where it is: nothing that it would have cleaned up is, but its locks are free."""
        self.dead = True
        if not self.ended:
            self.go.release()
        self.thread.join()

    def beat(self):
        for lease in list(self.leases._held):
            if not lease._using.locked():  # it is at its end
                lease.renew()


def record(root, item):
    return root / "ledger" / f"{item}.json"


class Schedules(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.scratch, self.now, self.recorded = Path(tempfile.mkdtemp()), 0.0, {}
        self.root = self.place()
        self.patch = pytest.MonkeyPatch()
        for name in OPERATIONS:
            self.patch.setattr(os, name, self.stopping(getattr(os, name)))
        self.patch.setattr(os, "fsync", lambda descriptor: None)
        self.born = 0
        self.workers = [self.worker(number % NODES) for number in range(WORKERS)]

    def place(self):
        """The folder or the prefix in which the workers share their items."""
        (self.scratch / "store").mkdir()
        return self.scratch / "store"

    @staticmethod
    def stopping(real):
        def call(*args, **options):
            if (worker := getattr(here, "worker", None)) is not None:
                worker.stop()
            return real(*args, **options)

        return call

    def worker(self, node):
        self.born += 1
        made = Worker(f"worker {self.born}", node, self.root, self.scratch, lambda: self.now)
        made.back.acquire()  # it stands at its beginning
        return made

    @rule(number=st.integers(0, WORKERS - 1), count=st.integers(1, 12))
    def go_on(self, number, count):
        for _ in range(count):
            self.workers[number].step()

    @rule(number=st.integers(0, WORKERS - 1))
    def die_and_start_again(self, number):
        self.workers[number].kill()
        self.workers[number] = self.worker(self.workers[number].node)

    @rule(alive=st.sets(st.integers(0, WORKERS - 1)), seconds=st.sampled_from([30, EXPIRY / 2, EXPIRY]))
    def time_passes(self, alive, seconds):
        """With signs of life of some. The others are stopped, or their disk is full."""
        self.now += seconds
        for number in alive:
            self.workers[number].beat()

    @rule(stopped=st.integers(0, WORKERS - 1), by=st.integers(0, WORKERS - 1), count=st.integers(1, 30))
    def overtake(self, stopped, by, count):
        """One is stopped for longer than its lease lasts, and another takes what it held."""
        for number in set(range(WORKERS)) - {stopped}:
            for _ in range(10):
                self.workers[number].step()
        self.time_passes(set(range(WORKERS)) - {stopped}, EXPIRY)
        for _ in range(count):
            self.workers[by].step()

    @invariant()
    def what_is_recorded_is_whole_and_stays(self):
        for item in range(ITEMS) if hasattr(self, "root") else ():
            if (data := files.content(record(self.root, item))) is not None:
                assert self.recorded.setdefault(item, data) == data
                found = json.loads(data)
                for part in PARTS:
                    expected = f"{part} of {item} by {found['by']}".encode()
                    assert (self.root / part / str(item)).read_bytes() == expected
                    assert found["files"][f"{part}/{item}"]["sha256"] == files.sha256(expected)

    def teardown(self):
        if not hasattr(self, "root"):
            return
        try:
            for _ in range(200):
                for worker in self.workers:
                    for _ in range(40):
                        worker.step()
                self.now += EXPIRY
                if all(worker.ended for worker in self.workers):
                    break
            self.what_is_recorded_is_whole_and_stays()
            assert self.recorded.keys() == set(range(ITEMS))
            assert all(worker.ended for worker in self.workers)
        finally:
            for worker in self.workers:
                worker.kill()
            self.patch.undo()
            shutil.rmtree(self.scratch)


class SchedulesOfObjects(Schedules):
    """Schedules of workers that share an object store instead of a folder."""

    def place(self):
        memory = pytest.importorskip("obstore.store", reason="obstore is in the extra `object-stores`").MemoryStore()
        bucket = Objects("memory://store")
        bucket.__dict__["store"] = memory  # in place of that of its address
        return ObjectPath(bucket, "store")


@pytest.mark.parametrize("machine", [Schedules, SchedulesOfObjects])
@pytest.mark.parametrize("schedules", [100, pytest.param(3000, marks=pytest.mark.slow)])
def test_no_schedule_loses_an_item_or_mixes_two_makers(schedules, machine):
    how = settings(max_examples=schedules, stateful_step_count=30, deadline=None, database=None, derandomize=True)
    run_state_machine_as_test(machine, settings=how)
