"""The report of a run as one HTML page: what was trained on what, how it went, and what came of it.

Everything on it is a function of `Report`, which holds what the run's files say: the same files give the same page. A
section without its data is left out while the run is going on; once it is complete, the section names the command that
makes what is missing.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ldlm import config as configs
from ldlm.config import TrainConfig, decoder_noise, total_steps
from ldlm.pages import chart as charts
from ldlm.pages import page as pages
from ldlm.pages import plots
from ldlm.pages.chart import (
    BLUE,
    GOLD,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    Axis,
    Cloud,
    Line,
    Points,
    chart,
    number,
    percent,
)
from ldlm.sampling.frames import visible

TEXTS = 6  # of each set of samples
FRAMES = 6  # of a trace
PROFILES = 6  # densities of t over the course of training
LARGEST = 9.0  # radius of a marker in the frontier, in units of the drawing

Row = Mapping[str, Any]


@dataclass(frozen=True)
class SampleSet:
    """What `ldlm sample` wrote to one file: its record, and all rows."""

    name: str  # of the file, from the run's folder
    about: Row
    rows: Sequence[Row]


@dataclass(frozen=True)
class Report:
    """What the files of a run say. Records are as the stages wrote them; None is what is not there."""

    name: str
    config: TrainConfig
    manifest: Row | None  # of a run that is complete
    status: Row | None
    features: Row | None
    parameters: Mapping[str, int]  # by part; empty as long as the features are not known
    metrics: Sequence[Row]
    decoders: Sequence[Row]  # oldest first
    samples: Sequence[SampleSet]
    special_tokens: Sequence[str]
    sweep: Row | None
    verdict: str  # of the sweep
    interpolation: Row | None
    path: Sequence[Row]  # the texts of the first pair, from one end to the other
    trace: Row | None

    @property
    def complete(self) -> bool:
        """Whether the training has taken all its steps."""
        return self.manifest is not None

    @property
    def step(self) -> int:
        """How far it is known to have come."""
        steps = [line["step"] for line in self.metrics]
        return max([0, *steps, *(record["step"] for record in (self.manifest, self.status) if record is not None)])

    @property
    def tokens(self) -> int:
        """How many it has been trained on; 0 as long as their number per row is not known."""
        per_row = 0 if self.features is None else self.features["shapes"]["seq_len"]
        return self.step * self.config.batch_size * per_row

    def lines(self, kind: str) -> list[Row]:
        """The lines of the metrics of that kind."""
        return [line for line in self.metrics if line["kind"] == kind]

    @property
    def evaluation(self) -> Row | None:
        """The newest held-out figures."""
        return next(reversed(self.lines("eval")), None)


def page(report: Report) -> str:
    """The page."""
    sections = [make(report) for make in SECTIONS]
    shown = [section for section in sections if section is not None]
    links = "".join(f'<a href="#{section.id}">{escape(section.title)}</a>' for section in shown)
    body = "\n".join([_head(report), f'<nav aria-label="Sections">{links}</nav>', *map(_section, shown)])
    return pages.document(f"{report.name}: report of a training run", body, style=charts.STYLE + STYLE)


@dataclass(frozen=True)
class Section:
    """A part of the page: a sentence of text, and blocks of HTML."""

    id: str
    title: str
    lead: str
    blocks: Sequence[str]


def _section(section: Section) -> str:
    lead = f'<p class="lead">{escape(section.lead)}</p>' if section.lead else ""
    blocks = "\n".join(filter(None, section.blocks))
    return (
        f'<section id="{section.id}" aria-labelledby="{section.id}-title">'
        f'<h2 id="{section.id}-title">{escape(section.title)}</h2>\n{lead}\n{blocks}\n</section>'
    )


# ----------------------------------------------------------------------------------------------------------------------
# Blocks


def _charts(*charts: str) -> str:
    there = [one for one in charts if one]
    return f'<div class="charts">{"".join(there)}</div>' if there else ""


def _table(name: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table that scrolls by itself where it is wider than the page; the first column says what a row is."""
    columns = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = ""
    for first, *cells in rows:
        others = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
        body += f'<tr><th scope="row">{escape(str(first))}</th>{others}</tr>'
    return (
        f'<div class="card table" role="region" aria-label="{escape(name)}" tabindex="0">'
        f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _hint(report: Report, what: str, command: str) -> str:
    """How to make what is missing. `RUN` stands for the run, wherever it lies."""
    return f'<p class="hint">{escape(what)} <code>{escape(command.replace("RUN", report.name))}</code></p>'


def _text(text: str, special_tokens: Sequence[str]) -> str:
    """A text as it is, its special tokens marked."""
    pattern = "|".join(map(re.escape, sorted(special_tokens, key=len, reverse=True)))
    pieces = re.split(f"({pattern})", text) if pattern else [text]
    shown = (
        f'<i class="s">{escape(visible(piece))}</i>' if piece in special_tokens else escape(visible(piece))
        for piece in pieces
    )
    return f'<p class="text" tabindex="0">{"".join(shown)}</p>'


def _texts(report: Report, texts: Iterable[tuple[str, str]]) -> str:
    """Texts, each with what is to be said of it."""
    items = (
        f'<li class="card"><p class="about">{escape(about)}</p>{_text(text, report.special_tokens)}</li>'
        for about, text in texts
    )
    return f'<ol class="texts">{"".join(items)}</ol>'


def _of_step(report: Report, step: int) -> str:
    """Of which state of the run something is."""
    return f"the model at step {step:,}" + (f" (it is now at {report.step:,})" if step != report.step else "")


def _model(name: str) -> str:
    """A model by its id, or by the name of its folder: where that lay is nobody's business."""
    return Path(name).name if Path(name).is_absolute() else name


# ----------------------------------------------------------------------------------------------------------------------
# What was trained on what


def _head(report: Report) -> str:
    state = "complete" if report.complete else (report.status or {}).get("state", "begun")
    reason = (report.status or {}).get("reason", "") if state == "failed" else ""
    figures = "".join(
        f"<div><dt>{escape(name)}</dt><dd><b>{escape(value)}</b> <span>{escape(more)}</span></dd></div>"
        for name, value, more in _figures(report)
    )
    return (
        f'<header><p class="state {escape(state)}">{escape(state)}</p><h1>{escape(report.name)}</h1>'
        f'<p class="lead">{escape(_what(report))}</p>'
        f"{f'<p class=hint>{escape(reason)}</p>' if reason else ''}"
        f'<dl class="figures">{figures}</dl></header>'
    )


def _what(report: Report) -> str:
    """The run in two sentences."""
    config, features = report.config, report.features
    model = "A latent diffusion language model" if config.model.space == "ldlm" else f"A {config.model.space} model"
    trained = f"trained in steps of {config.batch_size:,} rows with seed {config.seed}"
    if features is None:
        return f"{model}, {trained}."
    encoder, rows = features["encoder"], features["rows"]["train"]
    size = f" with {sum(report.parameters.values()):,} parameters"
    seen = {
        "hidden": f"as the hidden states of {_model(encoder['name'])}, layer {encoder['layer']}",
        "embedding": f"as the token embeddings of {_model(encoder['name'])}",
        "scratch": f"in the tokens of {_model(encoder['name'])}",
    }[encoder["kind"]]
    length = features["shapes"]["seq_len"]
    return f"{model}{size}, {trained}. It learns from {rows:,} rows of {length:,} tokens, which it sees {seen}."


def _figures(report: Report) -> list[tuple[str, str, str]]:
    """The figures that one looks for first: name, value, and what to compare it with."""
    steps = total_steps(report.config)
    share = "" if report.complete else f"{report.step / steps:.0%} of {steps:,}"
    found = [("steps", f"{report.step:,}", share)]
    if report.step and report.features is not None:
        rows = report.features["rows"]["train"]
        found.append(
            (
                "tokens seen",
                charts.short(float(f"{report.tokens:.3g}")),
                f"{report.step * report.config.batch_size / rows:.3g} epochs",
            )
        )
    evaluation = report.evaluation or {}
    if evaluation.get("l_diff") is not None:
        mean = evaluation["l_diff_mean"]
        found.append(
            (
                "held-out L_diff",
                number(evaluation["l_diff"]),
                "" if mean is None else f"the mean latent: {number(mean)}",
            )
        )
    if evaluation.get("token_accuracy_clean") is not None:
        noisy = evaluation["token_accuracy"]
        found.append(
            ("tokens rebuilt", percent(evaluation["token_accuracy_clean"]), f"{percent(noisy)} under decoder noise")
        )
    if evaluation.get("latent_std") is not None:
        found.append(("latent std", number(evaluation["latent_std"]), "per coordinate"))
    speeds = _speeds(report)
    if speeds:
        found.append(("tokens per second", f"{statistics.median(speeds):,.0f}", "median"))
    return found


# ----------------------------------------------------------------------------------------------------------------------
# How it went

STEP = Axis("step", low=0, number=lambda step: f"{step:,.0f}")


def _losses(report: Report) -> Section:
    squared = Axis("mean squared error, log scale", log=True)
    share = Axis("share of tokens", low=0, number=percent, short=percent)
    return Section(
        "losses",
        "Losses",
        "What the latents cost: denoising them (L_diff), rebuilding the hidden states from them (L_h) and the tokens "
        "(L_w). Faint lines are single steps; dots are held-out rows with averaged weights.",
        [
            _charts(
                _curve(report, "Denoising, L_diff", squared, "l_diff", [("predicting the mean", "l_diff_mean", GREY)]),
                _curve(report, "Hidden states, L_h", squared, "l_h"),
                _curve(report, "Tokens, L_w", Axis("cross-entropy, nats per token", low=0), "l_w"),
                _curve(
                    report,
                    "Tokens rebuilt",
                    share,
                    "token_accuracy",
                    [("held out, no noise", "token_accuracy_clean", GREEN)],
                ),
            )
            or NOTHING_YET
        ],
    )


NOTHING_YET = '<p class="hint">Nothing has been measured yet.</p>'


def _curve(report: Report, title: str, y: Axis, key: str, more: Sequence[tuple[str, str, str]] = ()) -> str:
    """A figure over the steps: in training, and on held-out rows; `more` of the latter by name, key and colour."""
    marks = [
        _over_steps(report.lines("train"), "training", key, BLUE, noisy=True),
        _over_steps(report.lines("eval"), "held out", key, ORANGE, dots=True),
        *(
            _over_steps(report.lines("eval"), name, key, color, dashed=color == GREY, dots=True)
            for name, key, color in more
        ),
    ]
    # A loss that is 0 throughout is none: of hidden states that are the latents, of a decoder that is not trained.
    there = [line for line in marks if any(line.y)]
    return chart(title, STEP, y, there) if there else ""


def _over_steps(
    lines: Sequence[Row],
    name: str,
    key: str,
    color: str,
    *,
    noisy: bool = False,
    dots: bool = False,
    dashed: bool = False,
) -> Line:
    there = [line for line in lines if key in line]
    x, y = [line["step"] for line in there], [line[key] for line in there]
    return Line(name, color, x, y, noisy=noisy, dots=dots, dashed=dashed)


def _timesteps(report: Report) -> Section:
    evaluations = report.lines("eval")
    if not evaluations:
        return Section("timesteps", "Timesteps", "", [NOTHING_YET])
    newest = evaluations[-1]
    profiles = [
        Line(name, color, _centres(len(newest[key])), newest[key], dots=True)
        for name, key, color in (("time t", "l_diff_by_t", ORANGE), ("adapted time F(t)", "l_diff_by_u", BLUE))
        if key in newest
    ]
    unit = Axis("time", low=0, high=1)
    chosen = np.unique(np.linspace(0, len(evaluations) - 1, min(PROFILES, len(evaluations))).round().astype(int))
    densities = [_density(evaluations[i], newest=i == chosen[-1]) for i in chosen]
    uniform = Line("uniform", GREY, [0, 1], [1, 1], dashed=True)
    kind = report.config.timesteps.kind
    return Section(
        "timesteps",
        "Timesteps",
        f"Where denoising is hard, at step {newest['step']:,}, and the times that training draws ({kind} sampling)."
        + (" Adaptive sampling makes the loss grow evenly in its own time F(t)." if kind == "adaptive" else ""),
        [
            _charts(
                chart("Loss against time", unit, Axis("held-out L_diff", low=0), profiles),
                chart(
                    "Times that are drawn",
                    Axis("t", low=0, high=1),
                    Axis("density of t", low=0),
                    [uniform, *densities],
                    note="Faint: earlier in training." if len(densities) > 1 else "",
                ),
            )
        ],
    )


def _centres(bins: int) -> list[float]:
    """Of equal bins of [0, 1]."""
    return [(number + 0.5) / bins for number in range(bins)]


def _density(evaluation: Row, *, newest: bool) -> Line:
    """Stairs over equal bins of t."""
    p = np.array(evaluation["timestep_p"]) * len(evaluation["timestep_p"])
    edges = np.linspace(0, 1, len(p) + 1)
    name = f"at step {evaluation['step']:,}" if newest else ""
    return Line(name, BLUE, np.repeat(edges, 2)[1:-1].tolist(), np.repeat(p, 2).tolist(), faint=not newest)


def _latents(report: Report) -> Section:
    train, recipe = report.lines("train"), report.config.recipe
    steps = [line["step"] for line in train]
    least, most = ([line[f"latent_std_{end}"] for line in train] for end in ("least", "most"))
    std = Line("training", BLUE, steps, [line["latent_std"] for line in train], band=(least, most))
    held_out = _over_steps(report.lines("eval"), "held out", "latent_std", ORANGE, dots=True)
    gamma = Line("γ", PURPLE, steps, [line["gamma"] for line in train])
    return Section(
        "latents",
        "Latents",
        f"How far the latents spread, beside the standard deviation 1 of the noise, and how much of L_diff's gradient "
        f"reaches the encoder that shapes them (S_wu = {recipe.warmup_steps:,}, decoder noise "
        f"{decoder_noise(report.config.model.space, recipe)}).",
        [
            _charts(
                chart(
                    "Spread of the latents",
                    STEP,
                    Axis("standard deviation of a coordinate", low=0),
                    [std, held_out],
                    note="The region reaches from the least to the most spread channel.",
                ),
                chart("Warm-up", STEP, Axis("γ, share of the gradient", low=0, high=1.05), [gamma]),
            )
            or NOTHING_YET
        ],
    )


# ----------------------------------------------------------------------------------------------------------------------
# What came of it


def _decoders(report: Report) -> Section | None:
    title = "Decoders"
    if not report.decoders:
        hint = _hint(
            report, "No decoder has been fine-tuned;", "ldlm finetune-decoder --run RUN --features FEATURES --layers 2"
        )
        return Section("decoders", title, "", [hint]) if report.complete else None
    newest = report.decoders[-1]
    joint = [("joint", "–", newest["replaces"], newest["checkpoint_step"], newest["joint"])] if newest["joint"] else []
    tuned = [
        (one["name"], one["network"]["layers"], one["parameters"], one["checkpoint_step"], one["held_out"])
        for one in report.decoders
    ]
    rows = [
        (name, layers, f"{parameters:,}", f"{step:,}", *(_cell(figures[key], shown) for key, shown in _REBUILT.items()))
        for name, layers, parameters, step, figures in [*joint, *tuned]
    ]
    head = ("decoder", "layers", "parameters", "latents of step", "CE", "CE, noise", "tokens", "tokens, noise")
    lead = (
        "What turns latents into tokens: D_h and D_w as they were trained jointly, and decoders that read the latents "
        "directly. On held-out rows, without noise and under the noise of their training."
    )
    return Section("decoders", title, lead, [_table(title, head, rows)])


_REBUILT: dict[str, Callable[[float], str]] = {
    "l_w_clean": number, "l_w": number, "token_accuracy_clean": percent, "token_accuracy": percent,
}  # fmt: skip


def _cell(value: float | None, shown: Callable[[float], str] = number) -> str:
    return "–" if value is None else shown(value)


def _samples(report: Report) -> Section | None:
    if not report.samples:
        command = "ldlm sample --run RUN --num-samples 64 --output RUN/samples.jsonl"
        hint = _hint(report, "No texts have been drawn;", command)
        return Section("samples", "Samples", "", [hint]) if report.complete else None
    blocks = []
    for one in report.samples:
        rows = sorted(one.rows, key=lambda row: row["seed"])[:TEXTS]
        blocks.append(f"<h3>{escape(one.name)}</h3><p class=lead>{escape(_how(report, one))}</p>")
        blocks.append(_texts(report, ((f"seed {row['seed']:,}", row["text"]) for row in rows)))
    lead = f"The first {TEXTS} texts by seed, whole and unedited, with their special tokens."
    return Section("samples", "Samples", lead, blocks)


def _how(report: Report, one: SampleSet) -> str:
    """How a set of texts was drawn."""
    sampler = one.about["config"]["sampler"]
    guidance = f", guidance {sampler['guidance']:g}" if sampler["guidance"] != 1 else ""
    return (
        f"{len(one.rows):,} texts from {_of_step(report, one.about['step'])}: {sampler['solver']}, "
        f"{sampler['steps']:,} steps, grid {sampler['grid']}{guidance}, temperature {sampler['temperature']:g}, "
        f"decoder {one.about['decoder']}."
    )


def _trace(report: Report) -> Section | None:
    title = "From noise to text"
    if report.trace is None:
        hint = _hint(report, "No text has been followed on its way;", "ldlm sample --run RUN --trace RUN/trace")
        return Section("trace", title, "", [hint]) if report.complete else None
    frames = report.trace["frames"]
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int))
    texts = [
        (f"t = {frames[i]['t']:.3f}, confidence {statistics.fmean(frames[i]['probabilities']):.0%}", frames[i]["text"])
        for i in chosen
    ]
    lead = (
        f"What the decoder reads in the denoiser's estimate while t falls: the text with seed "
        f"{report.trace['text_seed']:,}, {report.trace['solver']} with {report.trace['steps']:,} steps, from "
        f"{_of_step(report, report.trace['step'])}."
    )
    return Section("trace", title, lead, [_texts(report, texts)])


