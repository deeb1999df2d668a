"""Runs jobs, each as a process of `ldlm`; finished jobs are not repeated, and several runners may share an output."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ldlm import children, files
from ldlm.errors import InputError, Stopped
from ldlm.locks import passed_on
from ldlm.paper import origin, text
from ldlm.paper.jobs import Job
from ldlm.paper.plan import held_out_rows
from ldlm.progress import Progress
from ldlm.runtime import Stop, occasion

TEMPORARY_FAILURE = 75  # exit status of a stage stopped by a signal
WAIT_EVERY = 2.0  # seconds


@dataclass
class Runner:
    """The output folder, the text from which it is made, and the jobs that have failed in it."""

    folder: Path
    source: Path | None
    progress: Progress
    failed: list[Job] = field(default_factory=list)
    rows: int = 0  # held-out ones that the jobs need
    checked: bool = False  # the text, once it is there

    @property
    def text_name(self) -> str | None:
        """File name of the text in the output or, before there is one, of the source; None for the built-in text."""
        there = text.record(self.folder)
        if there is None:
            return None if self.source is None else self.source.name
        return None if there["source_sha256"] is None else str(there["file"])

    def run(self, jobs: Sequence[Job]) -> None:
        """Do all jobs. If a job fails, those that need it are left out, and the others are done.

        On SIGTERM and SIGINT the current job is asked to stop, and `Stopped` is raised.
        """
        files.make_folder(self.folder)
        left = [job for job in jobs if not job.done(self.folder)]
        self.rows = held_out_rows(left)
        text.check(self.folder, self.source, self.rows)
        self.checked = text.record(self.folder) is not None
        total, told = len(jobs), False
        with Stop() as stop:
            while left := [job for job in left if not job.done(self.folder) and not self._blocked(job)]:
                if not self._any(left, total, jobs, stop):
                    if not told:
                        self.progress.note(f"another process is at work in {self.folder}; waiting for it")
                    told = True
                    stop.interruptible(lambda: time.sleep(WAIT_EVERY))
                if stop.wished:
                    raise Stopped(
                        f"{stop.wished}: {sum(job.done(self.folder) for job in jobs)} of {total} jobs are done"
                    )

    def _blocked(self, job: Job) -> bool:
        """Whether a job has failed, or needs one that has."""
        gone = {one.output for one in self.failed}
        if job not in self.failed and gone.intersection(job.needs):
            self.failed.append(job)
        return job in self.failed

    def _any(self, left: Sequence[Job], total: int, jobs: Sequence[Job], stop: Stop) -> bool:
        """Do each job that is ready and that no other process is doing; False if there was none."""
        marks = {job.output: job.mark for job in jobs}
        worked = False
        for job in left:
            if stop.wished or job.done(self.folder) or self._blocked(job):
                continue
            if not all((self.folder / marks.get(need, need)).exists() for need in job.needs):
                continue
            with passed_on(self.folder / "locks" / job.mark.replace("/", "-")) as descriptor:
                if descriptor is None or job.done(self.folder):
                    continue
                number = sum(one.done(self.folder) for one in jobs) + 1
                self.progress.note(f"{number} of {total}: {job.kind} {job.output}")
                worked = True
                if not self._do(job, descriptor, stop) and not stop.wished:
                    self.failed.append(job)
                    self.progress.note(f"failed: {job.kind} {job.output}; continuing with jobs that do not need it")
        return worked

    def _do(self, job: Job, lock: int, stop: Stop) -> bool:
        """Do a job; False if its command failed."""
        if job.kind == "text":
            text.write(self.folder, self.source, self.rows)
            return True
        if not self.checked:  # there was no text before, and another process may have written another one
            text.check(self.folder, self.source, self.rows)
            self.checked = True
        done = children.run([*job.words, "--json"], self.folder, lock, stop)
        spent = {"seconds": done.seconds, "cpu_seconds": done.cpu_seconds}
        line = {"ldlm": list(job.words), "makes": job.mark, "status": done.status, **spent, **occasion()}
        origin.append(self.folder / origin.COMMANDS, line)
        if done.status == TEMPORARY_FAILURE and not stop.wished:
            raise Stopped(f"{job.kind} {job.output} was stopped")
        if done.status:
            return False
        if job.keeps is not None:
            files.write_atomic(self.folder / job.keeps, done.printed)
        return True

    def check(self) -> None:
        """`InputError` if jobs have failed."""
        if self.failed:
            first = self.failed[0]
            raise InputError(
                f"{len(self.failed)} jobs failed or need one that did, the first `ldlm {' '.join(first.words[:2])} … "
                f"{first.output}`, whose own message is above; the same command tries them again"
            )
