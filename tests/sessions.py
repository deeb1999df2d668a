"""Commands in a process of their own, with the environment and the stdin of a user's shell.

    one, other = session([("evaluate", "texts.txt", "--json"), …], said="y\\n", HF_HOME="…")
    result(one)    # the JSON of a command that has succeeded
    line(other)    # the one line of a command that has refused

The commands of a session follow each other in one process with one thread.
"""

import json
import os
from types import SimpleNamespace

import forked

# Runs commands, given as lists of arguments; for each it prints what it says and its exit status.
SESSION = """
import contextlib, io, json, sys, traceback
import torch
torch.set_num_threads(1)
from ldlm.cli import main

def call(arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments, prog_name="ldlm")
        except SystemExit as leaving:
            code = leaving.code
        except BaseException:
            code = traceback.format_exc()
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}

print(json.dumps([call(arguments) for arguments in json.loads(sys.argv[1])]))
"""


def process(code, *arguments, said="", **environment):
    """A process's stdout, with `said` on its stdin. What reads the environment when imported, it imports itself."""
    done = forked.run(code, *arguments, said=said, env={**os.environ, **environment}, modules=forked.LIBRARIES)
    assert done.returncode == 0, done.stderr
    return done.stdout


def session(commands, **options):
    """What each of the commands says, called one after the other in a process of their own."""
    found = process(SESSION, json.dumps([[str(part) for part in command] for command in commands]), **options)
    return [SimpleNamespace(**one) for one in json.loads(found.splitlines()[-1])]


def result(one):
    """The JSON of a command that has succeeded, and nothing beside it on stdout."""
    assert one.code == 0, f"{one.code}\n{one.err}"
    return json.loads(one.out)


def line(one):
    """The one line of a command that has refused."""
    assert one.code == 1, f"{one.code}\n{one.err}"
    assert one.out == ""
    (said,) = one.err.splitlines()
    return said.removeprefix("Error: ")
