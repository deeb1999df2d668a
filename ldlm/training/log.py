"""`metrics.jsonl`: the metrics of a run, one JSON object per line, with `step` and `kind`.

If tensorboard is installed, scalars are written there too; if that fails, the run continues without it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldlm import files


class MetricsFile:
    """Appends lines to the metrics. A resumed run first drops the lines beyond its checkpoint (`truncate`)."""

    def __init__(
        self, path: Path, *, tensorboard: Path | None = None, on_fault: Callable[[str], None] = lambda text: None
    ) -> None:
        self.path = path
        self._tensorboard, self._on_fault = tensorboard, on_fault
        self._writer: Any = None

    def write(self, step: int, kind: str, figures: dict[str, Any], **timing: float) -> None:
        """Append a line; timings are kept under `timing`, since only they differ when a run is repeated.

        A figure that is not finite is written as null: JSON has no NaN.
        """
        line = {"step": step, "kind": kind, **files.finite(figures), **({"timing": timing} if timing else {})}
        with files.writing(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._tensorboard is not None:
            self._to_tensorboard(self._tensorboard, step, kind, {**figures, **timing})

    def _to_tensorboard(self, folder: Path, step: int, kind: str, figures: dict[str, Any]) -> None:
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(folder), purge_step=step)
            for name, figure in figures.items():
                if isinstance(figure, int | float):
                    self._writer.add_scalar(f"{kind}/{name}", figure, step)
            self._writer.flush()
        except ImportError:  # it is an extra
            self._tensorboard = None
        except Exception as error:  # a failing tracker must not end the run
            self._tensorboard = None
            self._on_fault(f"tensorboard is left out from here on ({type(error).__name__}: {error})")

    def read(self) -> list[dict[str, Any]]:
        """All complete lines; one left unfinished by a kill or a power cut is left out."""
        if not self.path.exists():
            return []
        whole = []
        for line in self.path.read_bytes().split(b"\n")[:-1]:
            try:
                whole.append(json.loads(line))
            except ValueError:
                break
        return whole

    def sync(self) -> None:
        """Flush the lines to disk, before the checkpoint that follows them."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())

    def truncate(self, step: int) -> None:
        """Drop the lines beyond `step`."""
        kept = [line for line in self.read() if line["step"] <= step]
        files.write_atomic(self.path, files.dump_jsonl(kept))

    def last(self, kind: str) -> dict[str, Any]:
        """Figures of the newest line of a kind; empty if there is none."""
        lines = [line for line in self.read() if line["kind"] == kind]
        return {k: v for k, v in lines[-1].items() if k not in ("step", "kind", "timing")} if lines else {}
