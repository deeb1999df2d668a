"""The report of a run as one HTML page: what was trained on what, how it went, and what came of it.

Everything on it is a function of `Report`, which holds the records in the run's files: the same files give the same
page. A section without data is left out while the run is in progress; once the run is complete, the section names the
command that makes what is missing.
"""

from __future__ import annotations

import statistics

from ldlm.pages import kinds, report_training, svg
from ldlm.pages.chart import short
from ldlm.pages.page import render
from ldlm.pages.report_data import AnyReport, Figure


def page(report: AnyReport) -> str:
    """Render a report as HTML."""
    kind = kinds.of(report.config)
    made = [make(report) for make in kind.sections]
    status = report.status or {}
    state = "complete" if report.complete else status.get("state", "begun")
    return render(
        "report.html",
        report=report,
        state=state,
        reason=status.get("reason", "") if state == "failed" else "",
        what=kind.what(report),
        figures=_figures(report, kind),
        sections=[section for section in made if section is not None],
        draw=svg.draw,
        area=svg.AREA,
    )


def _figures(report: AnyReport, kind: kinds.Kind) -> list[Figure]:
    """The figures that readers look for first."""
    steps = kind.steps(report)
    found = [("steps", f"{report.step:,}", "" if report.complete else f"{report.step / steps:.0%} of {steps:,}")]
    if report.step and report.features is not None:
        epochs = report.step * report.config.batch_size / report.features["rows"]["train"]
        found.append(("tokens seen", short(float(f"{report.tokens:.3g}")), f"{epochs:.3g} epochs"))
    found += kind.held_out(report)
    speeds = report_training.speeds(report)
    if speeds:
        found.append(("tokens per second", f"{statistics.median(speeds):,.0f}", "median"))
    return found
