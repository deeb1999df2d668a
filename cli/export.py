"""`ldlm export`."""

from __future__ import annotations

from typing import Any

import click

from ldlm.cli import show
from ldlm.cli.options import Command, Options, default_settings, method_of, path_option, require, stage_options
from ldlm.config import ExportConfig


@click.command(cls=Command, short_help="write a folder to share, with all that drawing texts needs")
@stage_options(ExportConfig, named_samplers=True, token_samplers=())
@path_option("--run", "trained run")
@path_option("--encoder", "with --with-encoder: where the frozen encoder is, if it has moved since extraction")
@path_option("--output", "folder to write the model to")
def command(options: Options, run: str | None, encoder: str | None, output: str | None) -> None:
    """Write denoiser, decoders, tokenizer and a model card to a folder.

    The model draws the same texts as the run, with `ldlm sample --run MODEL` and in Python:
    `from ldlm import LDLM; LDLM.from_pretrained("model").sample(8)`; TokenDiffusion opens token-level models.
    Nothing is uploaded without --push-to-hub.

    --with-encoder includes the frozen encoder, so that a model that continues texts needs nothing but the folder.

    \b
    Examples:
      ldlm export --run run --output model --set sampler.steps=64
      ldlm export --run run --output model --precision bf16 --with-encoder
      ldlm export --run run-mdlm --output model --sampler remdm
    """
    config = options.build_drawing(method_of(run), default_settings(run, options.given()))
    from ldlm.stages import export as stage

    run_path = require(run, "--run", "run")
    if options.dry_run:
        return options.show_plan(stage.plan(config, run_path, encoder=encoder))
    out = require(output, "--output", "model")
    overwrite, progress = bool(options.overwrite), show.Terminal()
    made = stage.run(config, run_path, out, encoder=encoder, overwrite=overwrite, progress=progress)
    result = {"output": str(made.path), **made.manifest}
    options.show(
        result,
        lambda: show.pairs(
            {
                "model": result["output"],
                "checkpoint": f"step {result['step']:,}",
                **_contents(result),
            }
        ),
    )


def _contents(result: dict[str, Any]) -> dict[str, str]:
    if "method" in result:
        return {"method": result["method"]}
    return {"decoders": ", ".join([f"{result['decoders'][0]} (default)", *result["decoders"][1:]])}