def _frontier(report: Report) -> Section | None:
    title, sweep = "Quality against evaluations", report.sweep
    if sweep is None:
        hint = _hint(
            report, "No samplers have been compared;", "ldlm sweep --run RUN --reference REAL_TEXT --scorer SCORER"
        )
        return Section("frontier", title, "", [hint]) if report.complete else None
    of = f"; diversity is of {sweep['diversity_texts']:,} texts of each" if "diversity_texts" in sweep else ""
    lead = (
        f"Low perplexity is worth nothing without the entropy of real text. {sweep['texts']:,} texts each from "
        f"{_of_step(report, sweep['step'])}, scored by {_model(sweep['scorer'])}; {sweep['screen_texts']:,} texts each "
        f"to screen{of}. {report.verdict}"
    )
    if without := len(sweep["screened"]) - len(plots.scored(sweep["screened"])):
        lead += (
            f" {without:,} of the {len(sweep['screened']):,} combinations that were screened have no perplexity, for "
            f"none of their texts has a token to score."
        )
    return Section("frontier", title, lead, [_charts(_plane(sweep), _budgets(sweep)), _finalists(sweep)])


def _plane(sweep: Row) -> str:
    """Perplexity against entropy (Figure 1)."""
    lines = plots.frontier_lines(sweep["finalists"])
    slowest = max(row["seconds"] for row in [*sweep["finalists"], *sweep["externals"]])
    marks: list[Any] = []
    for (name, rows), color in zip(lines.items(), (ORANGE, BLUE), strict=True):
        marks.append(_placed(name, color, rows, slowest, labels=[f"{row['budget']:,}" for row in rows], joined=True))
    marks += [_placed(one["name"], PURPLE, [one], slowest) for one in plots.scored(sweep["externals"])]
    real = sweep["real"]
    if real is not None and real["gen_ppl"] is not None:
        title = f"real text: perplexity {number(real['gen_ppl'])}, entropy {number(real['entropy'])}"
        marks.append(Points("real text", GOLD, [real["entropy"]], [real["gen_ppl"]], [title], radii=[9], star=True))
    screened = plots.scored(sweep["screened"])
    near, far = _around(screened, [mark for mark in marks if len(mark.x)])
    cloud = Cloud("screened", GREY, [row["entropy"] for row in near], [row["gen_ppl"] for row in near])
    return chart(
        "Perplexity and entropy",
        Axis("entropy, nats"),
        Axis("generative perplexity, log scale", log=True),
        [cloud, *(mark for mark in marks if len(mark.x))],
        note="Numbers are evaluations of the denoiser, areas seconds per text."
        + (f" {far:,} of {len(screened):,} that were screened lie outside." if far else ""),
    )


