"""When, where and with which versions the figures of a table were measured, from the records of its jobs.

A table may be gathered long after them, and on a machine that has done none of them.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    versions: Mapping[str, str | None] | None  # of the last record that has them; None where none does


def of_jobs(jobs: Sequence[Job], folder: Path, *, here: bool) -> Origin:
    """The origin of what jobs have measured. With `here`, this process stands in where no record says."""
    return of_records(_records(jobs, folder), here=here)


def of_records(records: Iterable[Mapping[str, Any]], others: Iterable[Mapping[str, Any]] = (), *, here: bool) -> Origin:
    """The origin of measurements, of which older records say less. With `here`, this process stands in for them.

    `others` are results from elsewhere that are shown beside them, for which it doesn't.
    """
    from ldlm import runtime

    dates, machines, versions = _values(records)
    dates = dates or [datetime.date.today().isoformat()]
    machines = machines or ([runtime.hardware()] if here else [])
    more_dates, more_machines, _ = _values(others)
    names = [name for several in (*machines, *more_machines) for name in several.split("; ")]
    return Origin(
        date=max([*dates, *more_dates]),
        hardware="; ".join(dict.fromkeys(names)) or None,
        versions=versions[-1] if versions else library_versions() if here else None,
    )


def _values(records: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    """Dates, machines and versions that records have."""
    found = [*records]
    return [[record[key] for record in found if record.get(key)] for key in ("date", "hardware", "versions")]


def _records(jobs: Sequence[Job], folder: Path) -> Iterator[Mapping[str, Any]]:
    """The records of finished jobs: lines of `commands.jsonl`, and what the jobs left; older ones say less."""
    lines = {line.get("makes"): line for line in read(folder / COMMANDS) if line.get("status") == 0}
    for job in jobs:
        if job.done(folder):
            yield lines.get(job.mark, {})
            if job.kind in ARTEFACTS or job.keeps is not None:
                yield files.read_json(folder / job.mark)


# ----------------------------------------------------------------------------------------------------------------------
# `commands.jsonl`, a log: neither a kill nor a full disk, which cut a line, may cost another line or a report


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to a log, on a line of its own even if the last one has been cut."""
    with files.writing(path), open(path, "a+b") as file:
        file.seek(max(0, file.tell() - 1))
        begin = "" if file.read(1) in (b"", b"\n") else "\n"
        file.write((begin + files.dump_jsonl([record])).encode())  # at the end, wherever it has been read


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a log, without lines that have been cut; none if there is no log."""
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield record
