"""A section of the run, in its own process: its inputs, and where its figures go.

`python -m benchmarks.gpu.job MODULE:FUNCTION FOLDER --ends T` calls the function with a `Job`. Nothing here loads torch
before a section asks for it.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import importlib
import json
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldlm import memory, waiting
from ldlm.errors import InputError

if TYPE_CHECKING:
    import torch

    from benchmarks.machine import Limits

FIGURES = "figures.jsonl"
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
LIMIT_SECONDS = 0.3  # of each limit


@dataclass(frozen=True)
class Job:
    """The folders, the device and the time of a section."""

    folder: Path  # files left here are kept
    scratch: Path  # files left here are not
    ends: float  # when the process will be ended, in seconds since the epoch
    device_name: str = "cpu"
    text: Path | None = None  # the user's

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.ends - time.time()

    @cached_property
    def device(self) -> torch.device:
        """The device to measure."""
        from ldlm import runtime

        return runtime.device(self.device_name)

    @cached_property
    def limits(self) -> Limits:
        """Limits of the machine, measured and recorded on first use."""
        from benchmarks.machine import limits

        found = limits(self.device, LIMIT_SECONDS)
        flops = {f"{name}_flops_per_second": rate for name, rate in found.flops.items()}
        rates = {"copy_bytes_per_second": found.copy, "read_bytes_per_second": found.read}
        self.record("limits", name=self.device.type, **flops, **rates)
        return found

    def record(self, table: str, **figures: Any) -> None:
        """Add a row to one of the section's tables; it is on disk when this returns."""
        with open(self.folder / FIGURES, "a", encoding="utf-8") as file:
            file.write(json.dumps({"table": table, **figures}, ensure_ascii=False) + "\n")
        print(json.dumps({"table": table, **figures}, ensure_ascii=False), flush=True)

    def attempt(self, table: str, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Record the figures of `measure`, or the reason why there are none in one line; later ones are still measured.

        `InputError` means that this machine or this version lacks what is measured.
        """
        started = time.perf_counter()
        try:
            found = measure()
        except InputError as error:
            found = {"skipped": str(error)}
        except Exception as error:  # a kernel that doesn't compile, or too little memory, is a finding too
            traceback.print_exc()
            found = {"failed": f"{type(error).__name__}: {error}".partition("\n")[0]}
        self.record(table, name=name, **found, took_seconds=round(time.perf_counter() - started, 1))
        self._free()

    def _free(self) -> None:
        """Release the device's memory and compiled kernels."""
        import torch

        torch._dynamo.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def rows(folder: Path) -> list[dict[str, Any]]:
    """Rows that a section has recorded so far, each with the name of its table, without an incomplete last line."""
    path = folder / FIGURES
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def main() -> None:
    """Run one section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ends", type=float, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--text", type=Path)
    given = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # without its parent, nobody would end this process
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(1.0, given.ends - time.time() - 2))  # shows where it hangs
    memory.keep_freed()
    waiting.bound_spinning()
    module, _, function = given.target.partition(":")
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(given.folder, Path(scratch), given.ends, given.device, given.text)
        getattr(importlib.import_module(module), function)(job)


if __name__ == "__main__":
    main()
