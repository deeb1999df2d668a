"""The cost of leases, and a simulation of a thousand workers that die and stall.

Claims per second are those of one process in a folder on this disk, each with its lock, lease file and release, beside
the bare locks of earlier versions. A shard takes about a minute on a GPU, and its lease one claim and two heartbeats.

The simulation runs the real `share` and the real leases (claims, heartbeats, and taking from the dead) for a thousand
workers on machines that see none of each other's locks. Simulated are the time, the files, which are in memory, and the
making of a shard, which is a sleep. Workers die, and a scheduler restarts them; some stall for longer than a lease
lasts, and then continue. The ideal is a job without deaths and stalls.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ldlm.cli import show
from ldlm.features.shared_work import share
from ldlm.leases import EXPIRY, HEARTBEAT, Leases
from ldlm.locks import tried

CLAIMS = 3_000
WORKERS = 1_000
SHARD, SPREAD = 60.0, 0.2  # seconds per shard, and the share by which shards differ from that
HOURS, BETWEEN_DEATHS, BETWEEN_STALLS = 10.0, 24.0, 24.0  # of each worker
RESTART, STALL = 120.0, 900.0  # seconds
MOST_TWICE, MOST_TIME = 0.01, 1.2


def run(folder: Path) -> dict[str, Any]:
    """Measure everything; files are made below `folder`."""
    return {"cost": cost(folder), "simulation": Simulation(WORKERS, HOURS).run()}


def cost(folder: Path) -> dict[str, Any]:
    """Claims per second, seconds of a claim and of a heartbeat, and their share of a shard's time."""
    made = Leases(folder / "claims", folder / "claims", heartbeat=None)

    def claim(number: int) -> None:
        lease = made.claim(f"train-{number}")
        assert lease is not None
        lease.release()

    def lock(number: int) -> None:
        with tried(folder / "locks" / f"train-{number}"):
            pass

    claiming, locking = (_seconds(one, CLAIMS) for one in (claim, lock))
    lease = made.claim("one")
    assert lease is not None
    beating = _seconds(lambda number: lease.renew(), 100)
    lease.release()
    spent = claiming + SHARD / HEARTBEAT * beating
    return {
        "claims_per_second": 1 / claiming,
        "locks_per_second": 1 / locking,
        "claim_seconds": claiming,
        "beat_seconds": beating,
        "shard_seconds": SHARD,
        "share_of_shard": spent / SHARD,
    }


def _seconds(work: Callable[[int], object], count: int) -> float:
    started = time.perf_counter()
    for number in range(count):
        work(number)
    return (time.perf_counter() - started) / count


# ----------------------------------------------------------------------------------------------------------------------
# Many workers


class Died(BaseException):
    """A worker's machine is gone."""


class Clock:
    """Simulated seconds. One thread runs at a time: the one whose time has come."""

    def __init__(self) -> None:
        self.now, self.count = 0.0, 0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.back = threading.Semaphore(0)

    def __call__(self) -> float:
        return self.now

    def at(self, when: float, work: Callable[[], None]) -> None:
        """Do `work` at that time."""
        self.count += 1
        heapq.heappush(self.events, (when, self.count, work))

    def sleep(self, seconds: float) -> None:
        """Let others run for that long; to be called by workers' threads."""
        mine = threading.Semaphore(0)

        def wake() -> None:
            mine.release()
            self.back.acquire()

        self.at(self.now + seconds, wake)
        self.back.release()
        mine.acquire()

    def run(self) -> None:
        """Run until no event is left."""
        while self.events:
            self.now, _, work = heapq.heappop(self.events)
            work()


