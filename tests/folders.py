"""What is in folders and in files of JSON lines, for tests that compare them."""

import json
from pathlib import Path
from typing import Any

from ldlm.training.log import MetricsFile


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def lines(path: Path | str) -> list[Any]:
    """The JSON objects of a file, one per line."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def metrics(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The metrics of a run without their timings, which alone may differ; those of a kind, or all."""
    found = MetricsFile(run / "metrics.jsonl").read()
    return [{k: v for k, v in line.items() if k != "timing"} for line in found if kind in (None, line["kind"])]
