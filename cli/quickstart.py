"""`ldlm quickstart`."""

from __future__ import annotations

from pathlib import Path

import click

from ldlm import files
from ldlm.cli import show
from ldlm.cli.options import Command, Options, path_option, require, stage_options
from ldlm.config import QuickstartConfig


@click.command(cls=Command, short_help="the whole pipeline in about ten minutes on two cores")
@stage_options(QuickstartConfig)
@path_option("--output", "folder for all outputs")
def command(options: Options, output: str | None) -> None:
    """Pretrain a small encoder, extract features, train jointly, fine-tune a decoder, sample, interpolate, evaluate.

    The text is little English stories of known distribution, which are ours and synthetic, or the documentation of
    Python and the installed packages, or a file. It demonstrates the pipeline, not the paper's quality. The same
    command resumes an interrupted one.

    \b
    Examples:
      ldlm quickstart --output quickstart
      ldlm quickstart --output quickstart-python --text python
      ldlm quickstart --output quickstart-novels --text novels.txt
    """
    config = options.build({} if options.overwrite else _begun(output))
    from ldlm.stages import quickstart as stage

    if options.dry_run:
        return options.show_plan(stage.plan(config))
    out = require(output, "--output", "quickstart")
    made = stage.run(config, out, overwrite=bool(options.overwrite), progress=show.Terminal())
    result = {"output": str(made.path), **made.manifest}
    options.show(result, lambda: stage.summary_text(result))


def _begun(output: str | None) -> dict[str, str]:
    """The text that a folder was begun with, so that the same command continues it whatever the default is now."""
    if output is None or not (Path(output) / "config.yaml").is_file():
        return {}
    text = files.read_yaml(Path(output) / "config.yaml").get("text")
    return {"text": text or "python"}  # folders of 0.1.0 name no text
