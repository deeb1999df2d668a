"""The prepared run on a GPU: a section that fails leaves the others running, and what was measured is kept whole.

The sections here need no torch. Those that measure are tried by `python -m benchmarks gpu --device cpu`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from patience import patience

from benchmarks.gpu import job, runner, text, wheels
from benchmarks.gpu.runner import Section

ROOT = Path(__file__).resolve().parent.parent
MADE = """
import os, signal, subprocess, sys, time

def works(job):
    job.record("speed", name="first", seconds=0.5, share=0.25, peak_bytes=2**20)
    job.record("speed", name="second", skipped="there is no such kernel")
    (job.folder / "made.txt").write_text("kept")

def raises(job):
    job.record("speed", name="before", seconds=float("nan"))
    raise RuntimeError("CUDA error: an illegal memory access")

def exits(job):
    os._exit(3)

def crashes(job):
    os.kill(os.getpid(), signal.SIGSEGV)

def hangs(job):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    job.record("speed", name="before", child=child.pid, own=os.getpid())
    with open(job.folder / "figures.jsonl", "a") as file:
        file.write('{"table": "cut')
    time.sleep(600)
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Sections by name, as their process imports them."""
    (tmp_path / "made_sections.py").write_text(MADE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    return lambda *names: [Section(name, f"made_sections:{name}", 1 / len(names)) for name in names]


def packed(path):
    """The files of a section by their names."""
    with tarfile.open(path) as archive:
        return {Path(one.name).name: archive.extractfile(one).read().decode() for one in archive if one.isfile()}


def gone(pid):
    """Whether a process has ended, or only its parent has not yet heard of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_section_that_fails_leaves_the_others_running_and_every_file_whole(made, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LAST_SECONDS", 0.0)
    names = ("hangs", "raises", "exits", "crashes", "works")
    sections = [replace(section, share=1.0) for section in made(*names)]
    ends = runner.run(sections, tmp_path / "out", minutes=patience(1) / 60, device="cpu")
    assert ends == [
        "cut off at the end of its time",
        "failed: RuntimeError: CUDA error: an illegal memory access",
        "failed: it said nothing",
        "ended by SIGSEGV",
        "done",
    ]

    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files[:-2] == [f"{number}-{name}.tar.gz" for number, name in enumerate(names, 1)]
    report = json.loads((tmp_path / "out" / files[-2]).read_text())
    assert report["hardware"] and report["versions"]["torch"]
    rows = {section["name"]: section["rows"] for section in report["sections"]}
    assert rows["raises"] == [{"table": "speed", "name": "before", "seconds": None}]
    assert [len(rows[name]) for name in names] == [1, 1, 0, 0, 2]  # half a row is none
    assert gone(rows["hangs"][0]["child"]) and gone(rows["hangs"][0]["own"])

    text = (tmp_path / "out" / files[-1]).read_text()
    assert "second: skipped, there is no such kernel" in text
    assert "25.0%" in text and "1.0 MiB" in text
    assert packed(tmp_path / "out" / "5-works.tar.gz")["made.txt"] == "kept"
    assert "Traceback" in packed(tmp_path / "out" / "2-raises.tar.gz")["log.txt"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_killed_keeps_what_it_has_and_leaves_no_process(made, tmp_path, how):
    out, listed = tmp_path / "out", made("works", "hangs", "works")
    program = f"from benchmarks.gpu.runner import *; main({['--output', str(out), '--device', 'cpu']}, {listed})"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, cwd=ROOT)
    ends = time.monotonic() + patience(10)
    while not job.rows(out / "2-hangs"):
        assert process.poll() is None and time.monotonic() < ends
        time.sleep(0.05)
    (running,) = job.rows(out / "2-hangs")
    process.send_signal(how)
    process.wait(patience())
    while not gone(running["own"]):
        assert time.monotonic() < ends
        time.sleep(0.05)

    names = sorted(path.name for path in out.iterdir())
    left = "2-hangs.tar.gz" if how == signal.SIGTERM else "2-hangs"
    assert [names[0], names[1]] == ["1-works.tar.gz", left] and len(names) == 4
    assert packed(out / "1-works.tar.gz")["made.txt"] == "kept"
    sections = json.loads((out / names[2]).read_text())["sections"]
    assert [one["ended"] for one in sections] == ["done", "interrupted"][: 2 if how == signal.SIGTERM else 1]
    if how == signal.SIGTERM:
        assert sections[1]["rows"] == [running]
    else:
        os.kill(running["child"], signal.SIGKILL)  # which nothing but its own parent would have ended


def test_a_figure_that_can_not_be_had_leaves_those_after_it(tmp_path):
    from ldlm.errors import InputError

    def refuse():
        raise InputError("no kernels for cpu")

    def fail():
        raise RuntimeError("out of registers\nand more")

    section = job.Job(tmp_path, tmp_path, time.time() + 60)
    for name, measure in {"a": refuse, "b": fail, "c": lambda: {"seconds": 1.0}}.items():
        section.attempt("kernels", name, measure)
    found = [{key: value for key, value in row.items() if key != "took_seconds"} for row in job.rows(tmp_path)]
    assert found == [
        {"table": "kernels", "name": "a", "skipped": "no kernels for cpu"},
        {"table": "kernels", "name": "b", "failed": "RuntimeError: out of registers"},
        {"table": "kernels", "name": "c", "seconds": 1.0},
    ]


def test_a_folder_with_something_in_it_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        runner.main(["--output", str(tmp_path), "--device", "cpu"])
    assert "is not empty; give another --output" in capsys.readouterr().err


def test_every_section_is_there_and_their_shares_are_the_whole():
    assert [section.name for section in runner.SECTIONS] == ["tests", "sampling", "training", "features", "text"]
    assert sum(section.share for section in runner.SECTIONS) == pytest.approx(1)


def test_what_is_carried_has_all_that_it_needs_beyond_what_is_there():
    carried = wheels.packages()
    assert {"xformers", "zarr", "numcodecs", "google-crc32c", "donfig", "pytest", "setuptools"} <= carried.keys()
    assert not {"torch", "numpy", "jinja2", "packaging"} & carried.keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch.profiler")
@pytest.mark.parametrize("name", ["sampling", "training", "features", "text"])
def test_a_section_measures_all_that_it_promises(name, tmp_path, monkeypatch, corpus):
    """At toy sizes. Its figures are nobody's claim here."""
    folder = tmp_path / "kept"
    folder.mkdir()
    section = job.Job(folder, tmp_path, time.time() + 60, "cpu", corpus)
    module = importlib.import_module(f"benchmarks.gpu.{name}")
    sizes = {"sampling": {"whole": 2, "fewer": 1, "of_rivals": 1}, "training": {"most_rows": 2, "tokens": 256}}
    monkeypatch.setitem(module.SIZES, "cpu", replace(module.SIZES["cpu"], **sizes.get(name, {})))
    module.run(section)
    tables: dict[str, list[dict]] = {}
    for row in job.rows(folder):
        assert "failed" not in row
        assert "skipped" not in row or "xformers has no kernels for cpu" in row["skipped"]
        figures = [row[key] for key in row if key in ("seconds", "share", "tokens_per_second", "gen_ppl")]
        assert all(0 < figure < float("inf") for figure in figures)
        tables.setdefault(row["table"].partition(" ")[0], []).append(row)
    counts = {table: len(rows) for table, rows in tables.items()}
    assert (
        counts
        == {
            "sampling": {"limits": 1, "32": 3, "largest": 10, "rivals": 7},
            "training": {"limits": 1, "largest": 20, "training": 2, "steps": 9},
            "features": {"limits": 1, "vocabulary": 4, "extraction,": 1, "share": 1},
            "text": {"model": 1, "texts": 2},
        }[name]
    )
    if name == "text":
        assert (folder / "model" / "model.safetensors").stat().st_size < 16e6
        assert len((folder / "samples.jsonl").read_text().splitlines()) == 50


def test_steps_are_sized_by_the_difference_of_two_runs():
    # 3 s before the first step and 0.01 s a step: of 53 s there are 50 for steps.
    assert text.steps_in(53, (4, 3.04), (256, 5.56)) == pytest.approx(5000, abs=2)
    assert text.steps_in(2, (4, 3.04), (256, 5.56)) == 1  # too little even for the start
    # Noise may make the longer run no longer: it bounds the steps all the same.
    assert text.steps_in(50, (4, 5.0), (256, 5.0)) < 256 * text.GROWTH * 50 / 5
