"""Hashes of large text files: read once by all processes, and again where a file has changed."""

import errno
import os
import threading
import time
from types import SimpleNamespace

import pytest

from ldlm import files
from ldlm.errors import InputError
from ldlm.features import digests, textfiles
from ldlm.location import locate


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A file that counts as large, changed long ago, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LEAST", 10)
    monkeypatch.setattr(digests, "SETTLED", 0.0)
    path = tmp_path / "text.txt"
    write(path, b"twelve bytes")
    return path


def write(path, data, age=60.0):
    path.write_bytes(data)
    os.utime(path, (time.time() - age,) * 2)


@pytest.fixture
def reads(monkeypatch):
    """The files that are read."""
    found, real = [], digests._hashed
    monkeypatch.setattr(digests, "_hashed", lambda path, *rest: found.append(path.name) or real(path, *rest))
    return found


def test_a_large_file_is_read_once_until_it_changes(text, reads, tmp_path):
    small = tmp_path / "small.txt"
    small.write_bytes(b"small")
    for _ in range(2):
        expected = {str(path): files.sha256_file(path) for path in (text, small)}
        assert textfiles.fingerprints([text, small]) == expected
    assert reads == ["text.txt", "small.txt", "small.txt"]
    write(text, b"twelve bytes more")
    assert textfiles.fingerprints([text])[str(text)] == files.sha256(b"twelve bytes more")
    write(text, b"twelve other byte", age=50.0)  # as many
    assert textfiles.fingerprints([text])[str(text)] == files.sha256(b"twelve other byte")
    assert len(reads) == 5


@pytest.mark.parametrize("how", ["written", "renamed"])
def test_another_file_of_the_same_size_and_time_is_hashed_again(text, reads, how):
    """Replace a file and keep its time of change, as rsync -t, cp -p and mv do."""
    textfiles.fingerprints([text])
    old, other = text.stat(), text.with_name("other.txt")
    other.write_bytes(b"eleven more.")
    os.utime(other, ns=(old.st_atime_ns, old.st_mtime_ns))
    if how == "renamed":
        other.rename(text)
    else:
        text.write_bytes(other.read_bytes())
        os.utime(text, ns=(old.st_atime_ns, old.st_mtime_ns))
    new = text.stat()
    assert (new.st_size, new.st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    assert textfiles.fingerprints([text])[str(text)] == files.sha256(b"eleven more.")
    assert len(reads) == 2


def test_a_hash_that_was_damaged_is_made_again(text, reads):
    textfiles.fingerprints([text])
    (record,) = (digests.user_cache() / "digests").glob("*.json")
    record.write_bytes(record.read_bytes().replace(b'"sha256": "', b'"sha256": "0'))
    assert textfiles.fingerprints([text])[str(text)] == files.sha256_file(text)
    assert len(reads) == 2


def test_a_file_that_changes_while_it_is_read_is_read_again_by_others(text, monkeypatch):
    real = digests._hashed

    def changes(path, *rest):
        found = real(path, *rest)
        write(path, b"more than twelve", age=30.0)
        return found

    monkeypatch.setattr(digests, "_hashed", changes)
    assert textfiles.fingerprints([text])[str(text)] == files.sha256(b"twelve bytes")
    monkeypatch.setattr(digests, "_hashed", real)
    assert textfiles.fingerprints([text])[str(text)] == files.sha256(b"more than twelve")


def test_files_are_read_once_their_state_has_stood_for_a_while_whatever_their_clock(text, tmp_path, monkeypatch):
    """A second change in the same tick of the file system's clock would leave no trace, and that clock may be wrong."""
    slept, now = [], [0.0]
    monkeypatch.setattr(digests, "SETTLED", 2.0)
    sleep = lambda seconds: slept.append(seconds) or now.append(now.pop() + seconds)  # noqa: E731
    monkeypatch.setattr(digests, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    write(other := tmp_path / "other.txt", b"twelve other", -3600.0)
    write(text, b"more than twelve", 7200.0)
    textfiles.fingerprints([text, other])
    assert sorted(slept) == [0.0, 2.0]  # all wait together
    slept.clear()
    textfiles.fingerprints([text, other])
    assert slept == []


def test_processes_that_start_together_divide_the_files(text, reads, tmp_path):
    paths = [text, *(tmp_path / f"{number}.txt" for number in range(5))]
    for path in paths[1:]:
        write(path, path.name.encode() * 20)
    found = []
    threads = [threading.Thread(target=lambda: found.append(textfiles.fingerprints(paths))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{str(path): files.sha256_file(path) for path in paths}] * 3
    assert sorted(reads) == sorted(path.name for path in paths)


def test_machines_that_make_a_store_in_an_object_store_read_a_file_once(text, reads, bucket, tmp_path, monkeypatch):
    store = locate(f"{bucket}/features")

    def at(machine):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        assert textfiles.fingerprints([text], store=store) == {str(text): files.sha256_file(text)}

    at("a"), at("b"), at("a")
    assert len(reads) == 1
    write(text, b"twelve other", age=50.0)  # as on a machine that has another file under this path
    at("b"), at("c"), at("b")
    assert len(reads) == 2
    assert {name.partition("/")[0] for name in store.sizes()} == {"claims"}  # by which the store is not begun


@pytest.mark.parametrize("call", ["open", "fsync"])
def test_without_room_for_the_cache_every_process_hashes_by_itself(text, reads, monkeypatch, call):
    real = getattr(os, call)

    def full(what, *rest, **options):
        if call == "fsync" or "digests" in str(what):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return real(what, *rest, **options)

    monkeypatch.setattr(os, call, full)
    assert textfiles.fingerprints([text])[str(text)] == files.sha256_file(text)
    assert reads == ["text.txt"]


def test_a_file_that_can_not_be_read_is_named(text, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(digests, "open", broken, raising=False)
    with pytest.raises(InputError, match=r"text\.txt can't be read: Input/output error"):
        textfiles.fingerprints([text])
