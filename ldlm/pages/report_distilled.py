"""Words, figures, charts and sections of the report on a distilled run: its rounds, and what they learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ldlm.config import DistilledConfig
from ldlm.pages import report_training
from ldlm.pages.chart import BLUE, GREY, ORANGE, Axis, Chart, number
from ldlm.pages.curves import SQUARED, STEP, Course, Row, held_out, of_kind, over_steps
from ldlm.pages.report_data import Figure, Report, Section, charts


def what(report: Report[DistilledConfig]) -> str:
    """The run in a few sentences."""
    own = report.config.distillation
    guided = f", guidance {own.guidance:g} folded in" if own.guidance != 1 else ""
    return (
        f"{report_training.what(report)} Its denoiser is distilled from {own.start} evaluations a text to "
        f"{own.evaluations}{guided}, in rounds of {own.steps:,} steps; encoder and decoders are those of the run "
        f"that it began with."
    )


def steps(report: Report[DistilledConfig]) -> int:
    """Steps of the whole distillation."""
    return report.config.steps


def newest(report: Report[DistilledConfig]) -> list[Figure]:
    """The figures of the newest held-out evaluation."""
    line = next(reversed(report.lines("eval")), {})
    if line.get("l_distill") is None:
        return []
    beside = f"the teacher in its place: {number(line['l_distill_teacher'])}"
    evaluations = number(line["evaluations"])
    return [("evaluations", evaluations, "of a text"), ("held-out loss", number(line["l_distill"]), beside)]


def losses(report: Report[DistilledConfig]) -> Section:
    """The loss over the rounds."""
    return Section(
        "losses",
        "Rounds",
        "How far the student's one step is from its teacher's two. Each round begins with a new teacher, the student "
        "before. Faint lines are single steps; dots are held-out rows with averaged weights.",
        charts(training(report.course)),
    )


# ----------------------------------------------------------------------------------------------------------------------
# Charts


def training(course: Course[DistilledConfig]) -> list[Chart]:
    """The loss over the steps, and each round's number of evaluations per text."""
    metrics = course.metrics
    lines = [
        over_steps(of_kind(metrics, "train"), "training", "l_distill", BLUE, noisy=True),
        held_out(metrics, "held out", "l_distill", ORANGE),
        held_out(metrics, "held out, the teacher in its place", "l_distill_teacher", GREY),
    ]
    count = over_steps(of_kind(metrics, "train"), "evaluations", "evaluations", BLUE)
    return [
        Chart("Two steps in one", STEP, SQUARED, lines),
        Chart("Rounds", STEP, Axis("evaluations of a text", low=0), [count]),
    ]


def timesteps(course: Course[DistilledConfig]) -> list[Chart]:
    """No charts, since a student has only a few times."""
    return []


def dynamics(runs: Mapping[str, Sequence[Row]], colors: Mapping[str, str]) -> list[Chart]:
    """Losses of one or more runs, by name."""
    lines = [
        over_steps(of_kind(metrics, "train"), name, "l_distill", colors[name], noisy=True)
        for name, metrics in runs.items()
    ]
    return [Chart("Two steps in one", STEP, SQUARED, lines)]
