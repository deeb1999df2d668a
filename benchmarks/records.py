"""Results as a benchmark records them: its table below date and hardware, and its figures with the versions."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldlm import files
from ldlm.cli import show
from ldlm.runtime import hardware
from ldlm.versions import library_versions


def keep(text: str, name: str, output: Path | None, figures: Mapping[str, Any] | None = None) -> None:
    """Print a table; with `output`, keep it there as NAME-DATE.txt, and the figures, if any, as NAME-DATE.json."""
    date = datetime.date.today().isoformat()
    dated = f"{date}, {hardware()}\n\n{text}\n"
    print(dated)
    if output is None:
        return
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}-{date}.txt").write_text(dated, encoding="utf-8")
    if figures is not None:
        record = {"date": date, "hardware": hardware(), "versions": library_versions(), **figures}
        (output / f"{name}-{date}.json").write_text(files.dump_json(record), encoding="utf-8")


def cell(values: Sequence[float]) -> str:
    """Mean ± standard deviation of a figure over seeds; of a single seed, the figure."""
    spread = f" ± {show.value(statistics.stdev(values))}" if len(values) > 1 else ""
    return show.value(statistics.mean(values)) + spread