class Mortal:
    """Lease files in memory, which a dead worker can't reach, so it cleans nothing up."""

    def __init__(self, life: Life) -> None:
        self.life, self.files = life, life.simulation.files

    def create(self, name: str, body: bytes) -> MortalLease | None:
        """Make a lease; None if there is one already."""
        self.life.check()
        if name in self.files:
            return None
        self.files[name] = File(body)
        return MortalLease(name, self.files[name], self.life)

    def read(self, name: str) -> bytes | None:
        """The body of a lease; None if there is none."""
        found = self.files.get(name)
        return None if found is None else found.body

    def take(self, name: str, body: bytes) -> bool:
        """Remove a lease if it has this body."""
        taken = self.read(name) == body
        if taken:
            del self.files[name]
        self.life.simulation.seen["taken"] += taken
        return taken

    def names(self, prefix: str) -> list[str]:
        """The names of the leases that begin with `prefix`."""
        return [name for name in self.files if name.startswith(prefix)]


class File:
    """A file, which its writer holds open even if another has removed its name."""

    def __init__(self, body: bytes) -> None:
        self.body = body


class MortalLease:
    """A lease that its holder leaves behind when it dies."""

    def __init__(self, name: str, file: File, life: Life) -> None:
        self.name, self.file, self.life = name, file, life

    def renew(self, body: bytes) -> None:
        """Write another body."""
        self.file.body = body

    def lost(self) -> bool:
        """Whether another has taken the lease."""
        return self.life.simulation.files.get(self.name) is not self.file

    def release(self) -> None:
        """Remove the lease if it is still this one; the dead leave it behind."""
        if not self.life.dead and not self.lost():
            del self.life.simulation.files[self.name]


class Life:
    """A worker from its start to its death, or to the end of the work."""

    def __init__(self, simulation: Simulation, number: int) -> None:
        self.simulation, self.number, self.clock = simulation, number, simulation.clock
        self.chance = random.Random(f"{number} {simulation.clock.now}")
        self.ends = self.clock.now + self.chance.expovariate(1 / (3600 * BETWEEN_DEATHS))
        self.stalls = self.clock.now + self.chance.expovariate(1 / (3600 * BETWEEN_STALLS))
        self.stalled_until = 0.0
        self.over = self.dead = False
        self.leases = Leases(
            Path("simulated"), None, clock=self.clock, sleep=self.clock.sleep, here=str(number), heartbeat=None
        )
        self.leases.places = Mortal(self)

    def check(self) -> None:
        """Raise `Died` if its time has come."""
        self.dead = self.clock.now >= self.ends
        if self.dead:
            raise Died

    def beat(self) -> None:
        """Heartbeats, as a real worker's thread sends them; none while the worker is stalled or after its death."""
        if not self.over and self.clock.now < self.ends:
            if self.clock.now >= self.stalled_until:
                self.leases.beat()
            self.clock.at(self.clock.now + HEARTBEAT, self.beat)

    def pass_time(self, seconds: float) -> None:
        """Work for that long, or until death; a stall makes it longer."""
        if self.clock.now + seconds > self.stalls:
            self.stalled_until = self.stalls + STALL
            self.stalls += STALL + self.chance.expovariate(1 / (3600 * BETWEEN_STALLS))
            self.simulation.seen["stalls"] += 1
            seconds += STALL
        self.clock.sleep(min(seconds, max(0.0, self.ends - self.clock.now)))
        self.check()

    def make(self, shard: int) -> None:
        """Make a shard and record it."""
        self.pass_time(SHARD * self.chance.uniform(1 - SPREAD, 1 + SPREAD))
        self.simulation.record(shard)

    def work(self) -> None:
        """Work on all shards, together with the others: its own stretch first, then theirs from the end."""
        self.clock.at(self.clock.now + HEARTBEAT, self.beat)
        try:
            share(
                self.simulation.order(self.number),
                done=self.simulation.made.__contains__,
                work=self.make,
                claim=lambda shard: self.leases.claim(str(shard)),
                recorded=lambda: self.simulation.made,
                clock=self.clock,
                sleep=self.pass_time,
            )
        finally:
            self.over = True


