"""`ldlm finetune-decoder`."""

from __future__ import annotations

import click
from ldlm.cli import show
from ldlm.cli.options import Command, Options, path_option, require, require_place, stage_options

from ldlm.config import FinetuneConfig


@click.command(cls=Command, short_help="train a small decoder that reads the latents directly")
@stage_options(FinetuneConfig)
@path_option("--run", "the trained run")
@path_option("--features", "the feature store that it was trained on")
def command(options: Options, run: str | None, features: str | None) -> None:
    """Freeze encoder and denoiser, and train a new token decoder of K blocks on noisy latents.

    It becomes the run's default decoder, and sampling needs D_h no more.

    \b
    Example:
      ldlm finetune-decoder --run run --features features --layers 2
    """
    config = options.build()
    from ldlm.stages import finetune_decoder as stage

    run_path = require(run, "--run", "run")
    if options.dry_run:
        return options.show_plan(stage.plan(config, run_path))
    made = stage.run(
        config,
        run_path,
        require_place(features, "--features", "features"),
        overwrite=bool(options.overwrite),
        progress=show.Terminal(),
    )
    result = {"output": str(made.path), **made.manifest}
    options.show(result, lambda: _table(result))


def _table(result: dict) -> str:
    return show.pairs(
        {
            "decoder": f"{result['name']} (in {result['output']})",
            "parameters": f"{result['parameters']:,}, in place of {result['replaces']:,} in D_h and D_w",
            "held-out token accuracy": f"{result['held_out']['token_accuracy']:.3f} under noise, "
            f"{result['held_out']['token_accuracy_clean']:.3f} clean",
            "seconds": result["seconds"],
        }
    )
