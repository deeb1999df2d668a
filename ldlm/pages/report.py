"""The report of a run as one HTML page: what was trained on what, how it went, and what came of it.

Everything on it is a function of `Report`, which holds the records of the run's files: the same files give the same
page. A section without its data is left out while the run is going on; once it is complete, the section names the
command that makes what is missing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from ldlm.config import total_steps
from ldlm.pages import report_results, report_training, svg
from ldlm.pages.chart import number, percent, short
from ldlm.pages.page import render
from ldlm.pages.report_data import Report, Section, model_name

SECTIONS: Sequence[Callable[[Report], Section | None]] = (
    report_training.losses, report_training.timesteps, report_training.latents, report_results.decoders,
    report_results.samples, report_results.trace, report_results.frontier, report_results.interpolation,
    report_training.speed, report_training.provenance,
)  # fmt: skip


def page(report: Report) -> str:
    """Render a report as HTML."""
    made = [make(report) for make in SECTIONS]
    status = report.status or {}
    state = "complete" if report.complete else status.get("state", "begun")
    return render(
        "report.html",
        report=report,
        state=state,
        reason=status.get("reason", "") if state == "failed" else "",
        what=_what(report),
        figures=_figures(report),
        sections=[section for section in made if section is not None],
        draw=svg.draw,
        area=svg.AREA,
    )


def _what(report: Report) -> str:
    """The run in two sentences."""
    config, features = report.config, report.features
    model = "A latent diffusion language model" if config.model.space == "ldlm" else f"A {config.model.space} model"
    trained = f"trained in steps of {config.batch_size:,} rows with seed {config.seed}"
    if features is None:
        return f"{model}, {trained}."
    encoder, rows = features["encoder"], features["rows"]["train"]
    name = model_name(encoder["name"])
    size = f" with {sum(report.parameters.values()):,} parameters"
    seen = {
        "hidden": f"as the hidden states of {name}, layer {encoder['layer']}",
        "embedding": f"as the token embeddings of {name}",
        "scratch": f"in the tokens of {name}",
    }[encoder["kind"]]
    length = features["shapes"]["seq_len"]
    return f"{model}{size}, {trained}. It learns from {rows:,} rows of {length:,} tokens, which it sees {seen}."


def _figures(report: Report) -> list[tuple[str, str, str]]:
    """The figures that one looks for first: name, value, and what to compare it with."""
    steps = total_steps(report.config)
    found = [("steps", f"{report.step:,}", "" if report.complete else f"{report.step / steps:.0%} of {steps:,}")]
    if report.step and report.features is not None:
        epochs = report.step * report.config.batch_size / report.features["rows"]["train"]
        found.append(("tokens seen", short(float(f"{report.tokens:.3g}")), f"{epochs:.3g} epochs"))
    found += _held_out(report)
    speeds = report_training.speeds(report)
    if speeds:
        found.append(("tokens per second", f"{statistics.median(speeds):,.0f}", "median"))
    return found


def _held_out(report: Report) -> list[tuple[str, str, str]]:
    """The figures of the newest held-out evaluation."""
    newest = next(reversed(report.lines("eval")), {})
    found = []
    if newest.get("l_diff") is not None:
        mean = newest["l_diff_mean"]
        beside = "" if mean is None else f"the mean latent: {number(mean)}"
        found.append(("held-out L_diff", number(newest["l_diff"]), beside))
    if newest.get("token_accuracy_clean") is not None:
        clean, noisy = percent(newest["token_accuracy_clean"]), percent(newest["token_accuracy"])
        found.append(("tokens rebuilt", clean, f"{noisy} under decoder noise"))
    if newest.get("latent_std") is not None:
        found.append(("latent std", number(newest["latent_std"]), "per coordinate"))
    return found