def _placed(
    name: str, color: str, rows: Sequence[Row], slowest: float, labels: Sequence[str] = (), *, joined: bool = False
) -> Points:
    return Points(
        name,
        color,
        [row["entropy"] for row in rows],
        [row["gen_ppl"] for row in rows],
        [_title(row) for row in rows],
        labels=labels,
        radii=[max(2.5, LARGEST * (row["seconds"] / slowest) ** 0.5) for row in rows],
        joined=joined,
    )


def _title(row: Row) -> str:
    """What a pointer is told."""
    name = row["name"] if "name" in row else f"{row['solver']}, grid {row['grid']}, w = {row['guidance']:g}"
    evaluations = row["nfe"] if "name" in row else row["budget"]
    return (
        f"{name}\n{evaluations:,} evaluations, {number(row['seconds'])} s per text\n"
        f"perplexity {number(row['gen_ppl'])}, entropy {number(row['entropy'])}, diversity {number(row['diversity'])}"
    )


def _around(screened: Sequence[Row], marks: Sequence[Points]) -> tuple[list[Row], int]:
    """Those screened that lie near the others, and how many don't: a few collapsed ones would take all the room."""
    x, y = [v for mark in marks for v in mark.x], [v for mark in marks for v in mark.y]
    if not x:
        return list(screened), 0
    room = max(0.1, max(x) - min(x))
    near = [
        row
        for row in screened
        if min(x) - room <= row["entropy"] <= max(x) + room and min(y) / 4 <= row["gen_ppl"] <= 4 * max(y)
    ]
    return near, len(screened) - len(near)