class Simulation:
    """A number of workers, and a job that would ideally take them that many hours."""

    def __init__(self, workers: int, hours: float) -> None:
        self.workers = workers
        self.files: dict[str, File] = {}
        self.shards = round(workers * hours * 3600 / SHARD)
        self.clock = Clock()
        self.made: set[int] = set()
        each = self.shards // workers
        self.left = [each] * workers  # shards left in each worker's stretch
        self.seen: Counter[str] = Counter()
        self.last = 0.0

    def record(self, shard: int) -> None:
        """Record a shard; only the first record counts."""
        self.seen["twice"] += shard in self.made
        if shard not in self.made:
            self.left[shard * self.workers // self.shards] -= 1
        self.made.add(shard)
        self.last = self.clock.now

    def order(self, number: int) -> Iterator[int]:
        """A worker's own stretch, and then those of others from the end, starting with the next worker's.

        It mirrors `shares.in_turn`, in which workers continue with the previous one's, and skips stretches that are
        done. It is a generator, since lists of all shards for a thousand workers would take gigabytes.
        """
        for turn in range(self.workers):
            one = (number + turn) % self.workers
            if not self.left[one]:  # `share` would skip each of its shards
                continue
            first, last = (self.shards * edge // self.workers for edge in (one, one + 1))
            yield from range(first, last) if turn == 0 else range(last - 1, first - 1, -1)

    def live(self, number: int) -> None:
        """Live a worker's lives, one after the other."""
        while True:
            try:
                Life(self, number).work()
                break
            except Died:
                self.seen["deaths"] += 1
                if len(self.made) == self.shards:
                    break
                self.clock.sleep(RESTART)
        self.clock.back.release()

    def run(self) -> dict[str, Any]:
        """Let all workers work to the end."""
        started = time.perf_counter()
        threading.stack_size(2**18)
        for number in range(self.workers):

            def begin(number: int = number) -> None:
                threading.Thread(target=self.live, args=(number,), daemon=True).start()
                self.clock.back.acquire()

            self.clock.at(0.0, begin)
        self.clock.run()
        threading.stack_size(0)
        ideal = self.shards * SHARD / self.workers
        return {
            "workers": self.workers,
            "shards": self.shards,
            "lost": self.shards - len(self.made),
            **{name: self.seen[name] for name in ("deaths", "stalls", "taken", "twice")},
            "share_twice": self.seen["twice"] / self.shards,
            "hours": self.last / 3600,
            "ideal_hours": ideal / 3600,
            "ratio": self.last / ideal,
            "seconds": time.perf_counter() - started,
        }


def report(figures: dict[str, Any]) -> str:
    """The figures as text."""
    one, all_ = figures["cost"], figures["simulation"]
    return "\n".join(
        [
            "leases: what they cost one process on this disk",
            "",
            show.table(
                ("", ""),
                [
                    ("claims and ends per second", f"{one['claims_per_second']:,.0f}"),
                    ("the bare locks of before, per second", f"{one['locks_per_second']:,.0f}"),
                    ("microseconds of a claim and its end", f"{1e6 * one['claim_seconds']:.0f}"),
                    ("microseconds of a sign of life", f"{1e6 * one['beat_seconds']:.0f}"),
                    (f"share of a shard of {one['shard_seconds']:.0f} s", f"{one['share_of_shard']:.6%}"),
                ],
            ),
            "",
            f"simulated: {all_['workers']:,} workers, shards of {SHARD:.0f} s ± {SPREAD:.0%}, each worker dead every "
            f"{BETWEEN_DEATHS:.0f} h and back after {RESTART:.0f} s, and",
            f"stalled for {STALL / 60:.0f} min every {BETWEEN_STALLS:.0f} h, where a lease lasts {EXPIRY / 60:.0f} "
            f"(aims: none lost, made twice ≤ {MOST_TWICE:.0%}, end ≤ {MOST_TIME} × ideal)",
            "",
            show.table(
                ("", ""),
                [
                    ("shards", f"{all_['shards']:,}"),
                    ("deaths, stalls", f"{all_['deaths']:,}, {all_['stalls']:,}"),
                    ("leases taken from the dead and the stalled", f"{all_['taken']:,}"),
                    ("shards lost", f"{all_['lost']:,}"),
                    ("shards made twice", f"{all_['twice']:,} ({all_['share_twice']:.4%})"),
                    ("end after, of ideal", f"{all_['hours']:.2f} h, {all_['ratio']:.3f}"),
                ],
            ),
        ]
    )
