"""`ldlm plot`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ldlm.cli import show
from ldlm.cli.options import path_option
from ldlm.errors import InputError


@click.command(short_help="draw training curves, of one run or of several side by side")
@click.argument("runs", nargs=-1, metavar="RUN...")
@path_option("--output", "folder for the picture of several runs together")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
def command(runs: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Plot losses, reconstruction, latents, warm-up and timesteps from the metrics of runs, even while they train.

    For runs of rivals, plot the losses over steps and over time, the gradient and the learning rate.

    \b
    Examples:
      ldlm plot run
      ldlm plot run-mdlm run-duo --output comparison
      ldlm plot run-warmup-0 run-warmup-10k run-warmup-50k --output comparison
    """
    if not runs:
        raise InputError("no runs to draw; for example ldlm plot run")
    from ldlm.stages import plot as stage

    drawn = [str(path) for path in stage.run([Path(run) for run in runs], None if output is None else Path(output))]
    show.say(json.dumps({"drawn": drawn}) if as_json else "\n".join(drawn))
