"""The findings of a comparison, read from its folder: figures, tables, a picture, and the first texts of each way."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparison import picture
from benchmarks.comparison.plan import (
    AUTOREGRESSIVE,
    EQUAL_FLOPS,
    EQUAL_STEPS,
    LDLM,
    NAMES,
    REGIMES,
    WAYS,
    Draw,
    draws,
    flops_per_token,
    run_path,
)
from benchmarks.comparison.sources import Rows, Source
from ldlm import artifact, files
from ldlm.errors import InputError

REAL = Path("texts/real.json")
SHOWN = 3  # texts of each way that are printed, the first ones
TITLES = {EQUAL_STEPS: "Equal steps", EQUAL_FLOPS: "Equal training FLOPs"}


def autoregressive_texts(seed: int) -> Path:
    """Texts of the autoregressive model, in the folder of a comparison."""
    return Path("texts") / EQUAL_STEPS / f"seed-{seed}" / f"{AUTOREGRESSIVE}.jsonl"


# ----------------------------------------------------------------------------------------------------------------------
# Figures


def collect(source: Source, folder: Path, seeds: Sequence[int], budgets: Sequence[int]) -> dict[str, Any]:
    """The figures of everything that is there."""
    costs = {path.stem: files.read_json(path) for path in sorted((folder / "costs").glob("*.json"))}
    cpu = _cpu_by_output(folder)
    every = draws(seeds, sorted(budgets), list(NAMES))
    found = [one for one in every if _record(folder, one).exists()]
    return {
        "text": files.read_json(folder / "text" / "text.json"),
        "models": {name: _model(folder / name) for name in source.models},
        "seeds": list(seeds),
        "rates": {path.stem: files.read_json(path) for path in sorted((folder / "rates").glob("*.json"))},
        "trainings": [*_trainings(folder, seeds, costs, cpu)],
        "rows": [_row(one, files.read_json(_record(folder, one))) for one in found],
        "references": {
            "real": files.read_json(folder / REAL),
            AUTOREGRESSIVE: [
                {"seed": seed, **files.read_json(path)}
                for seed in seeds
                if (path := folder / autoregressive_texts(seed).with_suffix(".json")).exists()
            ],
        },
        "samples": _samples(folder, found, seeds[0]),
    }


def joined(figures: Mapping[str, Any], others: Mapping[Path, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures with the seeds of other results; `InputError` where these are of another comparison or a seed is twice.

    The tables compare sets of texts, so that text, number of texts, steps and learning rates have to be the same.
    """
    found = {**figures, "references": dict(figures["references"])}
    for path, other in others.items():
        if twice := set(found["seeds"]) & set(other["seeds"]):
            raise InputError(f"{path} has seed {min(twice)}, which these results have; name others with --seeds")
        for what, mine, theirs in ((name, of(figures), of(other)) for name, of in SAME.items()):
            if mine != theirs:
                raise InputError(f"{path} has {what} {theirs} and these results {mine}; join those of one comparison")
        for key in ("seeds", "trainings", "rows"):
            found[key] = sorted([*found[key], *other[key]], key=_by_seed)
        both = [*found["references"][AUTOREGRESSIVE], *other["references"][AUTOREGRESSIVE]]
        found["references"][AUTOREGRESSIVE] = sorted(both, key=_by_seed)
    return found


def _by_seed(one: Any) -> int:
    return int(one if isinstance(one, int) else one["seed"])


def _settings(figures: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return sorted({tuple(row[key] for key in ("regime", "method", "steps", "lr")) for row in figures["trainings"]})


SAME: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "the text": lambda figures: figures["text"]["sha256"],
    "the number of texts": lambda figures: figures["references"]["real"]["num_texts"],
    "the trainings": _settings,
}


def _record(folder: Path, one: Draw) -> Path:
    return folder / one.texts.with_suffix(".json")


def _row(one: Draw, record: Mapping[str, Any]) -> dict[str, Any]:
    place = {"regime": one.regime, "seed": one.seed, "way": one.way.key, "budget": one.budget}
    return {**place, **{key: value for key, value in record.items() if key not in ("protocol", "boundaries")}}


def _model(folder: Path) -> dict[str, Any]:
    manifest = files.read_digested(folder / "manifest.json", "train it again")
    return {key: manifest[key] for key in ("parameters", "vocab_size", "rows", "final_loss")}


def _cpu_by_output(folder: Path) -> dict[str, float]:
    """Seconds that the commands of each output have computed, all attempts together."""
    total: dict[str, float] = {}
    for line in files.read_jsonl(folder / "commands.jsonl"):
        words = line["ldlm"]
        if "--output" in words:
            output = words[words.index("--output") + 1]
            total[output] = total.get(output, 0.0) + line["cpu_seconds"]
    return total


