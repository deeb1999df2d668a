"""Help is instant: every --help takes less than four times the processor time of an empty click program."""

import os
import subprocess
import sys

import click

from ldlm.cli import main

MOST = 4.0
TRIES = 10
EMPTY = "import click; click.command()(lambda: None)(['--help'])"


def commands():
    """The arguments of every --help there is."""
    yield ["--help"]
    for name, command in main.commands.items():
        yield [name, "--help"]
        if isinstance(command, click.Group):
            yield from ([name, inner, "--help"] for inner in command.commands)


def processor_seconds(*arguments):
    """Processor time of a Python process, whatever else the machine does."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def ratio(arguments):
    """Processor time of a --help over that of the empty program, which runs right before it."""
    empty = processor_seconds("-c", EMPTY)
    return processor_seconds("-m", "ldlm.cli", *arguments) / empty


def test_every_help_takes_less_than_four_times_an_empty_click_program():
    slow = []
    for arguments in commands():
        # A cold cache or a busy neighbour slows a try; the fastest of a few is the program's own.
        if all(ratio(arguments) >= MOST for _ in range(TRIES)):
            slow.append(" ".join(arguments))
    assert slow == []
