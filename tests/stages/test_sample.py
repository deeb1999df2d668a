"""Texts drawn by two commands at once."""

import json
import os
import signal
import time

from patience import patience


def test_a_second_command_for_the_same_texts_is_refused_and_writes_nothing(start, refuse, trained, tmp_path):
    """The first is stopped while it draws."""
    out = tmp_path / "samples.jsonl"
    draw = ["sample", "--run", str(trained), "--num-samples", "40", "--steps", "4"]
    draw += ["--batch-size", "1", "--device", "cpu"]
    ends, partial = time.monotonic() + patience(), tmp_path / "samples.jsonl.partial"
    first = start(draw, out)
    while not (partial.exists() and partial.stat().st_size):
        assert first.poll() is None and time.monotonic() < ends
        time.sleep(0.002)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        before = partial.read_bytes()
        for more in ((), ("--overwrite",)):
            said = refuse(*draw, "--output", out, *more)
            assert said == f"another process draws texts for {out}; wait for it, or choose another --output"
        assert partial.read_bytes() == before
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait(timeout=patience()) == 0
    seeds = [json.loads(line)["seed"] for line in out.read_text().splitlines()]
    assert len(seeds) == len(set(seeds)) == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.jsonl", "samples.jsonl.meta.json"]
