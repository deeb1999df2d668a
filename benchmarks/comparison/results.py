"""The findings of a comparison, read from its folder: figures, tables, a picture, and the first texts of each way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import picture, tables
from benchmarks.comparison.plan import (
    AUTOREGRESSIVE,
    EQUAL_STEPS,
    NAMES,
    REGIMES,
    WAYS,
    Draw,
    draws,
    flops_per_token,
    run_path,
)
from benchmarks.comparison.sources import ComparisonText
from ldlm import artifact, files
from ldlm.errors import InputError
from ldlm.paper import origin
from ldlm.paper.origin import Origin

REAL = Path("texts/real.json")
SPENT = ("cpu_seconds", "seconds")
SHOWN = 3  # texts printed for each way, the first ones


def autoregressive_texts(seed: int) -> Path:
    """File of the autoregressive model's texts, in the folder of a comparison."""
    return Path("texts") / EQUAL_STEPS / f"seed-{seed}" / f"{AUTOREGRESSIVE}.jsonl"


# ----------------------------------------------------------------------------------------------------------------------
# Figures


def collect(source: ComparisonText, folder: Path, seeds: Sequence[int], budgets: Sequence[int]) -> dict[str, Any]:
    """The figures of everything finished so far; `InputError` if not even the real texts are measured.

    Sets of texts are compared, so smaller ones than the real texts' are left out: they were measured before `--texts`
    was raised. Larger ones are refused, since there are no real texts to compare them with.
    """
    if not (folder / REAL).exists():
        raise InputError(
            f"{folder} has no measured texts, so there is nothing to report; run it without --report first"
        )
    real = files.read_json(folder / REAL)
    costs = {path.stem: files.read_json(path) for path in sorted((folder / "costs").glob("*.json"))}
    spent = _spent_by_output(folder)
    every = draws(seeds, sorted(budgets), list(NAMES))
    found = {one: record for one in every if (record := _measured(folder / one.texts, real))}
    reference = {seed: record for seed in seeds if (record := _measured(folder / autoregressive_texts(seed), real))}
    return {
        "text": files.read_json(folder / "text" / "text.json"),
        "models": {name: _model(folder / name) for name in source.models},
        "seeds": list(seeds),
        "rates": {path.stem: files.read_json(path) for path in sorted((folder / "rates").glob("*.json"))},
        "trainings": [*_trainings(folder, seeds, costs, spent)],
        "rows": [_row(one, record) for one, record in found.items()],
        "references": {
            "real": real,
            AUTOREGRESSIVE: [{"seed": seed, **record} for seed, record in reference.items()],
        },
        "samples": _samples(folder, [*found], [*reference], seeds[0]),
    }


