"""Processes that are forked from one which has imported what they need: a start takes no time.

    process = start(["train", …], stderr=subprocess.PIPE)   # the command line, as subprocess.Popen would start it
    process = start(["train", …], forks=Forks("job", 2))    # two of a job, told so as torchrun tells them
    done = run(code, *arguments, env=…)                     # as subprocess.run of `python -c` would give it

They are processes like others, with an environment, folder, streams and signals of their own. What a process imports,
how torchrun or a shell starts it, and how much memory it has are seen in an interpreter of its own only. The one that
they are forked from is started at the first of them, and ends with this process.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import IO, Any, NamedTuple, NoReturn

# What commands and their libraries import late is imported before the forks.
LIBRARIES = ("numpy", "pyarrow.parquet", "safetensors.torch", "torch", "torch._dynamo", "zarr")
COMMANDS = (
    *LIBRARIES, "transformers.models.gpt2.modeling_gpt2", "ldlm.cli", "ldlm.features.encoder", "ldlm.stages.evaluate",
    "ldlm.stages.extract_features", "ldlm.stages.finetune_decoder", "ldlm.stages.sample", "ldlm.stages.train",
)  # fmt: skip


class Forks(NamedTuple):
    """Several processes of one command. The status is 0 when theirs are; where one fails, the others go on."""

    kind: str  # "job", or "alone" where they know nothing of each other
    count: int


class Process:
    """A part of subprocess.Popen."""

    def __init__(self, connection: socket.socket, stderr: IO[bytes] | None = None) -> None:
        self.connection, self.stderr, self.returncode = connection, stderr, None
        self.pid = int(connection.recv(16))

    def poll(self) -> int | None:
        """Exit status, or minus the signal; None while it runs."""
        return self._status(0.0)

    def wait(self, timeout: float | None = None) -> int:
        if self._status(timeout) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def _status(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self.connection], [], [], timeout)[0]:
            self.returncode = int(self.connection.recv(16))
            self.connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[None, bytes]:
        """Wait for its end; what it has written to stderr, the first time."""
        assert self.stderr is not None
        ends, said = time.monotonic() + (1e6 if timeout is None else timeout), b""
        while not self.stderr.closed:
            if not select.select([self.stderr], [], [], max(0.0, ends - time.monotonic()))[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            part = os.read(self.stderr.fileno(), 65536)
            said += part
            if not part:
                self.stderr.close()
        self.wait(None if timeout is None else max(0.0, ends - time.monotonic()))
        return None, said

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    arguments: Sequence[str],
    *,
    forks: Forks | None = None,
    env: Mapping[str, str] | None = None,
    stderr: int | None = None,
    start_new_session: bool = False,
) -> Process:
    """Start a command, whose stdout nobody reads."""
    what = {"main": list(arguments), "forks": forks, "session": start_new_session}
    with open(os.devnull, "r+b") as nothing:
        if stderr is None:
            return Process(_ask(COMMANDS, what, env, (nothing.fileno(), nothing.fileno(), 2)))
        reader, writer = os.pipe()
        try:
            return Process(
                _ask(COMMANDS, what, env, (nothing.fileno(), nothing.fileno(), writer)), os.fdopen(reader, "rb", 0)
            )
        finally:
            os.close(writer)


def run(
    code: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    said: str = "",
    modules: Sequence[str] = COMMANDS,
) -> subprocess.CompletedProcess[str]:
    """Run a program with `said` on its stdin, where `modules` are imported already."""
    what = {"code": code, "argv": ["-c", *arguments]}
    streams = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    try:
        os.write(streams[0], said.encode())
        os.lseek(streams[0], 0, os.SEEK_SET)
        status = Process(_ask(modules, what, env, streams)).wait()
        texts = []
        for stream in streams[1:]:
            with os.fdopen(os.dup(stream), "rb") as file:
                file.seek(0)
                texts.append(file.read().decode())
    finally:
        for stream in streams:
            os.close(stream)
    return subprocess.CompletedProcess(what["argv"], status, *texts)


# ----------------------------------------------------------------------------------------------------------------------
# The process that forks


@cache
def _server(modules: tuple[str, ...]) -> socket.socket:
    """Where it is asked."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), *modules],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def _ask(
    modules: Sequence[str], what: Mapping[str, Any], env: Mapping[str, str] | None, streams: Sequence[int]
) -> socket.socket:
    """Where the process's id is read, and its status."""
    there = {"OMP_NUM_THREADS": "1", **(os.environ if env is None else env)}
    message = json.dumps({**what, "env": there, "folder": os.getcwd()}).encode()
    server = _server(tuple(modules))
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with theirs:
        socket.send_fds(server, [len(message).to_bytes(8)], [theirs.fileno(), *streams])
    server.sendall(message)
    return ours


def _serve(asked: socket.socket) -> None:
    """Fork what is asked for, and tell what becomes of it, until nobody can ask."""
    wakes, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, socket.socket] = {}
    while True:
        if asked in select.select([asked, wakes], [], [])[0]:
            size, streams, _, _ = socket.recv_fds(asked, 8, 4)
            if not size:
                return
            what = json.loads(asked.recv(int.from_bytes(size), socket.MSG_WAITALL))
            told = socket.socket(fileno=streams[0])
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in (asked, wakes, wake, told, *children.values()):
                    other.close()
                _become(what, streams[1:])
            for stream in streams[1:]:
                os.close(stream)
            children[child] = told
            told.send(str(child).encode())
        else:
            wakes.recv(1)
            for child, status in _ended():
                with children.pop(child) as told:
                    told.send(str(status).encode())


def _ended() -> Iterator[tuple[int, int]]:
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if child == 0:
            return
        yield child, os.waitstatus_to_exitcode(status)


def _become(what: Mapping[str, Any], streams: Sequence[int]) -> NoReturn:
    """Be the process that is asked for; it leaves as an interpreter does."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if what.get("session"):
        os.setsid()
    os.chdir(what["folder"])
    os.environ.clear()
    os.environ.update(what["env"])
    if "code" in what:
        sys.argv = what["argv"]
        exec(compile(what["code"], "<string>", "exec"), {"__name__": "__main__"})
        sys.exit()
    from ldlm.cli import main

    sys.argv = ["ldlm", *what["main"]]
    if what["forks"]:
        _several(Forks(*what["forks"]))
    main(what["main"], prog_name="ldlm")
    sys.exit()


def _several(forks: Forks) -> None:
    """Comes back in each of the processes, and leaves when all of them have."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(forks.count):
        children.append(os.fork())
        if children[-1] == 0:
            os.environ.update(job(rank, forks.count, port) if forks.kind == "job" else {})
            return
    sys.exit(max(os.waitpid(child, 0)[1] != 0 for child in children))


def job(rank: int, count: int, port: int) -> dict[str, str]:
    """The variables of a process of a job."""
    there = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in there.items()}}


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.freeze()  # else each process that leaves goes through everything that is imported, which takes it seconds
    _serve(socket.socket(fileno=int(sys.argv[1])))
