"""What stderr shows of a task: a line that is drawn anew on a terminal, one every 30 seconds elsewhere."""

import fcntl
import io
import json
import math
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios

import pytest

from ldlm.cli import show
from ldlm.errors import InputError


@pytest.fixture
def clock(monkeypatch):
    """A list whose last entry is the time."""
    times = [1000.0]
    monkeypatch.setattr(show.time, "monotonic", lambda: times[-1])
    return times


class Screen(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_elsewhere_than_on_a_terminal_there_is_one_plain_line_every_30_seconds(clock):
    stream = io.StringIO()
    with show.Terminal(stream).task("encode", 1_000_000, "token") as task:
        for second in range(1, 101):
            clock.append(1000.0 + second)
            task.advance(5_000, written=f"{second}.0 MB/s")
    assert stream.getvalue().splitlines() == [
        "encode  150,000/1,000,000 tokens  5,000.0/s  2:50 left  written 30.0 MB/s",
        "encode  300,000/1,000,000 tokens  5,000.0/s  2:20 left  written 60.0 MB/s",
        "encode  450,000/1,000,000 tokens  5,000.0/s  1:50 left  written 90.0 MB/s",
        "encode  500,000/1,000,000 tokens  5,000.0/s  1:40 left  written 100.0 MB/s  in 1:40",
    ]


def test_what_an_earlier_run_did_is_progress_and_no_part_of_the_rate(clock):
    stream = io.StringIO()
    with show.Terminal(stream).task("encode", 1000, "token", done=600) as task:
        clock.append(1030.0)
        task.advance(300)
    assert stream.getvalue().splitlines()[0] == "encode  900/1,000 tokens  10.0/s  0:10 left"


def test_a_terminal_shows_one_line_that_is_drawn_anew(clock):
    stream = Screen()
    with show.Terminal(stream).task("encode", 100, "token") as task:
        for tenths in range(1, 11):
            clock.append(1000.0 + tenths * 0.06)
            task.advance(10)
    drawn = stream.getvalue().split("\r\x1b[2K")[1:]
    assert [line.split()[1] for line in drawn] == ["20/100", "40/100", "60/100", "80/100", "100/100", "100/100"]
    assert stream.getvalue().count("\n") == 1  # at the end


def test_a_task_of_unknown_length_has_no_time_left(clock):
    stream = io.StringIO()
    with show.Terminal(stream).task("tokenize train", 0, "row") as task:
        clock.append(1060.0)
        task.advance(120)
    assert stream.getvalue().splitlines()[0] == "tokenize train  120 rows  2.0/s"


def test_a_task_that_a_refusal_ends_leaves_no_line(clock):
    stream = io.StringIO()
    with pytest.raises(InputError), show.Terminal(stream).task("encode", 10, "token"):
        raise InputError("no")
    assert stream.getvalue() == ""


def test_a_result_is_one_line_of_strict_json():
    result = {"name": "Brontë", "figures": [1.5, None, {"n": 3}]}
    assert json.loads(show.json_line(result)) == result
    assert "\n" not in show.json_line(result)
    for value, said in ((math.nan, "figures.1.x is nan"), (-math.inf, "figures.1.x is -inf")):
        with pytest.raises(InputError, match=f"can't be printed as JSON, because {said}"):
            show.json_line({"figures": [1.0, {"x": value}]})


# ----------------------------------------------------------------------------------------------------------------------
# Real terminals

TASK = """
import sys, time
from ldlm.cli import show

terminal = show.Terminal()
with terminal.task("train", 3_000, "step", done=1_000) as task:
    for step in range(12):
        time.sleep(show.DRAW_EVERY)
        task.advance(100, l_diff=0.12345, l_h=0.23456, l_w=1.34567, token_accuracy=0.456, name="Straße 東京" * step)
        if step == 6:
            terminal.note("a note")
"""


def drawn(columns, resized=None):
    """What a process writes to a terminal of that width, which is resized once it has drawn three times."""
    parent, child = pty.openpty()

    def resize(columns):
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    resize(columns)
    with subprocess.Popen([sys.executable, "-c", TASK], stdin=child, stdout=child, stderr=child) as process:
        written, before = b"", None
        while process.poll() is None or select.select([parent], [], [], 0)[0]:
            if select.select([parent], [], [], 0.05)[0]:
                written += os.read(parent, 65536)
            if resized and before is None and written.count(CLEAR) == 3:
                resize(resized)
                before = written.count(CLEAR) + 1  # one may be on its way
        assert process.returncode == 0
    os.close(child), os.close(parent)
    return written.decode().replace("\r\n", "\n").split("\r\x1b[2K")[1:], before


CLEAR = b"\r\x1b[2K"


def width(line):
    """Of what is seen of a line; the letters beyond ASCII above are two columns wide, but for ß."""
    return sum(2 if ord(char) > 0x2000 else 1 for char in line.rstrip("\n"))


@pytest.mark.parametrize("columns", [0, 20, 40, 80, 200])  # 0 is a terminal that does not say
def test_a_line_is_no_wider_than_the_terminal(columns):
    lines, _ = drawn(columns)
    assert len(lines) == 12 + 1 + 1  # a note, and the end
    assert max(map(width, lines)) < (columns or 80)
    assert max(map(width, lines)) > min(columns or 80, 90) - 3  # as much as there is room for
    assert [line for line in lines if "\n" in line] == ["a note\n", lines[-1]]
    assert re.search(r"  in \d+:\d\d\n$", lines[-1])
    assert all(line.startswith("train  1,") for line in lines[:6] if columns != 20)


@pytest.mark.parametrize(("before", "after"), [(200, 40), (80, 40), (40, 200)])
def test_a_terminal_may_be_resized_under_way(before, after):
    lines, at = drawn(before, after)
    assert max(map(width, lines[:3])) < before
    assert max(map(width, lines[at:])) < after
    assert max(map(width, lines[at:])) > min(after, 90) - 3


def test_a_line_is_cut_where_a_wide_character_has_no_room():
    assert [show.fit("ab東京", n) for n in range(7)] == ["", "a", "ab", "ab", "ab東", "ab東", "ab東京"]
    assert show.fit("e\u0301a", 1) == "e\u0301"


def test_words_stand_at_the_left_of_their_column_and_figures_at_the_right():
    rows = [("a", "not run", 12.5, None), ("long", "ok", 3, "nan")]
    assert show.table(("name", "state", "ppl", "more"), rows).splitlines() == [
        "name  state     ppl  more",
        "----  -------  ----  ----",
        "a     not run  12.5     -",
        "long  ok          3   nan",
    ]