def joined(figures: Mapping[str, Any], others: Mapping[Path, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures joined with the seeds of other results; `InputError` for another comparison, or if seeds coincide.

    The tables compare sets of texts, so text, number of texts, steps and learning rates have to be the same.
    """
    found = {**figures, "references": dict(figures["references"])}
    for path, other in others.items():
        if twice := set(found["seeds"]) & set(other["seeds"]):
            raise InputError(f"{path} has seed {min(twice)}, which these results have; name others with --seeds")
        for what, mine, theirs in ((name, of(figures), of(other)) for name, of in SAME.items()):
            if mine != theirs:
                raise InputError(f"{path} has {what} {theirs} and these results {mine}; join those of one comparison")
        for key in ("seeds", "trainings"):
            found[key] = sorted([*found[key], *other[key]], key=_by_seed)
        found["rows"] = _of_one_size(found, [*found["rows"], *other["rows"]])
        both = [*found["references"][AUTOREGRESSIVE], *other["references"][AUTOREGRESSIVE]]
        found["references"][AUTOREGRESSIVE] = _of_one_size(found, both)
    return found


def _of_one_size(figures: Mapping[str, Any], sets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sets that have as many texts as the real ones, by seed; results of earlier versions may hold others."""
    size = figures["references"]["real"]["num_texts"]
    return sorted((one for one in sets if one["num_texts"] == size), key=_by_seed)


def _by_seed(one: Any) -> int:
    return int(one if isinstance(one, int) else one["seed"])


def _settings(figures: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return sorted({tuple(row[key] for key in ("regime", "method", "steps", "lr")) for row in figures["trainings"]})


SAME: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "the text": lambda figures: figures["text"]["sha256"],
    "the number of texts": lambda figures: figures["references"]["real"]["num_texts"],
    "the trainings": _settings,
}


def _measured(texts: Path, real: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a set of texts; None without one, or for fewer texts than the real ones."""
    path = texts.with_suffix(".json")
    record: dict[str, Any] = files.read_json(path) if path.exists() else {}
    size, of_real = record.get("num_texts", 0), real["num_texts"]
    if size > of_real:
        raise InputError(f"{path} is of {size} texts, and the real ones are {of_real}; run it with --texts {size}")
    return record if size == of_real else None


def _row(one: Draw, record: Mapping[str, Any]) -> dict[str, Any]:
    place = {"regime": one.regime, "seed": one.seed, "way": one.way.key, "budget": one.budget}
    return {**place, **{key: value for key, value in record.items() if key not in ("protocol", "boundaries")}}


def _model(folder: Path) -> dict[str, Any]:
    manifest = files.read_digested(folder / "manifest.json", "train it again")
    return {key: manifest[key] for key in ("parameters", "vocab_size", "rows", "final_loss")}


def _spent_by_output(folder: Path) -> dict[str, dict[str, float]]:
    """Wall-clock and CPU seconds of the commands for each output, all attempts together."""
    total: dict[str, dict[str, float]] = {}
    for line in origin.read(folder / origin.COMMANDS):
        words = line["ldlm"]
        if "--output" in words:
            own = total.setdefault(words[words.index("--output") + 1], dict.fromkeys(SPENT, 0.0))
            for key in SPENT:
                own[key] += line[key]
    return total


def _trainings(
    folder: Path, seeds: Sequence[int], costs: Mapping[str, Any], spent: Mapping[str, Any]
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
                        **spent.get(str(path), dict.fromkeys(SPENT)),
                        "held_out": manifest.get("held_out"),
                    }


def _samples(folder: Path, found: Sequence[Draw], references: Sequence[int], seed: int) -> dict[str, dict[str, Any]]:
    """The first texts of each way with equal steps, at the budget nearest to the paper's 128.

    `references` are the seeds that have texts of the autoregressive model.
    """
    shown: dict[str, dict[str, Any]] = {}
    own = [one for one in found if one.seed == seed and one.regime == EQUAL_STEPS]
    for one in sorted(own, key=lambda one: -abs(one.budget - 128)):
        shown[one.way.key] = {"budget": one.budget, "texts": _first(folder / one.texts)}
    if seed in references:
        shown[AUTOREGRESSIVE] = {"budget": None, "texts": _first(folder / autoregressive_texts(seed))}
    ordered = {way.key: shown[way.key] for way in WAYS if way.key in shown}
    return {**ordered, **{key: shown[key] for key in shown if key not in ordered}}


def _first(path: Path) -> list[str]:
    return [row["text"] for row, _ in zip(files.read_jsonl(path), range(SHOWN), strict=False)]


# ----------------------------------------------------------------------------------------------------------------------
# Files


def read(path: Path, source: ComparisonText) -> dict[str, Any]:
    """A record written by `write`; `InputError` if it is not one of this source."""
    try:
        record = files.read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be joined: {error}") from None
    if not isinstance(record, dict) or record.get("source") != source.stem:
        raise InputError(f"{path} has no results of {source.stem}; join {source.stem}-DATE.json of another machine")
    return record


def measured_at(folder: Path, others: Collection[Mapping[str, Any]], *, here: bool) -> Origin:
    """The origin of the figures in the folder and in other results; with `here`, this machine's where no record says.

    Commands of earlier versions were listed without it.
    """
    return origin.of_records(origin.read(folder / origin.COMMANDS), others, here=here)


def write(figures: Mapping[str, Any], source: ComparisonText, measured: Origin, out: Path | None) -> None:
    """Print the tables with samples; into `out`, also write them, the figures as JSON and the picture."""
    date, hardware = measured.date, measured.hardware
    head = (
        f"# {source.title} of {date}\n\n{hardware or 'Hardware not recorded'}, one thread each; "
        f"text {figures['text']['file']}, {len(figures['seeds'])} seeds, "
        f"{figures['references']['real']['num_texts']} texts of each set. {source.about(figures)}"
    )
    document = f"{head}\n\n{tables.tables(figures, source)}\n## Samples\n\n{tables.samples(figures)}"
    print(document)
    if out is not None:
        files.make_folder(out)
        made = {"source": source.stem, "date": date, "hardware": hardware}
        record = {**made, "versions": measured.versions, "figures": figures}
        files.write_atomic(out / f"{source.stem}-{date}.md", document)
        files.write_atomic(out / f"{source.stem}-{date}.json", files.dump_json(record))
        picture.draw(out / f"{source.stem}-{date}.png", figures, source.axes)
