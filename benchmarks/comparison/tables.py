"""The findings of a comparison as tables and texts, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.comparison.plan import AUTOREGRESSIVE, EQUAL_FLOPS, EQUAL_STEPS, LDLM, NAMES, REGIMES, WAYS
from benchmarks.comparison.sources import ComparisonText, Rows
from ldlm import markdown

TITLES = {EQUAL_STEPS: "Equal steps", EQUAL_FLOPS: "Equal training FLOPs"}
REFERENCE, EVALUATIONS = "GPT-2, a token at a time", "evaluations, at most"


def over_seeds(rows: Rows, key: str) -> str:
    """A cell: the mean of a figure, ± half the range over seeds."""
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return "–"
    mean = float(np.mean(values))
    spread = f" ± {number(float(np.ptp(values)) / 2, like=mean)}" if len(values) > 1 else ""
    return number(mean) + spread


def number(value: float, *, like: float | None = None) -> str:
    """A number with three digits, or its whole integer part; decimal places as for `like` if given."""
    size = abs(value if like is None else like)
    places = 0 if size >= 1000 else 1 if size >= 10 else 3
    return f"{value:,.{places}f}"


def tables(figures: Mapping[str, Any], source: ComparisonText) -> str:
    """All tables in Markdown."""
    parts = ["## Trainings", _training_table(figures), "## Learning rates", _rate_table(figures["rates"])]
    for regime in REGIMES:
        rows = [row for row in both_regimes(figures["rows"]) if row["regime"] in (regime, None)]
        if not any(row["regime"] == regime for row in rows):
            continue
        for key, label in source.figures.items():
            parts += [f"## {TITLES[regime]}: {label}", _figure_table(rows, key, figures["references"])]
        parts += [f"## {TITLES[regime]}: against LDLM", _against(rows, source)]
        for title, head, lines in source.more(rows):
            parts += [f"## {TITLES[regime]}: {title}", markdown.table(head, lines)]
    return "\n\n".join([*parts, *_cost_tables(figures)]) + "\n"


def both_regimes(rows: Rows) -> Rows:
    """The rows, with the regime removed from those of rivals, which both regimes share."""
    own = {way.key for way in WAYS if way.method == LDLM}
    return [row if row["way"] in own else {**row, "regime": None} for row in rows]


LIKELIHOOD, LOSS = "−log likelihood, held-out nats per token", "held-out loss that is no likelihood"


def _training_table(figures: Mapping[str, Any]) -> str:
    lines = []
    for regime in REGIMES:
        for method, name in NAMES.items():
            rows = [row for row in figures["trainings"] if (row["regime"], row["method"]) == (regime, method)]
            if not rows:
                continue
            flops = rows[0]["flops_per_token"]
            total = sum(rows[0]["parameters"].values()) if method != AUTOREGRESSIVE else rows[0]["parameters"]
            cells = (
                f"{rows[0]['steps']:,}",
                ", ".join(f"{rate:g}" for rate in sorted({row["lr"] for row in rows})),
                f"{total:,}",
                "–" if flops is None else f"{flops / 1e6:.2f} M",
                *(over_seeds(_minutes(rows, key), key) for key in ("cpu_seconds", "seconds")),
                *_held_out(method, rows, figures["references"]),
            )
            lines.append((name, TITLES[regime].lower(), *cells))
    sizes = ("steps", "learning rate", "parameters", "FLOPs per token")
    table = markdown.table(("", "regime", *sizes, "CPU minutes", "wall minutes", LIKELIHOOD, LOSS), lines)
    return (
        f"{table}\n\nThe NELBO, marked ≤, is an estimate of a bound; of GPT-2 the figure is exact. Losses of different "
        "methods do not compare. Wall minutes count what else the machine did."
    )


def _minutes(rows: Rows, key: str) -> Rows:
    return [{key: row[key] / 60} for row in rows if row.get(key) is not None]


def _held_out(method: str, rows: Rows, references: Mapping[str, Any]) -> tuple[str, str]:
    """Two cells: the likelihood or a bound on it, and the loss of a method whose loss is neither."""
    if method == AUTOREGRESSIVE:
        seeds = {row["seed"] for row in rows}
        return over_seeds([row for row in references[method] if row["seed"] in seeds], "held_out_loss"), "–"
    found = [row["held_out"] or {} for row in rows]
    if any("nelbo" in one for one in found):
        return f"≤ {over_seeds(found, 'nelbo')}", "–"
    return "–", over_seeds(found, "loss")


def _rate_table(rates: Mapping[str, Mapping[str, float]]) -> str:
    """Held-out loss of each rival after a short training at each learning rate, of which the lowest is taken."""
    tried = sorted({rate for found in rates.values() for rate in found}, key=float)
    lines = [
        (NAMES[method], *(number(found[rate]) if rate in found else "–" for rate in tried))
        for method, found in rates.items()
    ]
    return markdown.table(("held-out loss, of one method", *tried), lines)


def _figure_table(rows: Rows, key: str, references: Mapping[str, Any]) -> str:
    budgets = sorted({row["budget"] for row in rows})
    lines = [
        (way.name, *(over_seeds(_cell(rows, way.key, budget), key) for budget in budgets))
        for way in WAYS
        if any(row["way"] == way.key for row in rows)
    ]
    blank = [""] * (len(budgets) - 1)
    if references[AUTOREGRESSIVE]:
        lines.append((REFERENCE, over_seeds(references[AUTOREGRESSIVE], key), *blank))
    lines.append(("real text", over_seeds([references["real"]], key), *blank))
    return markdown.table((EVALUATIONS, *map(str, budgets)), lines)


def _cell(rows: Rows, way: str, budget: int) -> Rows:
    return [row for row in rows if (row["way"], row["budget"]) == (way, budget)]


def _against(rows: Rows, source: ComparisonText) -> str:
    """Each rival's figures as a multiple of LDLM's, or minus LDLM's; ? if the seeds' ranges overlap, or of one seed."""
    budgets = sorted({row["budget"] for row in rows})
    lines = []
    for way in WAYS:
        if way.method != LDLM and any(row["way"] == way.key for row in rows):
            pairs = [(_cell(rows, way.key, budget), _cell(rows, LDLM, budget)) for budget in budgets]
            lines.append((way.name, *(_compared(mine, theirs, source.against) for mine, theirs in pairs)))
    return markdown.table((source.compared, *map(str, budgets)), lines)


FORMS: Mapping[str, Callable[[float, float], str]] = {
    "ratio": lambda a, b: f"× {a / b:.2f}",
    "difference": lambda a, b: f"{a - b:+.2f}",
}


def _compared(mine: Rows, theirs: Rows, against: Mapping[str, str]) -> str:
    def values(rows: Rows, key: str) -> list[float]:
        return [row[key] for row in rows if row[key] is not None]

    cells = []
    for key, form in against.items():
        own, other = values(mine, key), values(theirs, key)
        if not own or not other:
            return "–"
        apart = min(len(own), len(other)) > 1 and (max(own) < min(other) or min(own) > max(other))
        cells.append(FORMS[form](float(np.mean(own)), float(np.mean(other))) + ("" if apart else " ?"))
    return ", ".join(cells)


def _cost_tables(figures: Mapping[str, Any]) -> list[str]:
    """Tables of seconds per text with their titles, and evaluations below budget; means over regimes and seeds."""
    started = "The start of the command is divided by the texts of a set; of GPT-2 without it."
    parts = ["## CPU seconds per text, with the start of the command", _cost_table(figures, "cpu_seconds"), started]
    parts += ["## Wall seconds per text, without the start of the command", _cost_table(figures, "seconds")]
    fewer = _fewer(figures["rows"])
    return [*parts, f"Of the evaluations, these took fewer on average: {fewer}."] if fewer else parts


def _cost_table(figures: Mapping[str, Any], key: str) -> str:
    """Seconds per text, of one kind."""
    rows = per_text(figures["rows"], key)
    budgets = sorted({row["budget"] for row in figures["rows"]})
    lines = [
        (way.name, *(_mean([row[key] for row in _cell(rows, way.key, budget)]) for budget in budgets))
        for way in WAYS
        if any(row["way"] == way.key for row in rows)
    ]
    if reference := per_text(figures["references"][AUTOREGRESSIVE], key):
        lines.append((REFERENCE, _mean([row[key] for row in reference]), *[""] * (len(budgets) - 1)))
    return markdown.table((EVALUATIONS, *map(str, budgets)), lines)


def per_text(rows: Rows, key: str) -> Rows:
    """The rows that have seconds of this kind, divided by the number of texts."""
    return [{**row, key: row[key] / row["num_texts"]} for row in rows if row.get(key) is not None]


def _fewer(rows: Rows) -> str:
    """Ways whose mean number of evaluations differs from the budget, each with both numbers, as a phrase."""
    found = []
    for way in WAYS:
        for budget in sorted({row["budget"] for row in rows if row["way"] == way.key}):
            taken = [row["evaluations"] for row in _cell(rows, way.key, budget) if row.get("evaluations") is not None]
            if taken and f"{(mean := float(np.mean(taken))):.1f}" != f"{budget:.1f}":
                found.append(f"{way.name} {mean:.1f} of {budget}")
    return ", ".join(found)


def _mean(values: Sequence[float]) -> str:
    return number(float(np.mean(values))) if values else "–"


def samples(figures: Mapping[str, Any]) -> str:
    """The first texts of each way, unselected."""
    names = {way.key: way.name for way in WAYS} | {AUTOREGRESSIVE: REFERENCE}
    parts = []
    for key, one in figures["samples"].items():
        budget = "" if one["budget"] is None else f", {one['budget']} evaluations"
        quoted = [f"> {' '.join(text.split())}" for text in one["texts"]]
        parts.append(f"**{names[key]}**{budget}\n\n" + "\n>\n".join(quoted))
    return "\n\n".join(parts) + "\n"