def _budgets(sweep: Row) -> str:
    """Perplexity against the number of evaluations (Tables 8 and 9)."""
    marks = [
        Points(name, color, [row["budget"] for row in rows], [row["gen_ppl"] for row in rows],
               [_title(row) for row in rows], joined=True)
        for (name, rows), color in zip(plots.frontier_lines(sweep["finalists"]).items(), (ORANGE, BLUE), strict=True)
        if rows
    ]  # fmt: skip
    ends = [row["budget"] for row in sweep["finalists"]]
    real = (
        []
        if sweep["real"] is None or sweep["real"]["gen_ppl"] is None
        else [Line("real text", GOLD, [min(ends), max(ends)], [sweep["real"]["gen_ppl"]] * 2, dashed=True)]
    )
    x = Axis("evaluations per text, log scale", log=True, short=lambda value: f"{value:,g}")
    return chart("Perplexity and evaluations", x, Axis("generative perplexity, log scale", log=True), [*real, *marks])


def _finalists(sweep: Row) -> str:
    head = (
        "drawn by",
        "evaluations",
        "grid",
        "w",
        "decoder",
        "final",
        "temp.",
        "gen. ppl",
        "entropy",
        "diversity",
        "s/text",
    )
    texts = sweep.get("diversity_texts", sweep["texts"])
    rows = [
        (row["solver"], f"{row['budget']:,}", row["grid"], f"{row['guidance']:g}", row["decoder"], row["final"],
         f"{row['temperature']:g}", *_scores(row, texts))
        for row in sweep["finalists"]
    ]  # fmt: skip
    rows += [(one["name"], f"{one['nfe']:,}", *[""] * 5, *_scores(one, texts)) for one in sweep["externals"]]
    if sweep["real"] is not None:
        rows.append(("real text", *[""] * 6, *_scores(sweep["real"], texts)))
    return _table("The paper's sampler and the best at each budget", head, rows)


