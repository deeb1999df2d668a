"""Commands as child processes: which signals they get, and from whom."""

import os
import signal
import subprocess
import sys
import time

import pytest
from patience import patience

from ldlm import runtime

PARENT = """
import sys
from pathlib import Path
from ldlm import children
from ldlm.runtime import Stop
sys.executable, folder = sys.argv[1:]
with Stop() as stop:
    done = children.run(["a", "command"], Path(folder), None, stop)
print(stop.wished, done.status, done.printed, end="")
"""

# It lists its signals in a file, and ends when another file is there, or the test's folder is gone.
CHILD = f"""#!{sys.executable}
import os, signal, time
from pathlib import Path
def note(number, frame):
    with open("signals", "a") as file:
        file.write(signal.Signals(number).name + " ")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, note)
parent = os.getppid()
Path("signals").touch()
while Path("signals").exists() and not Path("end").exists():
    time.sleep(0.01)
if os.getppid() == parent:  # else nobody reads
    print("saved")
"""


class Terminal:
    """A parent and what else a terminal takes for its command: Ctrl-C reaches all of these processes."""

    def __init__(self, folder):
        (folder / "python").write_text(CHILD)
        (folder / "python").chmod(0o755)
        command = [sys.executable, "-c", PARENT, str(folder / "python"), str(folder)]
        self.parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.folder = folder
        self.wait_for(0)

    def signals(self):
        """The child's signals so far; None if it has not begun."""
        place = self.folder / "signals"
        return place.read_text().split() if place.exists() else None

    def wait_for(self, count):
        until = time.monotonic() + patience()
        while (found := self.signals()) is None or len(found) < count:
            assert time.monotonic() < until, f"the child has had {found}, not {count} signals"
            time.sleep(0.01)

    def interrupt(self):
        os.killpg(self.parent.pid, signal.SIGINT)

    def end(self):
        """Let the child end; returns the parent's exit status and what it printed."""
        (self.folder / "end").touch()
        printed, _ = self.parent.communicate(timeout=patience())
        return self.parent.returncode, printed


@pytest.fixture
def terminal(tmp_path):
    opened = Terminal(tmp_path)
    yield opened
    opened.end()


def test_a_child_has_one_signal_of_a_ctrl_c_and_may_save(terminal):
    """It would take a second one, later than `REPEATED`, as the wish to end at once."""
    terminal.interrupt()
    terminal.wait_for(1)
    time.sleep(2 * runtime.REPEATED)
    assert terminal.end() == (0, "SIGINT 0 saved\n")
    assert terminal.signals() == ["SIGTERM"]


def test_a_second_ctrl_c_reaches_the_child_too(terminal):
    terminal.interrupt()
    terminal.wait_for(1)
    time.sleep(2 * runtime.REPEATED)
    terminal.interrupt()
    assert terminal.parent.wait(patience()) == -signal.SIGINT
    terminal.wait_for(2)
    assert terminal.signals() == ["SIGTERM", "SIGTERM"]
