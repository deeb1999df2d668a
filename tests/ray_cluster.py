"""A Ray cluster of two nodes on this machine, of one core each, which a test starts and ends."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@contextmanager
def folder_for_ray() -> Iterator[dict[str, str]]:
    """The variables of processes that use Ray: what it writes goes to a folder that is removed, and it calls nobody."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # sockets are below it, whose paths are short
    try:
        yield {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Nodes:
    """The cluster."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args=SMALL)
        self.second = self.cluster.add_node(**{name: SMALL[name] for name in ("num_cpus", "object_store_memory")})

    @property
    def address(self) -> str:
        return self.cluster.address

    def workers(self) -> list[int]:
        """Process ids of the workers that have the encoder, or load it."""
        raylets = {one.process.pid for node in self.cluster.list_all_nodes() for one in node.all_processes["raylet"]}
        return [pid for pid, parent, name in processes() if parent in raylets and name.startswith("ray::Worker")]

    def lose_a_node(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)

    def close(self) -> None:
        """End the head and the other node, as a power cut does."""
        self.cluster.shutdown()


def processes() -> Iterator[tuple[int, int, str]]:
    """Id, parent's id and name of every process here."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        yield int(folder.name), parent, name


@contextmanager
def nodes() -> Iterator[Any]:
    made = Nodes()
    try:
        yield made
    finally:
        made.close()


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