def _scores(row: Row, texts: int) -> tuple[str, ...]:
    """Perplexity, entropy, diversity and seconds, with the digits of the sweep's own table.

    An earlier version took the diversity of other numbers of texts than the `texts` of a finalist: the number is said.
    """
    digits = {"gen_ppl": ".1f", "entropy": ".3f", "diversity": ".3f", "seconds": ".4f"}
    cells = {}
    for key, shown in digits.items():
        value = row.get(key, "")
        cells[key] = "–" if value is None else format(value, shown if key in row else "")
    if plots.diversity_texts(row) not in (None, texts):
        cells["diversity"] += f" (of {plots.diversity_texts(row):,} texts)"
    return tuple(cells.values())


def _interpolation(report: Report) -> Section | None:
    title, found = "Interpolation", report.interpolation
    if found is None:
        command = "ldlm interpolate --run RUN --features FEATURES --scorer SCORER"
        hint = _hint(report, "The latent space has not been walked through;", command)
        return Section("interpolation", title, "", [hint]) if report.complete else None
    points, real = found["points"], found["real"]
    a = Axis(f"a, {found['path']} path", low=0, high=1)
    lead = (
        f"The way between the latents of two real texts, decoded at each a with decoder {found['decoder']}: "
        f"{found['pairs']:,} pairs from {_of_step(report, found['checkpoint_step'])}, scored by "
        f"{_model(found['scorer'])}. The regions are 95 % intervals."
    )
    if without := len(points) - len(plots.scored(points)):
        lead += f" At {without:,} of the {len(points):,} points there is no perplexity: no text has a token to score."
    between = [{**here, "a": (before["a"] + here["a"]) / 2} for before, here in pairwise(points)]
    head = ("decoded", "gen. ppl", "entropy", "diversity")
    rows = [("mean of the two latents", *_with_interval(found["mean"])), ("real text", *_with_interval(real))]
    alike = plots.real_is_alike(found)
    if not alike:  # of an earlier version
        rows[-1] = (*rows[-1][:-1], f"{rows[-1][-1]} (of {2 * found['pairs']:,} texts)")
    blocks = [
        _charts(
            _along(a, points, "gen_ppl", "Perplexity along the way", "generative perplexity", real),
            _along(a, points, "entropy", "Entropy along the way", "entropy, nats", real),
            # Diversity falls with the number of texts.
            _along(
                a,
                points,
                "diversity",
                "Diversity along the way",
                "distinct n-grams, Π over n = 2 to 4",
                real if alike else None,
            ),
            _along(a, between, "edits", "Edits from point to point", "tokens", None),
        ),
        _table("The mean of two latents, and real text", head, rows),
    ]
    if report.path:
        texts = _texts(report, ((f"a = {row['a']:.2f}", row["text"]) for row in report.path))
        blocks.append(f"<details><summary>The first pair, from one end to the other</summary>{texts}</details>")
    return Section("interpolation", title, lead, blocks)


