"""`ldlm stories`."""

from __future__ import annotations

from pathlib import Path

import click

from ldlm.cli import show
from ldlm.cli.options import Command, Options, path_option, require, stage_options
from ldlm.config import StoriesConfig


@click.command(cls=Command, short_help="write little English stories whose distribution is known")
@stage_options(StoriesConfig)
@path_option("--output", "file for the stories, one per line", metavar="FILE")
@path_option("--tokenizer", "folder for a tokenizer of whole words, for `ldlm pretrain-encoder --tokenizer`")
def command(options: Options, output: str | None, tokenizer: str | None) -> None:
    """Write little English stories from a process whose probabilities are known, for training and exact evaluation.

    \b
    Examples:
      ldlm stories --documents 200000 --output stories.txt --tokenizer words
      ldlm pretrain-encoder --data stories.txt --tokenizer words --output encoder
      ldlm evaluate --source stories samples.jsonl
    """
    config = options.build()
    from ldlm.stages import stories as stage

    if options.dry_run:
        return options.show_plan(stage.plan(config))
    out = require(output, "--output", "stories.txt")
    folder = None if tokenizer is None else Path(tokenizer)
    record = stage.run(config, out, folder, overwrite=bool(options.overwrite), progress=show.Terminal())
    result = {"output": str(out), **record, **stage.entropies()}
    keys = ("output", "documents", "words", "seed", "version", "nats_per_story", "nats_per_word")
    options.show(result, lambda: show.pairs({key: result[key] for key in keys}))