def _trainings(
    folder: Path, seeds: Sequence[int], costs: Mapping[str, Any], cpu: Mapping[str, float]
) -> Iterable[dict[str, Any]]:
    for regime in REGIMES:
        for method in NAMES:
            for seed in seeds:
                path = run_path(regime, seed, method)
                if path.parts[1] == regime and (folder / path / "manifest.json").exists():
                    manifest = files.read_digested(folder / path / "manifest.json", "train it again")
                    config = artifact.recorded_config(folder / path)
                    lr = config["optimizer"]["lr"] if "optimizer" in config else config["lr"]
                    own = {"regime": regime, "method": method, "seed": seed, "steps": config["steps"], "lr": lr}
                    flops = flops_per_token(costs[method]) if method in costs else None
                    yield {
                        **own,
                        "parameters": manifest["parameters"],
                        "flops_per_token": flops,
                        "cpu_seconds": cpu.get(str(path)),
                        "held_out": manifest.get("held_out"),
                    }


def _samples(folder: Path, found: Sequence[Draw], seed: int) -> dict[str, dict[str, Any]]:
    """The first texts of each way with equal steps, at the budget nearest to the paper's 128."""
    shown: dict[str, dict[str, Any]] = {}
    own = [one for one in found if one.seed == seed and one.regime == EQUAL_STEPS]
    for one in sorted(own, key=lambda one: -abs(one.budget - 128)):
        shown[one.way.key] = {"budget": one.budget, "texts": _first(folder / one.texts)}
    texts = folder / autoregressive_texts(seed)
    if texts.exists():
        shown[AUTOREGRESSIVE] = {"budget": None, "texts": _first(texts)}
    ordered = {way.key: shown[way.key] for way in WAYS if way.key in shown}
    return {**ordered, **{key: shown[key] for key in shown if key not in ordered}}


def _first(path: Path) -> list[str]:
    return [row["text"] for row, _ in zip(files.read_jsonl(path), range(SHOWN), strict=False)]


# ----------------------------------------------------------------------------------------------------------------------
# Tables


def over_seeds(rows: Rows, key: str) -> str:
    """A cell: the mean of a figure, ± half the range over seeds."""
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return "–"
    mean = float(np.mean(values))
    spread = f" ± {number(float(np.ptp(values)) / 2, like=mean)}" if len(values) > 1 else ""
    return number(mean) + spread


def number(value: float, *, like: float | None = None) -> str:
    """A number with three digits, or all of its whole part; with as many places as `like` has."""
    size = abs(value if like is None else like)
    places = 0 if size >= 1000 else 1 if size >= 10 else 3
    return f"{value:,.{places}f}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def tables(figures: Mapping[str, Any], source: Source) -> str:
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
            parts += [f"## {TITLES[regime]}: {title}", markdown(head, lines)]
    return "\n\n".join([*parts, "## Seconds per text", _cost_table(figures["rows"])]) + "\n"


def both_regimes(rows: Rows) -> Rows:
    """The rows; those of rivals, which both regimes have, without a regime."""
    own = {way.key for way in WAYS if way.method == LDLM}
    return [row if row["way"] in own else {**row, "regime": None} for row in rows]


def _training_table(figures: Mapping[str, Any]) -> str:
    lines = []
    for regime in REGIMES:
        for method, name in NAMES.items():
            rows = [row for row in figures["trainings"] if (row["regime"], row["method"]) == (regime, method)]
            if not rows:
                continue
            flops, loss = rows[0]["flops_per_token"], [{"loss": _loss(row, figures)} for row in rows]
            total = sum(rows[0]["parameters"].values()) if method != AUTOREGRESSIVE else rows[0]["parameters"]
            minutes = [{"cpu": row["cpu_seconds"] / 60} for row in rows if row["cpu_seconds"] is not None]
            cells = (
                f"{rows[0]['steps']:,}",
                f"{rows[0]['lr']:g}",
                f"{total:,}",
                "–" if flops is None else f"{flops / 1e6:.2f} M",
            )
            lines.append((name, TITLES[regime].lower(), *cells, over_seeds(minutes, "cpu"), over_seeds(loss, "loss")))
    head = (
        "",
        "regime",
        "steps",
        "learning rate",
        "parameters",
        "FLOPs per token",
        "CPU minutes",
        "held-out nats per token",
    )
    return markdown(head, lines)


def _rate_table(rates: Mapping[str, Mapping[str, float]]) -> str:
    """Held-out loss of each rival after a short training at each learning rate, of which the lowest is taken."""
    tried = sorted({rate for found in rates.values() for rate in found}, key=float)
    lines = [(NAMES[method], *(number(found[rate]) for rate in tried)) for method, found in rates.items()]
    return markdown(("held-out nats per token", *tried), lines)


