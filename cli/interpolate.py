"""`ldlm interpolate`."""

from __future__ import annotations

import click
from ldlm.cli import show
from ldlm.cli.options import Command, Options, path_option, require, require_place, stage_options

from ldlm.config import InterpolateConfig


@click.command(cls=Command, short_help="decode the way between two latents: how smooth is the space?")
@stage_options(InterpolateConfig)
@path_option("--run", "the trained run")
@path_option("--features", "the feature store that it was trained on")
@click.option("--allow-partial", is_flag=True, help="use the shards that an unsealed store has")
@path_option("--output", "folder for interpolation.json, the texts and the plot")
def command(options: Options, run: str | None, features: str | None, allow_partial: bool, output: str | None) -> None:
    """Decode the straight way between the latents of pairs of held-out texts, and score the texts on it.

    \b
    Example:
      ldlm interpolate --run run --features features --pairs 64 --scorer gpt2-large --output interpolation
    """
    config = options.build()
    from ldlm.stages import interpolate as stage

    if options.dry_run:
        return options.show_plan(stage.plan(config))
    made = stage.run(
        config,
        require(run, "--run", "run"),
        require_place(features, "--features", "features"),
        require(output, "--output", "interpolation"),
        allow_partial=allow_partial,
        overwrite=bool(options.overwrite),
        progress=show.Terminal(),
    )
    result = {"output": str(made.path), **made.manifest}
    options.show(result, lambda: _table(result))


def _table(result: dict) -> str:
    rows = [(f"a = {p['a']:.2f}", p["gen_ppl"], p["entropy"], p["diversity"]) for p in result["points"]]
    rows.append(("real text", *(result["real"][key] for key in ("gen_ppl", "entropy", "diversity"))))
    head = f"{result['output']}: {result['pairs']} pairs, decoder {result['decoder']}, scorer {result['scorer']}"
    return head + "\n\n" + show.table(("(1-a) z_A + a z_B", "gen. ppl", "entropy", "diversity"), rows)
