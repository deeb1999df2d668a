"""`ldlm likelihood`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ldlm.cli import show
from ldlm.cli.options import Command, Options, path_option, require, require_place, stage_options
from ldlm.config import LikelihoodConfig
from ldlm.errors import InputError
from ldlm.location import folder_names


@click.command(cls=Command, short_help="bits per token of held-out rows: a bound, or exact if a model has it")
@stage_options(LikelihoodConfig)
@click.option("--run", "runs", metavar="DIR...", multiple=True, help="trained runs of any method")
@click.option(
    "--causal", metavar="NAME...", multiple=True, help="causal models with the same tokenizer, by folder or hub name"
)
@path_option("--features", "feature store that holds the rows", anywhere=True)
@path_option("--output", "folder for the result of one run  [default: likelihood, in the run]")
def command(
    options: Options, runs: tuple[str, ...], causal: tuple[str, ...], features: str | None, output: str | None
) -> None:
    """Bits per token of rows of a store: how likely a model finds text that it has not seen.

    LDLM has an upper bound, at the best of several noise levels τ; MDLM and Duo have their NELBO, and a causal model
    the exact figure. CANDI and FLM have none. The result of a run is kept in its folder, and the same command resumes
    an interrupted one.

    \b
    Examples:
      ldlm likelihood --run run --features features --json
      ldlm likelihood --run run run-mdlm run-duo --causal gpt2 --features features
      ldlm likelihood --run run --features features --rows all --taus 6 5 4 3 2
    """
    config = options.build()
    store = require_place(features, "--features", "features")
    if not runs and not causal:
        require(None, "--run", "run")
    if output is not None and len(runs) != 1:
        raise InputError("--output is for one run; without it each run keeps its own result")
    paths, out = [Path(run) for run in runs], None if output is None else Path(output)
    names = _names(paths, causal)
    from ldlm.baselines.bounded import unbounded
    from ldlm.stages import likelihood as stage

    stage.check_used(config, paths, causal, out=out, overwrite=bool(options.overwrite))
    if options.dry_run:
        return options.show_plan(stage.plan(config, paths, store, causal))
    if len(paths) + len(causal) > 1:
        stage.check_all(config, paths, causal, store, out, overwrite=bool(options.overwrite))
    records, progress = list[dict[str, Any]](), show.Terminal()
    for name, path in zip(names, paths, strict=False):
        found = unbounded(path)
        if found is None:
            made = stage.run(config, path, store, out, overwrite=bool(options.overwrite), progress=progress)
            found = {"output": str(made.path), **made.manifest}
        records.append({**found, "run": name, "path": str(path)})
    for name, model in zip(names[len(paths) :], causal, strict=True):
        records.append({**stage.of_causal(config, model, store, progress), "run": name})
    options.show(records[0] if len(records) == 1 else {"runs": records}, lambda: _tables(records))


def _names(runs: list[Path], causal: tuple[str, ...]) -> list[str]:
    """Names of runs and causal models, all different: short ones where they suffice."""
    if len(set(causal)) < len(causal):
        raise InputError(f"{', '.join(causal)} name a causal model twice; give each once")
    short = [*folder_names(runs), *(Path(name).name for name in causal)]
    whole = [*map(str, runs), *causal]
    return [name if short.count(name) == 1 else full for name, full in zip(short, whole, strict=True)]


def _interval(interval: list[float] | None) -> str:
    """A cell of the table: both ends, or - if there is no interval."""
    return "-" if interval is None else "–".join(map(show.value, interval))


def _tables(records: list[dict[str, Any]]) -> str:
    """A table of all, and the curve over τ of each LDLM."""
    measured = [one for one in records if one["is"] != "none"]
    rows = [
        (one["run"], one["method"], f"{'≤ ' if one['is'] == 'bound' else ''}{show.value(one['bits_per_token'])}",
         _interval(one["interval"]), show.value(one["estimate_se"]), show.value(one["perplexity"]))
        for one in measured
    ]  # fmt: skip
    parts = [f"{one['run']}: no likelihood, because {one['why']} ({one['method']})" for one in records if "why" in one]
    if measured:
        first = measured[0]
        head = ("", "method", "bits/token", "95 % interval", "s.e. of estimate", "perplexity")
        foot = (
            f"{first['rows_reported']:,} {first['split']} rows, per token of all {first['seq_len']} of a row; to leave "
            f"BOS and EOS out of the denominator, multiply by {first['seq_len']}/{first['seq_len'] - 2}"
        )
        parts = [f"{show.table(head, rows)}\n\n{foot}", *parts]
    return "\n\n".join([*parts, *(_curve(one) for one in measured if "curve" in one)])


def _curve(one: dict[str, Any]) -> str:
    """The bound over τ."""
    rows = [
        (f"{point['tau']:.3g}{' *' if point['tau'] == one['tau'] else ''}", f"{point['t']:.3f}", point["decoding"],
         point["kl"], point["bits_per_token"], point["chosen_by"])
        for point in one["curve"]
    ]  # fmt: skip
    head = ("τ", "t*", "tokens", "latents", "bits/token", "other half")
    return (
        f"{one['run']}, decoder {one['decoder']}: the bound over τ; * is lowest on the {one['rows_chosen_on']:,} other "
        f"rows\n{show.table(head, rows)}"
    )
