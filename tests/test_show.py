"""What stderr shows of a task: a line that is drawn anew on a terminal, one every 30 seconds elsewhere."""

import io
import json
import math

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
        with pytest.raises(InputError, match=f"can't be printed as JSON, for {said}"):
            show.json_line({"figures": [1.0, {"x": value}]})
