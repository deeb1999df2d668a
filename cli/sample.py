"""`ldlm sample`."""

from __future__ import annotations

import click
from ldlm.cli import show
from ldlm.cli.options import Command, Options, path_option, require, stage_options

from ldlm.config import SampleConfig


@click.command(cls=Command, short_help="draw texts from a run")
@stage_options(SampleConfig)
@path_option("--run", "the trained run, or what `ldlm export` made of it")
@path_option("--output", "file to write, one JSON object per text", metavar="F.jsonl")
def command(options: Options, run: str | None, output: str | None) -> None:
    """Draw texts: noise, the reverse process, one pass through the decoder.

    Text i depends on its seed, 1,000,000 SEED + i, and not on the batch. The same command takes up an interrupted one.

    \b
    Example:
      ldlm sample --run run --num-samples 1000 --steps 128 --output samples.jsonl
    """
    config = options.build()
    from ldlm.stages import sample as stage

    from ldlm import files

    run_path = require(run, "--run", "run")
    if options.dry_run:
        return options.show_plan(stage.plan(config, run_path))
    out = require(output, "--output", "samples.jsonl")
    result = stage.run(config, run_path, out, overwrite=bool(options.overwrite), progress=show.Terminal())
    result = {"output": str(out), **result}

    def text() -> str:
        first = [row["text"] for _, row in zip(range(3), files.read_jsonl(out), strict=False)]
        head = f"{out}: {config.num_samples:,} texts, {config.sampler.steps} steps each, decoder {result['decoder']}"
        return "\n\n".join([head, *first])

    options.show(result, text)
