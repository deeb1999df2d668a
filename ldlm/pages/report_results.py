"""Sections of a report on what was made with a run: decoders, texts, a trace, a sweep, interpolation, likelihood."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from ldlm.evaluation import fronts
from ldlm.pages import fronts as fronts_charts
from ldlm.pages import results
from ldlm.pages.chart import number, percent
from ldlm.pages.curves import evenly
from ldlm.pages.report_data import (
    AnyReport,
    Block,
    Heading,
    Report,
    Row,
    SampleSet,
    Section,
    Table,
    cell,
    charts,
    missing,
    model_name,
    of_step,
    texts,
)

TEXTS = 6  # of each set of samples
FRAMES = 6  # of a trace


def decoders(report: AnyReport) -> Section | None:
    """The joint decoder and the fine-tuned ones, with their held-out figures."""
    title = "Decoders"
    if not report.decoders:
        command = "ldlm finetune-decoder --run RUN --features FEATURES --layers 2"
        return missing(report, "decoders", title, "No decoder has been fine-tuned;", command)
    newest = report.decoders[-1]
    joint = [("joint", "–", newest["replaces"], newest["checkpoint_step"], newest["joint"])] if newest["joint"] else []
    tuned = [
        (one["name"], one["network"]["layers"], one["parameters"], one["checkpoint_step"], one["held_out"])
        for one in report.decoders
    ]
    rows = [
        (name, layers, f"{parameters:,}", f"{step:,}", *(cell(figures[key], shown) for key, shown in _REBUILT.items()))
        for name, layers, parameters, step, figures in [*joint, *tuned]
    ]
    head = ("decoder", "layers", "parameters", "latents of step", "CE", "CE, noise", "tokens", "tokens, noise")
    lead = (
        "What turns latents into tokens: D_h and D_w as they were trained jointly, and decoders that read the latents "
        "directly. On held-out rows, without noise and under the noise of their training."
    )
    return Section("decoders", title, lead, [Table(title, head, rows)])


_REBUILT: dict[str, Callable[[float], str]] = {
    "l_w_clean": number, "l_w": number, "token_accuracy_clean": percent, "token_accuracy": percent,
}  # fmt: skip


def _how(report: AnyReport, one: SampleSet) -> str:
    """The settings with which a set of texts was drawn, in words."""
    sampler = one.about["config"]["sampler"]
    guidance = f", guidance {sampler['guidance']:g}" if sampler["guidance"] != 1 else ""
    return (
        f"{len(one.rows):,} texts from {of_step(report, one.about['step'])}: {sampler['solver']}, "
        f"{sampler['steps']:,} steps, grid {sampler['grid']}{guidance}, temperature {sampler['temperature']:g}, "
        f"decoder {one.about['decoder']}."
    )


def samples(report: AnyReport, how: Callable[[Report[Any], SampleSet], str] = _how) -> Section | None:
    """The first texts of each set that was drawn; `how` puts the settings of a set into words."""
    if not report.samples:
        command = "ldlm sample --run RUN --num-samples 64 --output RUN/samples.jsonl"
        return missing(report, "samples", "Samples", "No texts have been drawn;", command)
    blocks: list[Block] = []
    for one in report.samples:
        rows = sorted(one.rows, key=lambda row: row["seed"])[:TEXTS]
        blocks.append(Heading(one.name, how(report, one)))
        blocks.append(texts(report, ((f"seed {row['seed']:,}", row["text"]) for row in rows)))
    lead = f"The first {TEXTS} texts by seed, whole and unedited, with their special tokens."
    return Section("samples", "Samples", lead, blocks)


def trace(report: AnyReport) -> Section | None:
    """A text at several times on its way from noise."""
    title, found = "From noise to text", report.trace
    if found is None:
        command = "ldlm sample --run RUN --trace RUN/trace"
        return missing(report, "trace", title, "No text has been followed on its way from noise;", command)
    shown = [
        (f"t = {frame['t']:.3f}, confidence {statistics.fmean(frame['probabilities']):.0%}", frame["text"])
        for frame in evenly(found["frames"], FRAMES)
    ]
    lead = (
        f"What the decoder reads in the denoiser's estimate while t falls: the text with seed "
        f"{found['text_seed']:,}, {found['solver']} with {found['steps']:,} steps, from "
        f"{of_step(report, found['step'])}."
    )
    return Section("trace", title, lead, [texts(report, shown)])


# ----------------------------------------------------------------------------------------------------------------------
# The sweep


def frontier(report: AnyReport) -> Section | None:
    """Perplexity, entropy and evaluations of the samplers that a sweep compared."""
    title, sweep = "Quality against evaluations", report.sweep
    if sweep is None:
        command = "ldlm sweep --run RUN --reference REAL_TEXT --scorer SCORER"
        return missing(report, "frontier", title, "No samplers have been compared;", command)
    if "points" in sweep:
        return _points(report, sweep)
    of = f"; diversity is of {sweep['diversity_texts']:,} texts of each" if "diversity_texts" in sweep else ""
    lead = (
        f"Low perplexity is worth nothing without the entropy of real text. {sweep['texts']:,} texts each from "
        f"{of_step(report, sweep['step'])}, scored by {model_name(sweep['scorer'])}; {sweep['screen_texts']:,} texts "
        f"each to screen{of}. {report.verdict}"
    )
    if without := len(sweep["screened"]) - len(results.scored(sweep["screened"])):
        lead += (
            f" {without:,} of the {len(sweep['screened']):,} combinations that were screened have no perplexity, for "
            f"none of their texts has a token to score."
        )
    return Section("frontier", title, lead, [*charts(results.frontier(sweep)[:2]), _finalists(sweep)])


def _points(report: AnyReport, sweep: Row) -> Section:
    """The section on the sweep of a token-level run, in which every sampler is run at every budget."""
    lead = (
        f"{fronts.NO_WIN} {sweep['texts']:,} texts each from {of_step(report, sweep['step'])}, scored by "
        f"{model_name(sweep['scorer'])}; diversity is of {sweep['diversity_texts']:,} texts of each. "
        f"{fronts.COUNTED_AS}"
    )
    table = Table("Every sampler at each budget", *fronts.written(sweep))
    return Section("frontier", "Quality against evaluations", lead, [*charts(fronts_charts.charts(sweep)), table])


def _finalists(sweep: Row) -> Table:
    head = (
        "drawn by", "evaluations", "grid", "w", "decoder", "final", "temp.", "gen. ppl", "entropy", "diversity",
        "s/text",
    )  # fmt: skip
    number_of_texts = sweep.get("diversity_texts", sweep["texts"])
    rows = [
        (row["solver"], f"{row['budget']:,}", row["grid"], f"{row['guidance']:g}", row["decoder"], row["final"],
         f"{row['temperature']:g}", *_scores(row, number_of_texts))
        for row in sweep["finalists"]
    ]  # fmt: skip
    rows += [(one["name"], f"{one['nfe']:,}", *[""] * 5, *_scores(one, number_of_texts)) for one in sweep["externals"]]
    if sweep["real"] is not None:
        rows.append(("real text", *[""] * 6, *_scores(sweep["real"], number_of_texts)))
    return Table("The paper's sampler and the best at each budget", head, rows)


def _scores(row: Row, number_of_texts: int) -> tuple[str, ...]:
    """Perplexity, entropy, diversity and seconds, with the digits of the sweep's own table.

    In earlier versions diversity may be of another number of texts than a finalist has: then that number is shown.
    """
    digits = {"gen_ppl": ".1f", "entropy": ".3f", "diversity": ".3f", "seconds": ".4f"}
    cells = {}
    for key, shown in digits.items():
        value = row.get(key, "")
        cells[key] = "–" if value is None else format(value, shown if key in row else "")
    if results.diversity_texts(row) not in (None, number_of_texts):
        cells["diversity"] += f" (of {results.diversity_texts(row):,} texts)"
    return tuple(cells.values())


# ----------------------------------------------------------------------------------------------------------------------
# Interpolation


def interpolation(report: AnyReport) -> Section | None:
    """Figures and texts along the path between two latents."""
    title, found = "Interpolation", report.interpolation
    if found is None:
        command = "ldlm interpolate --run RUN --features FEATURES --scorer SCORER"
        return missing(report, "interpolation", title, "The latent space has not been walked through;", command)
    points = found["points"]
    lead = (
        f"The way between the latents of two real texts, decoded at each a with decoder {found['decoder']}: "
        f"{found['pairs']:,} pairs from {of_step(report, found['checkpoint_step'])}, scored by "
        f"{model_name(found['scorer'])}. The regions are 95 % intervals."
    )
    if without := len(points) - len(results.scored(points)):
        lead += f" At {without:,} of the {len(points):,} points there is no perplexity: no text has a token to score."
    blocks: list[Block] = [*charts(results.along({"decoded": found})), _mean_and_real(found)]
    if report.path:
        way = ((f"a = {row['a']:.2f}", row["text"]) for row in report.path)
        blocks.append(texts(report, way, folded="The first pair, from one end to the other"))
    return Section("interpolation", title, lead, blocks)


def _mean_and_real(found: Row) -> Table:
    head = ("decoded", "gen. ppl", "entropy", "diversity")
    rows = [["mean of the two latents", *_with_interval(found["mean"])], ["real text", *_with_interval(found["real"])]]
    if not results.real_is_alike(found):  # a result of an earlier version
        rows[-1][-1] += f" (of {2 * found['pairs']:,} texts)"
    return Table("The mean of two latents, and real text", head, rows)


def _with_interval(figures: Row) -> list[str]:
    cells = []
    for key in ("gen_ppl", "entropy", "diversity"):
        interval = figures["intervals"].get(key)
        cells.append(cell(figures[key]) + ("" if interval is None else f" ({' – '.join(map(number, interval))})"))
    return cells


# ----------------------------------------------------------------------------------------------------------------------
# Likelihood


def likelihood(report: AnyReport) -> Section | None:
    """Bits per token of rows, and for LDLM the curve over the noise level τ; None if nothing was measured."""
    found = report.likelihood
    if found is None:
        return None
    interval = (
        "" if found["interval"] is None else f"95 % interval over rows {' – '.join(map(number, found['interval']))}; "
    )
    lead = (
        f"An upper bound on the negative log-likelihood of {found['rows_reported']:,} {found['split']} rows: "
        f"{number(found['bits_per_token'])} bits per token of all {found['seq_len']:,} of a row ({interval}"
        f"standard error of the estimate {found['estimate_se']:.2g}), from "
        f"{of_step(report, found['step'])}."
    )
    if "curve" not in found:
        return Section("likelihood", "Likelihood", lead, [])
    lead += (
        f" It holds at every noise level τ; τ = {found['tau']:.3g} was chosen on {found['rows_chosen_on']:,} other "
        f"rows. Decoder {found['decoder']}."
    )
    rows = [
        (f"{point['tau']:.3g}", f"{point['t']:.3f}", *(number(point[key]) for key in _TERMS))
        for point in found["curve"]
    ]
    head = ("τ", "t*", "tokens", "latents", "bits per token", "on the other rows")
    return Section("likelihood", "Likelihood", lead, [Table("The bound over τ, in bits per token", head, rows)])


_TERMS = ("decoding", "kl", "bits_per_token", "chosen_by")