def _loss(training: Mapping[str, Any], figures: Mapping[str, Any]) -> float | None:
    if training["method"] == AUTOREGRESSIVE:
        own = [row for row in figures["references"][AUTOREGRESSIVE] if row["seed"] == training["seed"]]
        return own[0]["held_out_loss"] if own else None
    return (training["held_out"] or {}).get("loss") if training["method"] != LDLM else None


def _figure_table(rows: Rows, key: str, references: Mapping[str, Any]) -> str:
    budgets = sorted({row["budget"] for row in rows})
    lines = [
        (way.name, *(over_seeds(_cell(rows, way.key, budget), key) for budget in budgets))
        for way in WAYS
        if any(row["way"] == way.key for row in rows)
    ]
    blank = [""] * (len(budgets) - 1)
    if references[AUTOREGRESSIVE]:
        lines.append(("GPT-2, a token at a time", over_seeds(references[AUTOREGRESSIVE], key), *blank))
    lines.append(("real text", over_seeds([references["real"]], key), *blank))
    return markdown(("evaluations", *map(str, budgets)), lines)


def _cell(rows: Rows, way: str, budget: int) -> Rows:
    return [row for row in rows if (row["way"], row["budget"]) == (way, budget)]


def _against(rows: Rows, source: Source) -> str:
    """Each rival's figures as a multiple of LDLM's, or less LDLM's; ? where seeds overlap."""
    budgets = sorted({row["budget"] for row in rows})
    lines = []
    for way in WAYS:
        if way.method != LDLM and any(row["way"] == way.key for row in rows):
            pairs = [(_cell(rows, way.key, budget), _cell(rows, LDLM, budget)) for budget in budgets]
            lines.append((way.name, *(_compared(mine, theirs, source.against) for mine, theirs in pairs)))
    return markdown((source.compared, *map(str, budgets)), lines)


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
        apart = max(own) < min(other) or min(own) > max(other)
        cells.append(FORMS[form](float(np.mean(own)), float(np.mean(other))) + ("" if apart else " ?"))
    return ", ".join(cells)


def _cost_table(rows: Rows) -> str:
    """CPU seconds of a text, and of starting the command divided by all texts; the mean over regimes and seeds."""
    budgets = sorted({row["budget"] for row in rows})
    timed = [
        {**row, "cpu": row["cpu_seconds"] / row["num_texts"]} for row in rows if row.get("cpu_seconds") is not None
    ]
    lines = [
        (way.name, *(_mean([row["cpu"] for row in _cell(timed, way.key, budget)]) for budget in budgets))
        for way in WAYS
        if any(row["way"] == way.key for row in timed)
    ]
    return markdown(("evaluations", *map(str, budgets)), lines)


def _mean(values: Sequence[float]) -> str:
    return number(float(np.mean(values))) if values else "–"


def samples(figures: Mapping[str, Any]) -> str:
    """The first texts of each way, as they are."""
    names = {way.key: way.name for way in WAYS} | {AUTOREGRESSIVE: "GPT-2, a token at a time"}
    parts = []
    for key, one in figures["samples"].items():
        budget = "" if one["budget"] is None else f", {one['budget']} evaluations"
        quoted = [f"> {' '.join(text.split())}" for text in one["texts"]]
        parts.append(f"**{names[key]}**{budget}\n\n" + "\n>\n".join(quoted))
    return "\n\n".join(parts) + "\n"


# ----------------------------------------------------------------------------------------------------------------------
# Files


def read(path: Path, source: Source) -> dict[str, Any]:
    """A record that `write` has written; `InputError` where it is none of this source."""
    try:
        record = files.read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be joined: {error}") from None
    if not isinstance(record, dict) or record.get("source") != source.stem:
        raise InputError(f"{path} has no results of {source.stem}; join {source.stem}-DATE.json of another machine")
    return record


def write(figures: Mapping[str, Any], source: Source, machines: Sequence[str], out: Path | None) -> None:
    """Print the tables; into `out` also write them with samples, the figures as JSON and the picture.

    `machines` are those that the figures were measured on.
    """
    date = datetime.date.today().isoformat()
    head = (
        f"# {source.title} of {date}\n\n{'; '.join(machines)}, one thread each; text {figures['text']['file']}, "
        f"{len(figures['seeds'])} seeds, {figures['references']['real']['num_texts']} texts of each set. "
        f"{source.about(figures)}"
    )
    document = f"{head}\n\n{tables(figures, source)}\n## Samples\n\n{samples(figures)}"
    print(document)
    if out is not None:
        files.make_folder(out)
        made = {"source": source.stem, "date": date, "hardware": "; ".join(machines)}
        record = {**made, "versions": artifact.versions(), "figures": figures}
        files.write_atomic(out / f"{source.stem}-{date}.md", document)
        files.write_atomic(out / f"{source.stem}-{date}.json", files.dump_json(record))
        picture.draw(out / f"{source.stem}-{date}.png", figures, source.axes)
