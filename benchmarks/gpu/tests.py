"""The tests marked gpu, in this process. On a CPU, the tests in the same files that run on either device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.job import Job

TESTS = Path(__file__).resolve().parents[2] / "tests"
ON = {"cuda": ["-m", "gpu"], "cpu": ["-m", "not gpu and not slow", "-k", "[cpu"]}


def run(job: Job) -> None:
    """Record how each test ended; the section fails if one did."""
    try:
        import pytest
    except ModuleNotFoundError:
        job.record("tests", name="all", skipped="pytest is not installed")
        return
    where = [path for path in sorted(TESTS.rglob("test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")]
    outcomes = _Outcomes(job)
    # Warnings from versions other than those tested together are not findings here.
    pytest.main([*ON[job.device.type], "-W", "default", "-p", "no:cacheprovider", *map(str, where)], plugins=[outcomes])
    if outcomes.failed or not outcomes.taken:
        sys.exit(f"{outcomes.failed} of {outcomes.taken} tests failed")


class _Outcomes:
    """A pytest plugin that records each test when it has ended, and each file that can't be imported."""

    def __init__(self, job: Job) -> None:
        self.job, self.taken, self.failed = job, 0, 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test was set up, called or torn down; for set-up and tear-down only a failure or a skip counts."""
        if report.when == "call" or not report.passed:
            self._note(report, report.duration)

    def pytest_collectreport(self, report: Any) -> None:
        """A file was imported, or could not be."""
        if not report.passed:
            self._note(report, 0.0)

    def _note(self, report: Any, seconds: float) -> None:
        self.taken, self.failed = self.taken + 1, self.failed + report.failed
        self.job.record(
            "tests", name=report.nodeid.partition("::")[2] or report.nodeid, ended=report.outcome, seconds=seconds
        )