def _along(a: Axis, points: Sequence[Row], key: str, title: str, label: str, real: Row | None) -> str:
    """A figure along the path with its intervals, and that of real text."""
    x, y = [point["a"] for point in points], [point[key] for point in points]
    ends = [point["intervals"].get(key) or (None, None) for point in points]
    band = [low for low, _ in ends], [high for _, high in ends]
    marks = [Line("decoded", BLUE, x, y, dots=True, band=band)]
    if real is not None and real[key] is not None:
        marks.append(Line("real text", GOLD, [0, 1], [real[key]] * 2, dashed=True))
    return chart(title, a, Axis(label, low=0), marks)


def _with_interval(figures: Row) -> list[str]:
    cells = []
    for key in ("gen_ppl", "entropy", "diversity"):
        interval = figures["intervals"].get(key)
        cells.append(_cell(figures[key]) + ("" if interval is None else f" ({' – '.join(map(number, interval))})"))
    return cells


# ----------------------------------------------------------------------------------------------------------------------
# What it took, and where it comes from


def _speed(report: Report) -> Section:
    train = report.lines("train")
    timed = [line for line in train if "timing" in line]
    speeds = _speeds(report)
    if not timed:
        return Section("speed", "Speed", "", [NOTHING_YET])
    steps = [line["step"] for line in timed]
    share = Axis("share", low=0, number=percent, short=percent)
    speed = Line("speed", BLUE, steps, [line["timing"]["tokens_per_second"] for line in timed], noisy=True)
    wait = Line("waiting for data", ORANGE, steps, [line["timing"]["data_wait"] for line in timed], noisy=True)
    used = Line(
        "FLOPs utilisation",
        BLUE,
        steps,
        [line["timing"].get("flops_utilisation") for line in timed],
        noisy=True,
    )
    seconds = _seconds(report, timed)
    return Section(
        "speed",
        "Speed",
        f"{statistics.median(speeds):,.0f} tokens per second in the median; {report.tokens:,} tokens in about "
        f"{_duration(seconds)} of training steps.",
        [
            _charts(
                chart("Tokens per second", STEP, Axis("tokens/s", low=0), [speed]),
                chart(
                    "Use of the machine",
                    STEP,
                    share,
                    [line for line in (wait, used) if any(v is not None for v in line.y)],
                ),
            )
        ],
    )


