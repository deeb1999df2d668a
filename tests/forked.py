"""Processes of one command that have imported what it needs only once: a third of the time that torchrun takes.

    start(["train", …], out, launcher=forked.launcher("job", 2))  # two of a job, told so as torchrun tells them
    start(["extract-features", …], out, launcher=forked.launcher("alone", 3))  # that know nothing of each other
    start(["train", …, ";", "train", …], out, launcher=forked.launcher("job", 2))  # two commands, one after the other

The launcher's status is 0 when theirs are. It ends none of them, as torchrun does where one fails.
"""

import importlib
import os
import socket
import sys
from itertools import groupby

# What commands import at their first step, beside their stages.
LATER = {"extract-features": ("zarr", "transformers.models.gpt2.modeling_gpt2")}


def launcher(kind: str, count: int) -> tuple[str, ...]:
    """The launcher of so many processes for `start`: of a "job", or each "alone"."""
    return (__file__, kind, str(count))


def job(rank: int, count: int, port: int) -> dict[str, str]:
    """The variables of a process of a job."""
    there = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in there.items()}}


def run(kind: str, count: int, arguments: list[str]) -> int:
    importlib.import_module(f"ldlm.stages.{arguments[0].replace('-', '_')}")
    for name in LATER.get(arguments[0], ("torch._dynamo",)):  # which torch's optimisers import
        importlib.import_module(name)
    commands = [list(command) for then, command in groupby(arguments, ";".__eq__) if not then]
    ports, children = [free_port() for _ in commands], []
    for rank in range(count):
        children.append(os.fork())
        if children[-1] == 0:
            os._exit(
                max(
                    one(command, job(rank, count, port) if kind == "job" else {})
                    for command, port in zip(commands, ports, strict=True)
                )
            )
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)


def one(command: list[str], environment: dict[str, str]) -> int:
    """The exit status of a command."""
    from ldlm.cli import main

    os.environ.update(environment)
    try:
        main(command, prog_name="ldlm")
    except SystemExit as ended:
        sys.stdout.flush()
        return int(ended.code or 0)
    return 0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    _, kind, count, *command = sys.argv
    assert command[:3] == ["-m", "--", "ldlm.cli"], command
    sys.exit(run(kind, int(count), command[3:]))
