"""Runs the sections one after the other, each in its own process and for no longer than its share of the time.

If a section raises, hangs, or is ended by the driver, the others still run. What it has recorded is kept: rows are
written one by one, and when a section ends they go into the report, and its folder into one file. The output is at most
eight files, of which no section's should be larger than 16 MB.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import job
from ldlm import files
from ldlm.cli import show
from ldlm.versions import library_versions

LOG = "log.txt"
LARGEST_FILE = 16_000_000  # bytes
LAST_SECONDS = 5.0  # reserved for the report
UNKILLABLE = 10.0  # seconds to wait for a killed process to go: one that waits for a driver may never
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Section:
    """A section: a function of a `Job`, and its share of the time. What it leaves of its share goes to later ones."""

    name: str
    target: str  # MODULE:FUNCTION
    share: float


SECTIONS = (
    Section("tests", "benchmarks.gpu.tests:run", 0.17),
    Section("sampling", "benchmarks.gpu.sampling:run", 0.13),
    Section("training", "benchmarks.gpu.training:run", 0.32),
    Section("features", "benchmarks.gpu.features:run", 0.13),
    Section("text", "benchmarks.gpu.text:run", 0.25),
)


def main(arguments: Sequence[str], sections: Sequence[Section] = SECTIONS) -> None:
    """`python -m benchmarks gpu`; exits with status 1 if a section did not end as it should."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="minutes for everything; default 8")
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: toy sizes, to try it out")
    parser.add_argument("--text", type=Path, help="documents to train an LDLM on; default: installed prose")
    given = parser.parse_args(arguments)
    if given.output.exists() and any(given.output.iterdir()):
        parser.error(f"{given.output} is not empty; give another --output")
    if given.text is not None and not given.text.is_file():
        parser.error(f"--text {given.text} is no file")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ends = run(sections, given.output, minutes=given.minutes, device=given.device, text=given.text)
    if ends != ["done"] * len(sections):
        sys.exit(1)


def run(sections: Sequence[Section], out: Path, *, minutes: float, device: str, text: Path | None = None) -> list[str]:
    """Run the sections into the folder `out`; return how each ended.

    An interruption ends the current one and skips the rest.
    """
    begun, total = time.time(), 60 * minutes - LAST_SECONDS
    out.mkdir(parents=True, exist_ok=True)
    report = {"date": datetime.date.today().isoformat(), "minutes": minutes, **_machine(device), "sections": []}
    stem = f"gpu-{report['date']}-{device}"
    for number, section in enumerate(sections, 1):
        folder = out / f"{number}-{section.name}"
        ends = begun + total * sum(one.share for one in sections[:number])
        started, interrupted = time.time(), False
        try:
            ended = _bounded(section, folder, ends, device, text)
        except KeyboardInterrupt:
            ended, interrupted = "interrupted", True
        found = {"name": section.name, "ended": ended, "seconds": round(time.time() - started, 1)}
        report["sections"].append({**found, "rows": job.rows(folder)})
        files.write_atomic(out / f"{stem}.json", files.dump_json(files.finite(report)))
        files.write_atomic(out / f"{stem}.txt", as_text(report))
        print(_section_text(report["sections"][-1]), flush=True)
        _pack(folder)
        if interrupted:
            break
    return [section["ended"] for section in report["sections"]]


def _machine(device: str) -> dict[str, Any]:
    """The hardware and the versions, without starting CUDA in this process."""
    from benchmarks import machine
    from ldlm import runtime

    hardware = machine.card() if device == "cuda" else runtime.processor()
    return {"hardware": hardware, "versions": {**library_versions(), "xformers": machine.version("xformers")}}


def _bounded(section: Section, folder: Path, ends: float, device: str, text: Path | None) -> str:
    """Run a section until `ends` at the latest; return how it ended."""
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.gpu.job", section.target, str(folder)]
    command += ["--ends", str(ends), "--device", device, *([] if text is None else ["--text", str(text)])]
    with open(folder / LOG, "wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **OFFLINE, "PYTHONUNBUFFERED": "1"},
        )
        try:
            code = process.wait(timeout=max(1.0, ends - time.time()))
        except subprocess.TimeoutExpired:
            return "cut off at the end of its time"
        finally:
            _end(process)
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return "done" if code == 0 else f"failed: {_last_line(folder / LOG)}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a section's process, if it is running, and those that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(UNKILLABLE)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")


def _pack(folder: Path) -> None:
    """Pack a folder into one file beside it. The folder is removed only when the file is complete."""
    packed = folder.with_name(f"{folder.name}.tar.gz")
    with files.replacing(packed) as temporary, tarfile.open(temporary, "w:gz") as archive:
        archive.add(folder, folder.name)
    shutil.rmtree(folder)
    if packed.stat().st_size > LARGEST_FILE:
        print(f"{packed} has {files.amount(packed.stat().st_size)}, more than the 16 MB it should have", flush=True)


# ----------------------------------------------------------------------------------------------------------------------
# The report


def as_text(report: dict[str, Any]) -> str:
    """The report as text."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    head = f"{report['date']}, {report['hardware']}\n{versions}"
    return "\n\n".join([head, *map(_section_text, report["sections"])]) + "\n"


def _section_text(section: dict[str, Any]) -> str:
    """A section's tables, in the order of their first rows."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for row in section["rows"]:
        tables.setdefault(row["table"], []).append({key: value for key, value in row.items() if key != "table"})
    head = f"{section['name']}: {section['ended']}, {section['seconds']:.0f} s"
    return "\n\n".join([head, *(f"{name}\n\n{_table(rows)}" for name, rows in tables.items())])


def _table(rows: list[dict[str, Any]]) -> str:
    """Rows with a column for each key; reasons for missing figures stand below."""
    reasons = [f"{row['name']}: {why}, {row[why]}" for row in rows for why in ("skipped", "failed") if why in row]
    measured = [row for row in rows if not {"skipped", "failed"} & row.keys()]
    keys = list(dict.fromkeys(key for row in measured for key in row))
    cells = [[_cell(key, row.get(key)) for key in keys] for row in measured]
    heads = ["" if key == "name" else key.replace("_", " ") for key in keys]
    return "\n".join([*([show.table(heads, cells)] if measured else []), *reasons])


def _cell(key: str, value: Any) -> Any:
    if isinstance(value, float | int) and not isinstance(value, bool):
        if key.endswith("flops_per_second"):
            return f"{value / 1e12:.3g} TFLOP/s"
        if key.endswith("bytes_per_second"):
            return f"{value / 1e9:.3g} GB/s"
        if key.endswith("bytes"):
            return files.amount(value)
        if key.endswith("share"):
            return f"{value:.1%}"
    return value
