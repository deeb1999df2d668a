"""`ldlm distill`."""

from __future__ import annotations

import click

from ldlm import launcher
from ldlm.cli import show
from ldlm.cli.options import Command, Options, path_option, require, require_place, stage_options
from ldlm.config import DistillConfig


@click.command(cls=Command, short_help="distil a run, so that it draws texts in few evaluations")
@stage_options(DistillConfig)
@path_option("--run", "the trained run, or a distilled one")
@path_option("--features", "the feature store that it was trained on", anywhere=True)
@path_option("--output", "folder of the distilled run")
@click.option("--allow-partial", is_flag=True, help="use the shards that an unsealed store has")
def command(options: Options, run: str | None, features: str | None, output: str | None, allow_partial: bool) -> None:
    """Teach the denoiser to draw in few evaluations, in rounds that each halve those of the deterministic solver.

    In each round a student learns to do in one step what its teacher does in two. Encoder and decoders are frozen. The
    result is a run like any other; by default it draws with the sampler that it was distilled for. The same command
    resumes from the newest checkpoint.

    \b
    Examples:
      ldlm distill --run run --features features --evaluations 4 --output run-4
      ldlm distill --run run --features features --guidance 1.5 --output run-guided
      ldlm distill --run run-4 --features features --evaluations 2 --output run-2
    """
    config = options.build()
    from ldlm.stages import distill as stage

    run_path = require(run, "--run", "run")
    if options.dry_run:
        return options.show_plan(stage.plan(config, run_path))
    made = stage.run(
        config,
        run_path,
        require_place(features, "--features", "features"),
        require(output, "--output", "run-4"),
        allow_partial=allow_partial,
        overwrite=bool(options.overwrite),
        progress=show.Terminal(),
    )
    if not launcher.reports():
        return
    result = {"output": str(made.path), **made.manifest}
    options.show(result, lambda: _table(result))


def _table(result: dict) -> str:
    held_out = result["held_out"]
    return show.pairs(
        {
            "run": result["output"],
            "evaluations of a text": result["evaluations"],
            "steps": f"{result['step']:,}, {show.duration(result['seconds'])}",
            "held-out loss": show.value(held_out["l_distill"]),
            "with the last teacher in its place": show.value(held_out["l_distill_teacher"]),
        }
    )
