"""When, where and with which versions the figures of a table were measured, from the records of its jobs.

A table may be gathered long after them, and on a machine that has done none of them.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldlm import files
from ldlm.paper.jobs import ARTEFACTS, Job
from ldlm.versions import library_versions

COMMANDS = "commands.jsonl"


@dataclass(frozen=True)
class Origin:
    """The origin of the figures of a table."""

    date: str  # of the newest measurement; today where no record says
    hardware: str | None  # every machine that a record names, "; " between them; None where none does
    versions: Mapping[str, str | None] | None  # of the last job that records them; None where none does


def of_jobs(jobs: Sequence[Job], folder: Path, *, here: bool) -> Origin:
    """The origin of what jobs have measured. With `here`, this process stands in where no record says."""
    from ldlm import runtime

    records = [*_records(jobs, folder)]
    dates, machines, versions = (
        [record[key] for record in records if record.get(key)] for key in ("date", "hardware", "versions")
    )
    return Origin(
        date=max(dates, default=datetime.date.today().isoformat()),
        hardware="; ".join(dict.fromkeys(machines)) or (runtime.hardware() if here else None),
        versions=versions[-1] if versions else library_versions() if here else None,
    )


def _records(jobs: Sequence[Job], folder: Path) -> Iterator[Mapping[str, Any]]:
    """The records of finished jobs: lines of `commands.jsonl`, and what the jobs left; older ones say less."""
    lines = {line.get("makes"): line for line in _commands(folder) if line.get("status") == 0}
    for job in jobs:
        if job.done(folder):
            yield lines.get(job.mark, {})
            if job.kind in ARTEFACTS or job.keeps is not None:
                yield files.read_json(folder / job.mark)


def _commands(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of `commands.jsonl`, but for those that a full disk or a kill has cut: it is a log."""
    path = folder / COMMANDS
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)
