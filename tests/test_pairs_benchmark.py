"""Benchmark of two installations turn by turn: its ratios, and what it says of a change in the texts."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import pairs


def test_the_program_is_loaded_by_no_part_of_it():
    """It would be loaded a second time, under another name."""
    look = "import sys, benchmarks.records, benchmarks.pairs; sys.exit('benchmarks.__main__' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], cwd=Path(__file__).parents[1]).returncode == 0


def test_the_ratio_is_taken_turn_by_turn_since_the_machine_changes_meanwhile():
    old = [(1.0, None), (4.0, None), (2.0, None)]
    new = [(1.1, None), (4.4, None), (2.0, None)]
    assert pairs.row("step", old, new) == {
        "measure": "step",
        "old_seconds": 2.0,
        "new_seconds": 2.0,
        "ratio": pytest.approx(1.1),
        "ratios": pytest.approx([1.1, 1.1, 1.0]),
        "same": None,
    }


@pytest.mark.parametrize(("ratio", "verdict"), [(1.0499, "within 1.05"), (1.0501, "BEYOND 1.05")])
def test_the_table_says_what_is_beyond_the_limit_and_which_texts_changed(ratio, verdict):
    same, other = (pairs.row(name, [(2.0, "a")], [(2.0 * ratio, end)]) for name, end in (("same", "a"), ("other", "b")))
    lines = pairs.report([same, other]).splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["same", "other"]
    assert all(verdict in line for line in lines[-2:])
    assert ["the same" in line for line in lines[-2:]] == [True, False]
    assert "ANOTHER" in lines[-1]


def test_the_table_shows_how_far_turns_differ():
    turns = pairs.row("step", [(1.0, None)] * 3, [(0.9, None), (1.0, None), (1.2, None)])
    assert "0.90–1.20" in pairs.report([turns])
