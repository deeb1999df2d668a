"""What a mount table says of locks: across machines, on one, nowhere."""

import errno
import os

import pytest

from ldlm.mounts import file_system, hard_links, remarks

LINE = "36 25 0:40 / {} rw,relatime shared:1 - {} server:/export {}\n"


def found(tmp_path, kind, options, mount=None):
    table = tmp_path / "mountinfo"
    root = "25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
    table.write_text(root + LINE.format(str(mount or tmp_path).replace(" ", r"\040"), kind, options))
    return file_system(mount or tmp_path, table)


@pytest.mark.parametrize(
    ("kind", "options", "locks", "shown"),
    [
        ("ext4", "rw", "on one machine", "ext4"),
        ("nfs4", "rw,vers=4.2,hard,local_lock=none", "across machines", "nfs4 (local_lock=none)"),
        ("nfs", "rw,vers=3,local_lock=all", "on one machine", "nfs (local_lock=all)"),
        ("nfs", "rw,nolock,local_lock=none", "on one machine", "nfs (local_lock=none, nolock)"),
        ("lustre", "rw,flock,lazystatfs", "across machines", "lustre (flock)"),
        ("lustre", "rw,localflock", "on one machine", "lustre (localflock)"),
        ("lustre", "rw,lazystatfs", "nowhere", "lustre"),
        ("gpfs", "rw,nfssync", "on one machine", "gpfs"),
        ("fuse.s3fs", "rw,user_id=0", "on one machine", "fuse.s3fs"),
        ("somefs", "rw", "unknown", "somefs"),
    ],
)
def test_the_file_system_of_a_folder_and_how_far_its_locks_hold(tmp_path, kind, options, locks, shown):
    there = found(tmp_path, kind, options)
    assert (there.locks, str(there)) == (locks, shown)
    warned = remarks(there, True)
    assert len(warned) == (kind != "ext4" and locks in ("on one machine", "nowhere"))
    otherwise = kind in ("gpfs", "fuse.s3fs")  # no option says how far their locks hold
    assert all(("unless it is set up otherwise" in line) == otherwise for line in warned)
    assert all(shown in line and "\n" not in line and "leases" in line for line in warned)
    assert remarks(there, False)[:-1] == remarks(there, None) == warned
    assert "no hard links" in remarks(there, False)[-1]


def test_the_closest_mount_counts_with_spaces_in_its_name(tmp_path):
    inner = tmp_path / "a b"
    inner.mkdir()
    assert found(tmp_path, "gpfs", "rw", inner).kind == "gpfs"
    assert file_system(tmp_path, tmp_path / "mountinfo").kind == "ext4"
    assert file_system(tmp_path, tmp_path / "absent") is None


def test_the_command_says_where_locks_do_not_hold_across_machines(ldlm, store, tmp_path, monkeypatch):
    for kind, warned in (("gpfs", 1), ("ext4", 0)):
        place = found(tmp_path, kind, "rw", store)
        monkeypatch.setattr(file_system, "__defaults__", (tmp_path / "mountinfo",))
        shown = ldlm("features", "info", store)
        assert shown.exit_code == 0
        assert shown.stderr.splitlines() == remarks(place, None)
        assert len(remarks(place, None)) == warned
        assert f"{kind}" in shown.stdout


def test_the_table_of_this_machine_is_read(tmp_path):
    assert file_system(tmp_path).kind


@pytest.mark.parametrize(
    ("number", "has"), [(0, True), (errno.EPERM, False), (errno.ENOTSUP, False), (errno.EIO, None)]
)
def test_hard_links_are_tried_and_nothing_is_left_of_it(tmp_path, monkeypatch, number, has):
    def link(*_):
        raise OSError(number, os.strerror(number))

    if number:
        monkeypatch.setattr(os, "link", link)
    assert hard_links(tmp_path) is has
    assert list(tmp_path.iterdir()) == []
    assert hard_links(tmp_path / "absent") is None
