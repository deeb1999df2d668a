"""The file system of a folder: how far the kernel's locks (flock) reach there, and whether it has hard links.

What is said about locks comes from the documentation of each kind of file system, not from a test: from inside a
machine, a lock that only it sees looks like any other. Hard links are tested.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ldlm import files

Reach = Literal["across machines", "on one machine", "nowhere", "unknown"]

LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "vfat", "xfs", "zfs"}
# Shared file systems, and the mount options that make their locks hold on one machine only; () if no option does.
SHARED: dict[str, tuple[str, ...]] = {
    "afs": ("flock=local",),
    "ceph": (),
    "cifs": ("nobrl", "nolock"),
    "gfs2": ("localflocks",),
    "lustre": ("localflock",),
    "nfs": ("local_lock=all", "local_lock=flock", "nolock"),
    "nfs4": ("local_lock=all", "local_lock=flock", "nolock"),
    "ocfs2": ("localflocks",),
    "smb3": ("nobrl", "nolock"),
}
ONE_MACHINE = ("9p", "beegfs", "fuse", "gpfs", "virtiofs", "wekafs")  # unless they are set up otherwise
NOWHERE = ("orangefs", "pvfs2")
RELEVANT = re.compile(r"(no|local_?)?f?locks?(=.*)?|nobrl")


@dataclass(frozen=True)
class FileSystem:
    """A mounted file system: its kind, the options that matter for locks, and how far these hold."""

    kind: str
    options: tuple[str, ...]
    locks: Reach

    def __str__(self) -> str:
        return self.kind + (f" ({', '.join(self.options)})" if self.options else "")


def file_system(path: Path, table: Path = Path("/proc/self/mountinfo")) -> FileSystem | None:
    """The file system of a path; None if the kernel does not say."""
    try:
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    there, found = path.resolve(), None
    longest = -1
    for line in lines:  # 36 35 98:0 /root /mount rw,noatime master:1 - ext4 /dev/sda rw,errors=continue
        front, _, behind = line.partition(" - ")
        fields, rest = front.split(), behind.split()
        if len(fields) < 6 or len(rest) < 3:
            continue
        mount = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        # The last of equally long ones was mounted over the others.
        if there.is_relative_to(mount) and len(mount.parts) >= longest:
            longest, found = len(mount.parts), (rest[0], (*fields[5].split(","), *rest[2].split(",")))
    if found is None:
        return None
    kind, options = found
    return FileSystem(kind, tuple(sorted({one for one in options if RELEVANT.fullmatch(one)})), _reach(kind, options))


def _reach(kind: str, options: tuple[str, ...]) -> Reach:
    family = kind.partition(".")[0]  # fuse.sshfs
    if family in NOWHERE or (kind == "lustre" and not {"flock", "localflock"} & set(options)):
        return "nowhere"
    if family in LOCAL or family in ONE_MACHINE:
        return "on one machine"
    if kind in SHARED:
        return "on one machine" if set(SHARED[kind]) & set(options) else "across machines"
    return "unknown"


def hard_links(folder: Path) -> bool | None:
    """Whether a file in a folder can have two names; None if no file can be made. Both names are removed."""
    first, second = (folder / f".{files.unique()}.tmp" for _ in range(2))
    try:
        first.touch()
        os.link(first, second)
    except OSError as error:
        return False if error.errno in files.NO_LINKS else None
    else:
        return True
    finally:
        for path in (first, second):
            with suppress(OSError):
                path.unlink()


def remarks(found: FileSystem | None, links: bool | None) -> list[str]:
    """A line on a shared file system whose locks are known not to hold across machines, and one on missing links."""
    lines = []
    shared = found is not None and found.kind.partition(".")[0] not in LOCAL
    if found is not None and shared and found.locks in ("on one machine", "nowhere"):
        reach = "there are no locks (flock)" if found.locks == "nowhere" else "locks (flock) hold on one machine only"
        unless = ", unless it is set up otherwise," if found.kind.partition(".")[0] in ONE_MACHINE else ""
        lines.append(
            f"on {found}{unless} {reach}: processes on several machines are kept apart by leases, and those of a dead "
            f"machine hold for five minutes"
        )
    if links is False:
        lines.append(
            "the file system has no hard links: of two machines that finish a shard at the same moment, one may "
            "replace a file of the other's, and only their leases prevent it; `ldlm features verify` finds it"
        )
    return lines
