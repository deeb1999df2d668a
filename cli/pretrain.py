"""`ldlm pretrain-encoder`."""

from __future__ import annotations

import click

from ldlm.cli import show
from ldlm.cli.options import Command, Options, path_option, require, stage_options
from ldlm.config import PretrainConfig


@click.command(cls=Command, short_help="train a small GPT-2 or BERT with its own tokenizer")
@stage_options(PretrainConfig)
@path_option("--output", "folder for the model and the tokenizer")
def command(options: Options, output: str | None) -> None:
    """Train a small GPT-2 or BERT on your text: a frozen encoder or a scorer for machines without the hub.

    \b
    Example:
      ldlm pretrain-encoder --data novels.txt --steps 1000 --output encoder
    """
    config = options.build()
    from ldlm.stages import pretrain_encoder as stage

    if options.dry_run:
        return options.show_plan(stage.plan(config))
    made = stage.run(
        config, require(output, "--output", "encoder"), overwrite=bool(options.overwrite), progress=show.Terminal()
    )
    result = {"output": str(made.path), **made.manifest}
    keys = ("output", "parameters", "vocab_size", "tokens", "final_loss", "seconds")
    options.show(result, lambda: show.pairs({key: result[key] for key in keys}))
