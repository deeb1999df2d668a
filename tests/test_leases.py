"""Leases: taken from the dead only, whatever the clocks, the locks and the disk; and their part in a folder's life."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import forked
import pytest
from patience import patience

from ldlm import emptying, files, leases, locks, presence
from ldlm.artifact import begin
from ldlm.config import ExtractConfig
from ldlm.errors import InputError, StorageError
from ldlm.features import ledger
from ldlm.lease_places import LeaseFiles
from ldlm.leases import Leases
from ldlm.location import Bucket, ObjectPath


class Clock:
    """A clock that is set by hand; sleeping sets it forward, and does what the others do meanwhile."""

    def __init__(self, now=0.0, meanwhile=lambda: None):
        self.now, self.meanwhile = now, meanwhile

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.meanwhile()


class Node:
    """A machine whose locks no other sees: it has a folder of them for itself, and a clock."""

    def __init__(self, shared: Path, name: str, clock: Clock, heartbeat=None):
        self.clock = clock
        self.leases = Leases(
            shared / "claims", shared.parent / name, clock=clock, sleep=clock.sleep, here=name, heartbeat=heartbeat
        )

    def process(self):
        """Another process of the machine."""
        made = Leases(self.leases.folder, self.leases.locks, clock=self.clock, here=self.leases.here, heartbeat=None)
        made.sleep = self.clock.sleep
        return made


@pytest.fixture
def nodes(tmp_path):
    """Two of them, whose clocks are a minute apart."""
    shared = tmp_path / "shared"
    return Node(shared, "one", Clock(0.0)), Node(shared, "two", Clock(60.0))


def later(nodes, seconds):
    for node in nodes:
        node.clock.now += seconds


def test_a_lease_belongs_to_one_of_two_nodes_whose_locks_are_blind_to_each_other(nodes):
    one, two = nodes
    held = one.leases.claim("a")
    assert two.leases.claim("a") is None
    assert two.leases.claim("b") is not None
    held.release()
    assert two.leases.claim("a") is not None


def test_a_lease_lasts_as_long_as_its_holder_gives_signs_of_life(nodes):
    one, two = nodes
    held = one.leases.claim("a")
    for _ in range(100):
        later(nodes, leases.HEARTBEAT)
        one.leases.beat()
        assert two.leases.claim("a") is None
    assert not held.lost()


def test_a_lease_without_signs_of_life_is_taken_after_five_minutes_of_the_observers_clock(nodes):
    one, two = nodes
    held = one.leases.claim("a")
    later(nodes, 10_000)  # which nobody has watched
    assert two.leases.claim("a") is None
    later(nodes, leases.EXPIRY - 1)
    assert two.leases.claim("a") is None
    later(nodes, 1)
    taken = two.leases.claim("a")
    assert taken is not None and held.lost() and not taken.lost()
    # Its holder wakes: neither its signs of life nor its end touch the lease of the other.
    one.leases.beat()
    held.release()
    assert not taken.lost()
    assert one.leases.claim("a") is None


@pytest.mark.parametrize("call", ["os.open", "os.write", "os.link", "os.unlink"])
def test_a_kill_while_a_lease_is_made_leaves_none_that_others_wait_for(tmp_path, call):
    """It was seen in one of sixty killed extractions: the next waited for five minutes for a lease without a body."""
    program = (
        "import os, signal, sys; from pathlib import Path; from ldlm.leases import Leases\n"
        "folder = Path(sys.argv[1]); folder.mkdir(); Leases(folder, folder).claim('before').release()\n"
        "def killed(*given, **options): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{call} = killed\n"
        "Leases(folder, folder).claim('item')"
    )
    place = tmp_path / "claims"
    assert forked.run(program, str(place), modules=("ldlm.leases",)).returncode == -signal.SIGKILL
    assert Leases(place, place, heartbeat=None).claim("item") is not None


def test_no_file_is_removed_while_it_is_open_when_a_lease_is_made(tmp_path, monkeypatch):
    """NFS would keep it under another name until it is closed, and who empties the folder can't remove that."""
    real = os.unlink

    def unlink(path, **options):
        assert str(path) not in [
            os.readlink(open_file) for open_file in Path("/proc/self/fd").iterdir() if open_file.is_symlink()
        ]
        real(path, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    lease = Leases(tmp_path / "claims", None, heartbeat=None).claim("item")
    monkeypatch.undo()
    assert not lease.lost()


def test_a_lease_is_made_where_each_name_of_a_file_has_an_inode_of_its_own(nodes, monkeypatch):
    """On sshfs a lease is told by its content, since its file looks like another under its second name."""
    one, two = nodes
    monkeypatch.setattr(
        os, "link", lambda old, new: shutil.copyfile(old, os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    )
    held = one.leases.claim("a")
    assert not held.lost()
    assert two.leases.claim("a") is None
    held.release()
    assert two.leases.claim("a") is not None


def test_a_lease_is_exclusive_on_a_file_system_without_hard_links(nodes, monkeypatch):
    one, two = nodes

    def link(*given):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    held = one.leases.claim("a")
    assert not held.lost()
    assert held._held.path.read_bytes() and two.leases.claim("a") is None
    held.release()
    assert two.leases.claim("a") is not None


def test_a_sign_of_life_that_is_under_way_is_no_loss_in_an_object_store(tmp_path):
    """The object of a lease is put before its holder knows that it was."""
    stores = pytest.importorskip("obstore.store", reason="obstore is in the extra `object-stores`")
    bucket = Bucket("memory://store")
    bucket.__dict__["store"] = stores.MemoryStore()
    place = ObjectPath(bucket, "claims")
    lease = Leases(place, tmp_path, heartbeat=None).claim("item")
    body = (place / "item.lease").read_bytes()
    (place / "item.lease").write_bytes(body.replace(b"000000000000", b"000000000001"))
    assert not lease.lost()
    (place / "item.lease").write_bytes(body.replace(b'"id": "', b'"id": "0'))
    assert lease.lost()


def test_processes_of_one_machine_that_have_lock_folders_of_their_own_are_blind_to_each_other(tmp_path):
    """Pods on one node have caches of their own and share an object store."""
    one, two = (Leases(tmp_path / "claims", tmp_path / name, heartbeat=None) for name in ("one", "two"))
    with one.claim("item"):
        assert two.claim("item") is None
    assert two.claim("item") is not None


def test_what_a_dead_process_of_the_same_machine_held_is_taken_at_once_and_a_stopped_one_keeps_it(nodes):
    one, _ = nodes
    held = one.leases.claim("a")
    assert one.process().claim("a") is None
    held._locked.close()  # as when the process dies
    assert one.process().claim("a") is not None


def test_a_stopped_process_loses_its_lease_also_to_its_own_machine(nodes):
    """The lock beside it stays with the process, and then stands for nothing."""
    one, _ = nodes
    held, other = one.leases.claim("a"), one.process()
    assert other.claim("a") is None
    later(nodes, leases.EXPIRY)
    taken = other.claim("a")
    assert taken is not None and held.lost()
    held.release()
    assert one.process().claim("a") is None  # though the lock is free now
    assert not taken.lost()


def test_of_two_that_take_a_lease_one_succeeds_and_a_new_lease_is_put_back(nodes, monkeypatch):
    """The slower one has read the old lease, and renames the new one."""
    one, two = nodes
    held, third = one.leases.claim("a"), Node(two.leases.folder.parent, "three", two.clock).leases
    for observer in (two.leases, third):
        assert observer.claim("a") is None
    later(nodes, leases.EXPIRY)
    old = two.leases.places.read("a")
    taken = two.leases.claim("a")
    assert not LeaseFiles(two.leases.folder).take("a", old)
    assert held.lost() and not taken.lost()
    assert third.claim("a") is None


def test_an_empty_lease_of_a_process_that_was_killed_at_once_expires_too(nodes):
    one, two = nodes
    one.leases.folder.mkdir(parents=True)
    (one.leases.folder / "a.lease").touch()
    for node in nodes:
        assert node.leases.claim("a") is None
    later(nodes, leases.EXPIRY)
    assert two.leases.claim("a") is not None


@pytest.mark.parametrize("call", ["pwrite", "fsync", "write"])
def test_a_sign_of_life_on_a_full_disk_harms_nothing(nodes, monkeypatch, call):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    one, two = nodes
    if call == "write":
        monkeypatch.setattr(os, call, full)
    held = one.leases.claim("a")
    monkeypatch.setattr(os, call, full)
    one.leases.beat()
    assert not held.lost()
    assert two.leases.claim("a") is None
    monkeypatch.undo()
    later(nodes, leases.HEARTBEAT)
    one.leases.beat()
    held.release()
    assert two.leases.claim("a") is not None


def test_a_sign_of_life_never_comes_after_the_end(tmp_path):
    """A descriptor that is closed may be that of another file by then."""
    made = Leases(tmp_path, tmp_path, heartbeat=None)
    held = made.claim("a")
    descriptor = held._held.descriptor
    held.release()
    with open(tmp_path / "one", "w+b") as one, open(tmp_path / "two", "w+b") as two:
        assert descriptor in (one.fileno(), two.fileno())
        held.renew()
        assert one.read() == two.read() == b""


def test_a_thread_gives_signs_of_life_while_a_lease_is_held(tmp_path):
    made = Leases(tmp_path, tmp_path, heartbeat=0.01)
    with made.claim("a"):
        before, ends = made.places.read("a"), time.monotonic() + patience()
        while made.places.read("a") == before:
            assert time.monotonic() < ends
            time.sleep(0.01)


def test_a_file_system_without_locks_needs_leases_alone(nodes, monkeypatch):
    def flock(descriptor, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    one, two = nodes
    held = one.leases.claim("a")
    assert one.process().claim("a") is None
    held.release()
    assert two.leases.claim("a") is not None


HOLDER = """
import sys, time
from pathlib import Path
from ldlm.leases import Leases
shared, own = map(Path, sys.argv[1:])
lease = Leases(shared, own, here="one", heartbeat=0.05, expiry=1.0).claim("a")
print("held", flush=True)
sys.stdin.readline()
print("lost" if lease.lost() else "kept", flush=True)
lease.release()
"""


def test_a_process_that_is_stopped_past_its_lease_notices_when_it_goes_on(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "shared"), str(tmp_path / "one")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    two = Leases(tmp_path / "shared", tmp_path / "two", here="two", heartbeat=0.05, expiry=0.5)
    holder.send_signal(signal.SIGSTOP)
    with two.turn("a") as taken:
        holder.send_signal(signal.SIGCONT)
        said, _ = holder.communicate("\n", timeout=patience())
        assert said == "lost\n"
        assert not taken.lost()
        assert two.places.names("") == ["a"]


# ----------------------------------------------------------------------------------------------------------------------
# Many who add, or one who deletes


def test_nobody_deletes_while_another_node_is_at_work(nodes, tmp_path):
    one, two = nodes
    folder = tmp_path / "shared"
    folder.mkdir()
    two.clock.meanwhile = one.leases.beat  # alive
    refused = pytest.raises(InputError, match=r"another process \(.*, process \d+\) is at work in .*shared")
    with presence.present(folder, held=one.leases), blind(), refused, presence.alone(folder, held=two.leases):
        pass
    notes = []
    two.clock.meanwhile = lambda: None
    lease = one.leases.claim("worker-of-a-dead-node")
    with blind(), presence.alone(folder, held=two.leases, note=notes.append):
        assert lease.lost()
        one.clock.meanwhile = two.leases.beat
        with pytest.raises(InputError, match=r"has .*shared to itself"), presence.present(folder, held=one.leases):
            pass
    assert len(notes) == 1 and "counts as dead in 5 min" in notes[0]
    with presence.present(folder, held=one.leases):
        pass
    assert list((folder / "claims").iterdir()) == []


def blind():
    """Locks on folders that no other node sees."""
    stack = ExitStack()
    patch = pytest.MonkeyPatch()
    stack.callback(patch.undo)
    for name in ("exclusive_lock", "shared_lock"):
        patch.setattr(presence, name, lambda folder, *, wait=False: ExitStack())
    return stack


def test_two_that_want_to_be_alone_come_one_after_the_other(nodes, tmp_path):
    one, two = nodes
    folder, order = tmp_path / "shared", []
    folder.mkdir()
    with blind():
        with presence.alone(folder, held=one.leases), ExitStack() as stack:
            two.clock.meanwhile = one.leases.beat
            with pytest.raises(InputError, match="is at work in"), presence.alone(folder, held=two.leases):
                pass
            with pytest.raises(InputError, match="is at work in"), presence.alone(folder, "none", held=two.leases):
                pass
            order.append("one")
            stack.close()
        two.clock.meanwhile = lambda: None
        with presence.alone(folder, "all", held=two.leases):
            order.append("two")
    assert order == ["one", "two"]


def test_a_worker_and_a_deleter_that_wait_for_each_other_both_get_their_turn(nodes, tmp_path):
    one, two = nodes
    folder, order, looked = tmp_path / "shared", [], threading.Event()
    folder.mkdir()

    def delete():
        with presence.alone(folder, "all", held=two.leases):
            order.append("deleter")

    deleter = threading.Thread(target=delete, daemon=True)

    def waiting(node):
        for each in nodes:  # both are alive
            each.leases.beat()
        looked.set()
        time.sleep(0.001)
        assert node.clock.now < 600, "each waits for the other for ever"

    for node in nodes:
        node.clock.meanwhile = lambda node=node: waiting(node)
    claim = one.leases.claim

    def claim_first(name):
        lease = claim(name)
        if deleter.ident is None:  # between this claim and the look at others
            deleter.start()
            assert looked.wait(60)
        return lease

    one.leases.claim = claim_first
    with blind(), presence.present(folder, "all", held=one.leases):
        order.append("worker")
    deleter.join(60)
    assert order == ["deleter", "worker"]


def test_one_that_overwrites_and_is_stopped_past_its_lease_deletes_nothing_of_another(nodes, tmp_path, monkeypatch):
    one, two = nodes
    path, first = tmp_path / "shared", ExtractConfig(data=("one.txt",))
    begin(path, "features", first, {}, shared=True)
    for name in ("ledger/first", "ledger/payload", "payload"):
        files.write_atomic(path / name, "old")
    monkeypatch.setattr(presence, "leases", lambda folder: one.leases)
    unlink, taken = Path.unlink, []

    def stopped(file, missing_ok=False):
        unlink(file, missing_ok=missing_ok)
        if file.parent.name == "ledger" and not taken:
            taken.append(file)
            monkeypatch.setattr(presence, "leases", lambda folder: two.leases)
            begin(path, "features", ExtractConfig(data=("two.txt",)), {}, overwrite=True, shared=True)
            files.write_atomic(path / "payload", "new")

    monkeypatch.setattr(Path, "unlink", stopped)
    with blind(), pytest.raises(StorageError, match=r"shared.claims: this process was stopped for so long"):
        begin(path, "features", first, {}, overwrite=True, shared=True)
    assert (path / "payload").read_text() == "new"
    assert "two.txt" in (path / "config.yaml").read_text()


@pytest.mark.parametrize("stop", range(1, 6))
def test_one_that_is_stopped_between_its_check_and_a_removal_puts_back_what_another_has_written(tmp_path, stop):
    """At each of the removals in turn, another takes the lease and begins anew before the removal is done."""
    path, damaged = tmp_path / "shared", [("train-00000", ""), ("store", "store.json")]
    names = ["manifest.json", "features.zarr/tokens/c/0/0", "ledger/train-00000.json", "store.json", "payload"]
    for name in names:
        files.write_atomic(path / name, "old")
    passed, lost = [], []

    def check():
        if lost:
            raise StorageError("another took its place")
        passed.append(len(passed))
        if len(passed) == 2 * stop - 1:  # the first of the two checks of a removal
            lost.append(True)
            for name in names:
                files.write_atomic(path / name, "new")

    with pytest.raises(StorageError, match="another took its place"):
        ledger.forget(path, damaged, check)
        emptying.empty(path, but=(), check=check)
    assert {name: (path / name).read_text() for name in names} == dict.fromkeys(names, "new")
    assert not list(path.rglob("*.tmp"))


def test_a_repair_that_is_stopped_past_its_lease_removes_no_shard_of_another(nodes, tmp_path):
    one, two = nodes
    for name in ("manifest.json", "store.json", "ledger/train-00000.json"):
        files.write_atomic(tmp_path / "shared" / name, "of another")
    with one.leases.claim("alone") as lease:
        two.leases.claim("alone")
        two.clock.now += 301
        assert two.leases.claim("alone") is not None
        for damaged in ([("train-00000", "")], [("store", "store.json")]):
            with pytest.raises(StorageError, match="another took its place"):
                ledger.forget(tmp_path / "shared", damaged, lease.check)
    assert all((tmp_path / "shared" / name).is_file() for name in ("manifest.json", "store.json"))
    assert (tmp_path / "shared" / "ledger" / "train-00000.json").is_file()
