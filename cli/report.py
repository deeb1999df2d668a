"""`ldlm report`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ldlm.cli import show
from ldlm.cli.options import path_option


@click.command(short_help="show a run as one web page: what was trained on what, how it went, and the results")
@click.argument("run", metavar="RUN")
@path_option("--output", "page to write; RUN/report.html if not given", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
def command(run: str, output: str | None, as_json: bool) -> None:
    """Losses, timesteps, latents, samples, the sweep's frontier, interpolation and speed on one page.

    For a run of a rival it shows the losses, samples, the sweep and speed.

    The page needs no network and no other file. It is made from the run's files alone, at any time, even while the run
    trains, and shows what `sample`, `sweep`, `interpolate` and `finetune-decoder` have left in the run's folder so far.

    \b
    Examples:
      ldlm report run
      ldlm report run --output report.html
    """
    from ldlm.stages import report as stage

    written = str(stage.run(Path(run), None if output is None else Path(output)))
    show.say(json.dumps({"output": written}) if as_json else written)