def _speeds(report: Report) -> list[float]:
    return [line["timing"]["tokens_per_second"] for line in report.lines("train") if "timing" in line]


def _seconds(report: Report, timed: Sequence[Row]) -> float:
    """What the steps took, from the rate at each line of the metrics, over all sessions of the run."""
    steps = np.diff([0, *(line["step"] for line in timed)])
    rates = [line["timing"]["rows_per_second"] for line in timed]
    return float(sum(report.config.batch_size * n / rate for n, rate in zip(steps, rates, strict=True) if rate))


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def _provenance(report: Report) -> Section:
    defaults = configs.to_dict(TrainConfig())
    changed = configs.differences(defaults, configs.to_dict(report.config))
    settings = "".join(f"<li>{escape(line.replace(' -> ', ' → '))}</li>" for line in changed)
    return Section(
        "provenance",
        "Where it comes from",
        "What it was made of and with. The same fingerprints (SHA-256) mean the same text, weights and states.",
        [
            *(_list(title, values) for title, values in _origins(report).items()),
            f"<h3>Settings other than the defaults: default → here</h3><ul class=settings>{settings}</ul>"
            if settings
            else "",
        ],
    )


def _list(title: str, values: Mapping[str, Any]) -> str:
    kind = "list prints" if title == "Fingerprints" else "list"
    return f'<div class="{kind}"><h3>{title}</h3>{pages.definitions(values)}</div>' if values else ""


