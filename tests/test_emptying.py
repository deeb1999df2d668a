"""Removing what several processes share: whatever fails on the way, nothing of another's is lost."""

import errno
import os

import pytest

from ldlm import emptying
from ldlm.errors import StorageError
from ldlm.lease_places import SUFFIX, LeaseFiles, LeaseObjects
from ldlm.leases import Leases
from ldlm.location import Bucket, ObjectPath


@pytest.fixture
def file(tmp_path):
    made = tmp_path / "file"
    made.write_text("of another")
    return made


def fails(number):
    def call(*args, **options):
        raise OSError(number, os.strerror(number))

    return call


def loses(error):
    """A check that passes once, and raises an error from then on."""
    passes = [None]

    def check():
        if not passes:
            raise error
        passes.pop()

    return check


@pytest.mark.parametrize("error", [StorageError("lost"), KeyboardInterrupt(), OSError(errno.EIO, "broken")])
@pytest.mark.parametrize("number", [0, errno.ENOSPC, errno.EPERM])
def test_a_file_is_put_back_after_any_error_of_the_check_also_without_links_or_room(file, monkeypatch, error, number):
    if number:
        monkeypatch.setattr(os, "link", fails(number))
    with pytest.raises(type(error)):
        emptying.remove(file, loses(error))
    assert [path.read_text() for path in file.parent.iterdir()] == ["of another"] and file.is_file()


def test_a_file_that_can_not_be_put_back_stays_beside_its_place(file, monkeypatch):
    rename = os.rename

    def away(source, target):
        return rename(source, target) if os.fspath(source) == str(file) else fails(errno.EIO)()

    monkeypatch.setattr(os, "link", fails(errno.ENOSPC))
    monkeypatch.setattr(os, "rename", away)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        emptying.remove(file, loses(StorageError("lost")))
    assert [path.read_text() for path in file.parent.iterdir()] == ["of another"]


@pytest.mark.parametrize("links", [True, False])
def test_a_newer_file_stays_where_an_older_one_would_be_put_back(file, monkeypatch, links):
    def newer(aside):
        file.write_text("newer")
        return False

    if not links:
        monkeypatch.setattr(os, "link", fails(errno.EPERM))
    assert not emptying.take_away(file, newer)
    assert [path.read_text() for path in file.parent.iterdir()] == ["newer"]


def test_a_lease_that_another_renamed_by_mistake_is_still_its_holders_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", fails(errno.EPERM))
    held = Leases(tmp_path, None, heartbeat=None).claim("item")
    assert not LeaseFiles(tmp_path).take("item", b"an older lease")
    assert not held.lost()
    held.release()
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------------------
# An object store, whose answers may be lost


class Objects(Bucket):
    """An object store in memory that does a deletion, lets others act, and resets the connection before its answer."""

    def call(self, operation, key, *args, **options):
        found = super().call(operation, key, *args, **options)
        if operation == "delete" and (meanwhile := self.__dict__.pop("meanwhile", None)):
            meanwhile()
            raise StorageError("reset")
        return found


@pytest.fixture
def place():
    stores = pytest.importorskip("obstore.store", reason="obstore is in the extra `object-stores`")
    bucket = Objects("memory://store")
    bucket.__dict__["store"] = stores.MemoryStore()  # in place of that of its address
    return ObjectPath(bucket, "claims")


@pytest.mark.parametrize("how", ["release", "take"])
def test_a_deletion_that_was_done_and_is_made_again_spares_the_lease_of_the_next(place, how):
    held = Leases(place, None, heartbeat=None).claim("item")
    following = []
    place.root.__dict__["meanwhile"] = lambda: following.append(Leases(place, None, heartbeat=None).claim("item"))
    if how == "release":
        held.release()
    else:
        assert LeaseObjects(place).take("item", (place / f"item{SUFFIX}").read_bytes())
    assert following[0] is not None and not following[0].lost()


def test_an_object_is_not_deleted_again_by_one_that_has_lost_its_lease(place):
    path, lost = place / "file", []

    def meanwhile():
        path.write_bytes(b"of another")
        lost.append(True)

    def check():
        if lost:
            raise StorageError("another took its place")

    path.write_bytes(b"old")
    place.root.__dict__["meanwhile"] = meanwhile
    with pytest.raises(StorageError, match="another took its place"):
        emptying.remove(path, check)
    assert path.read_bytes() == b"of another"
    place.root.__dict__["meanwhile"] = lambda: None
    lost.clear()
    emptying.remove(path, check)
    assert not path.exists()


def test_what_nfs_keeps_of_an_open_file_is_left_to_it(tmp_path):
    """It can't be renamed or removed again until it is closed."""
    for name in (".nfs000000000012d68700000001", ".left.tmp", "file"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / name).touch()
    emptying.remove_folder(tmp_path / "folder", lambda: None)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == [".nfs000000000012d68700000001"]
