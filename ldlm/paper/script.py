"""The commands of a table or figure as a shell script for a scheduler."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from ldlm.paper.costs import CARDS, Card
from ldlm.paper.jobs import Job, unique
from ldlm.paper.plan import Plan

KEEP = """keep() {  # a file, and the command whose result as JSON it keeps
    file=$1 && shift
    [ -e "$file" ] || { mkdir -p "$(dirname "$file")" && "$@" --json > "$file.tmp" && mv "$file.tmp" "$file"; }
}"""


def text(plan: Plan, output: str, name: str, *, card: Card = CARDS["A100-80GB"], devices: int = 1) -> str:
    """The script: a part that rows share, and a part for each row, chosen by its first argument.

    `output` is the folder in which the commands work, `name` the script's name in its own help.
    """
    exhibit = plan.exhibit
    used = Counter(mark for key in plan.chosen for mark in {job.mark for job in _of_row(plan, key)})
    shared = [job for job in plan.jobs if used[job.mark] > 1]
    rows = [exhibit.rows[key] for key in plan.chosen if _of_row(plan, key)]
    parts = [_function("shared", "commands that several rows share", shared, card, devices)]
    for number, row in enumerate(rows, 1):
        own = [job for job in _of_row(plan, row.key) if used[job.mark] == 1]
        parts.append(_function(f"row_{number}", f"{row.name}, Section {row.section}", own, card, devices))
    names = [f"row_{number}" for number in range(1, len(rows) + 1)]
    cases = [f"    all) shared; {'; '.join(names)} ;;", "    shared) shared ;;"]
    cases += [f"    {shlex.quote(row.short)}) {name} ;;" for row, name in zip(rows, names, strict=True)]
    known = " ".join(row.short for row in rows)
    head = f"""#!/bin/sh
# {exhibit.label} of the paper (Section {exhibit.section}): {exhibit.title}.
# sh {name}           everything, one command after the other
# sh {name} shared    commands that several rows share
# sh {name} ROW       the rest of a row, after `shared`; rows may run at the same time: {known}
# Each command resumes where it was interrupted. Afterwards, for the table:
#   ldlm paper {exhibit.name} --scale paper --output {shlex.quote(output)} --report
set -eu
export PYTHONSAFEPATH=1  # no module is imported from the folder
mkdir -p -- {shlex.quote(output)} && cd -- {shlex.quote(output)}
{KEEP}
"""
    foot = ["case ${1:-all} in", *cases, f'    *) echo "no part $1: all, shared, {known}" >&2; exit 2 ;;', "esac"]
    return "\n".join([head, *parts, *foot]) + "\n"


def _of_row(plan: Plan, key: str) -> list[Job]:
    return unique(job for measured in plan.rows if measured.row.key == key for job in measured.jobs)


def _function(name: str, about: str, jobs: Sequence[Job], card: Card, devices: int) -> str:
    lines = [f"    {line(job, card, devices)}" for job in jobs] or ["    :"]
    return "\n".join([f"{name}() {{  # {about}", *lines, "}", ""])


def line(job: Job, card: Card, devices: int) -> str:
    """A job as a line of shell."""
    words = [*job.words]
    if job.kind == "train":
        words += ["--fit", f"{card.memory}GB"]
    many = devices > 1 and job.kind in ("train", "decoder")
    launcher = ["torchrun", f"--nproc-per-node={devices}", "-m", "--", "ldlm.cli"] if many else ["ldlm"]
    return shlex.join([*(["keep", job.keeps] if job.keeps else []), *launcher, *words])