def _origins(report: Report) -> dict[str, dict[str, Any]]:
    """What the run was made of and with."""
    sources, prints, versions = {}, {}, {}
    if report.features is not None:
        encoder = report.features["encoder"]
        sources = {
            "encoder": _model(encoder["name"]),
            "kind": encoder["kind"],
            "layer": encoder["layer"],
            **{f"rows, {split}": f"{count:,}" for split, count in report.features["rows"].items()},
        }
        prints = {
            "text": report.features["text"],
            "features": report.features["store"],
            **{f"encoder: {what}": encoder[key] for what, key in _PRINTS.items()},
        }
    if report.manifest is not None:
        versions = {name: version for name, version in report.manifest["versions"].items() if version is not None}
        prints |= {"checkpoint": report.manifest["checkpoint"]}
        prints |= {"commit of ldlm": versions.pop("commit")} if "commit" in versions else {}
    parameters = {part.replace("_", " "): f"{count:,}" for part, count in report.parameters.items()}
    return {"Text and encoder": sources, "Parameters": parameters, "Made with": versions, "Fingerprints": prints}


_PRINTS = {"weights": "fingerprint", "tokenizer": "tokenizer", "normalisation": "statistics"}


SECTIONS: Sequence[Callable[[Report], Section | None]] = (
    _losses, _timesteps, _latents, _decoders, _samples, _trace, _frontier, _interpolation, _speed, _provenance,
)  # fmt: skip

STYLE = """
main { max-width: 64rem; }
header h1 { overflow-wrap: anywhere; }
h2 { font-size: 1.6rem; letter-spacing: -.02em; line-height: 1.2; margin: 0 0 .5rem; }
section { margin: 3.2rem 0 0; scroll-margin-top: 1rem; }
section h3 { margin: 1.4rem 0 .4rem; font-size: 1.02rem; overflow-wrap: anywhere; }
section .lead { margin-bottom: 1.1rem; }
.state { display: inline-block; margin: 0 0 .8rem; padding: .1rem .7rem; border-radius: 99px; font-size: .82rem;
  border: 1px solid currentColor; color: var(--orange); }
.state.complete { color: var(--green); }
.figures { grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1px; overflow: hidden;
  background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
.figures div { padding: .9rem 1.1rem; box-shadow: 0 0 0 1px var(--line); }
.figures b { display: block; font-size: 1.55rem; line-height: 1.25; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.figures span { color: var(--soft); font-size: .8rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: 1.6rem 0 0; }
a { color: var(--accent); text-decoration: none; padding: .35rem 0; }
a:hover { text-decoration: underline; }
.hint { color: var(--soft); margin: 0; }
code { font: .85em/1.5 ui-monospace, Menlo, Consolas, monospace; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; padding: .15em .4em; overflow-wrap: anywhere; }
.texts + h3 { margin-top: 1.8rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .5rem .8rem; white-space: nowrap; font-weight: 400; }
thead th { color: var(--soft); border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.texts { list-style: none; margin: 0; padding: 0; display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
.texts .card { margin: 0; padding: 1rem 1.1rem; break-inside: avoid; }
.texts .text { font-size: 1.02rem; line-height: 1.7; max-height: 24rem; overflow-y: auto; }
.about { margin: 0 0 .4rem; color: var(--soft); font-size: .82rem; font-variant-numeric: tabular-nums; }
.text .s { font-style: normal; color: var(--soft); }
.list dl { grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); }
.prints dl { grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.prints dd { font: .74rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
summary { cursor: pointer; padding: .6rem 0; }
.settings { columns: 20rem; margin: 0; padding: 0; list-style: none; font: .85rem/1.9 ui-monospace, Menlo, Consolas,
  monospace; overflow-wrap: anywhere; }
"""
