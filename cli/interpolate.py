"""`ldlm interpolate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ldlm.cli import show
from ldlm.cli.options import Command, Options, changed, path_option, require, require_place, stage_options
from ldlm.config import InterpolateConfig
from ldlm.errors import InputError


@click.command(cls=Command, short_help="decode paths between latents: how smooth is the latent space?")
@stage_options(InterpolateConfig)
@click.option("--run", "runs", metavar="DIR...", multiple=True, help="trained run, or several to compare")
@click.option(
    "--features", metavar="DIR...", multiple=True, help="feature store of each run in turn, or one for all of them"
)
@click.option("--from", "start", metavar="TEXT", help="print the path that begins at this text, and score nothing")
@click.option("--to", "end", metavar="TEXT", help="text at the end of the path that --from begins")
@click.option("--allow-partial", is_flag=True, help="use the shards that an unsealed store has")
@path_option("--output", "folder for figures, texts and plots  [default: interpolation, in the run]")
def command(
    options: Options, runs: tuple[str, ...], features: tuple[str, ...], start: str | None, end: str | None,
    allow_partial: bool, output: str | None,
) -> None:  # fmt: skip
    """Decode the path between the latents of pairs of held-out texts, and score the texts on it.

    --from and --to print the path between two texts, a line for each point.

    \b
    Examples:
      ldlm interpolate --run run --features features --pairs 64 --scorer gpt2-large
      ldlm interpolate --run run --from "The sea was calm." --to "She sold the house." --path spherical
      ldlm interpolate --run run-ce run-mse --features features --scorer gpt2-large --output comparison
    """
    config = options.build()
    texts = _given(options, config, start, end, features, output, allow_partial)
    from ldlm.stages import interpolate as stage

    if options.dry_run:
        return options.show_plan(stage.plan(config, max(1, len(runs)), given=texts is not None))
    paths = [Path(run) for run in runs] or [require(None, "--run", "run")]
    progress = show.Terminal()
    if texts is not None:
        ways = [stage.between(config, path, texts, progress=progress) for path in paths]
        return options.show(ways[0] if len(ways) == 1 else {"runs": ways}, lambda: "\n\n".join(map(_way, ways)))

    how: Any = {"allow_partial": allow_partial, "overwrite": bool(options.overwrite), "progress": progress}
    stores = [require_place(place, "--features", "features") for place in features or (None,)]
    if len(stores) not in (1, len(paths)):
        raise InputError(
            f"{len(paths)} --run and {len(stores)} --features don't pair up; give one store for each run in turn, or "
            f"one for all"
        )
    if len(paths) == 1:
        place = None if output is None else Path(output)
        made = stage.run(config, paths[0], stores[0], place, **how)
        results = {made.manifest["run"]: made.manifest}
    elif output is None:
        raise InputError("several runs go into one picture; say where with --output DIR")
    else:
        members = list(zip(paths, stores * (len(paths) if len(stores) == 1 else 1), strict=True))
        made = stage.compare(config, members, Path(output), **how)
        results = made.manifest["runs"]
    options.show({"output": str(made.path), **made.manifest}, lambda: _tables(str(made.path), results))


def _given(
    options: Options,
    config: InterpolateConfig,
    start: str | None,
    end: str | None,
    features: tuple[str, ...],
    output: str | None,
    allow_partial: bool,
) -> tuple[str, str] | None:
    """The texts of --from and --to, or None without them; `InputError` for flags that don't go with them."""
    if start is None and end is None:
        if changed(config, ["encoder"]):
            raise InputError("--encoder is for --from and --to; pairs of held-out texts come with their states")
        return None
    if start is None or end is None:
        here, there = ("--from", "--to") if end is None else ("--to", "--from")
        raise InputError(f'{here} needs the other end of the path, too; for example {there} "She sold the house."')
    unused: dict[str, Any] = {"--features": features, "--output": output}
    unused |= {"--overwrite": options.overwrite, "--allow-partial": allow_partial}
    unused |= dict.fromkeys(changed(config, ("pairs", "seed", "scorer", "boundaries")), True)
    for flag, value in unused.items():
        if value:
            raise InputError(
                f"{flag} is for pairs of held-out texts, and --from and --to print one path; leave {flag} out"
            )
    return start, end


def _tables(output: str, results: dict[str, dict[str, Any]]) -> str:
    return f"{output}\n\n" + "\n\n".join(_table(name, result) for name, result in results.items())


def _table(name: str, result: dict[str, Any]) -> str:
    rows = [(f"a = {p['a']:.2f}", *_figures(p), p["edits"]) for p in result["points"]]
    rows.append(("mean of the two", *_figures(result["mean"]), None))
    real = result["real"]
    rows.append(("real text", *_figures(real), None))
    pairs, intervals = ("1 pair", "") if result["pairs"] == 1 else (f"{result['pairs']} pairs", ", 95 % intervals")
    head = f"{name}: {pairs}, {result['path']} path, decoder {result['decoder']}, scorer {result['scorer']}{intervals}"
    foot = [] if "diversity_texts" in real else ["the diversity of real text is that of twice as many texts"]
    if any(point["gen_ppl"] is None for point in [*result["points"], result["mean"], real]):
        foot.append("no perplexity (-): none of the texts has a token to score")
    table = show.table(("", "gen. ppl", "", "entropy", "", "diversity", "edits"), rows)
    return "\n".join([head, "", table, *foot])


def _figures(measured: dict[str, Any]) -> tuple[Any, ...]:
    """Cells of a row: perplexity and entropy, each with its interval, and diversity."""
    low_high = {name: "–".join(map(show.value, measured["intervals"][name] or ())) for name in ("gen_ppl", "entropy")}
    return (
        measured["gen_ppl"], low_high["gen_ppl"], measured["entropy"], low_high["entropy"], measured["diversity"],
    )  # fmt: skip


def _way(way: dict[str, Any]) -> str:
    """A path between two texts, a line for each point."""
    head = f"{way['run']}: {way['path']} path, decoder {way['decoder']}"
    return "\n".join([head, *(f"{p['a']:.2f}  {_one_line(p['text'])}" for p in way["points"])])


def _one_line(text: str) -> str:
    """The text with line ends and control characters escaped: an untrained model draws many."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
