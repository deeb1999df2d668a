"""`ldlm finetune-decoder`."""

from __future__ import annotations

import click

from ldlm import launcher
from ldlm.cli import show
from ldlm.cli.options import Command, Options, path_option, require, require_place, stage_options
from ldlm.config import FinetuneConfig

FIGURES = {
    "l_w": "L_w, tokens under noise",
    "token_accuracy": "token accuracy under noise",
    "l_w_clean": "L_w, clean",
    "token_accuracy_clean": "token accuracy, clean",
}


@click.command(cls=Command, short_help="train a small decoder that reads the latents directly")
@stage_options(FinetuneConfig)
@path_option("--run", "the trained run")
@path_option("--features", "the feature store that it was trained on", anywhere=True)
@click.option("--allow-partial", is_flag=True, help="use the shards that an unsealed store has")
@click.option("--list", "as_list", is_flag=True, help="list the run's decoders and stop")
def command(options: Options, run: str | None, features: str | None, allow_partial: bool, as_list: bool) -> None:
    """Freeze encoder and denoiser, and train a new token decoder of K blocks on noisy latents.

    With it a run samples without D_h. It becomes the run's default decoder unless another one, measured under the same
    noise and on the same rows, has a lower held-out cross-entropy. The same command resumes from the newest checkpoint.

    \b
    Examples:
      ldlm finetune-decoder --run run --features features --layers 2
      ldlm finetune-decoder --run run --list
    """
    config = options.build()
    from ldlm.stages import finetune_decoder as stage

    run_path = require(run, "--run", "run")
    if as_list:
        decoders = [vars(decoder) for decoder in stage.listing(config, run_path)]
        return options.show(decoders, lambda: _listing(decoders))
    if options.dry_run:
        return options.show_plan(stage.plan(config, run_path))
    made = stage.run(
        config,
        run_path,
        require_place(features, "--features", "features"),
        allow_partial=allow_partial,
        overwrite=bool(options.overwrite),
        progress=show.Terminal(),
    )
    if not launcher.reports():
        return
    result = {"output": str(made.path), **made.manifest}
    options.show(result, lambda: _table(result))


def _table(result: dict) -> str:
    from ldlm.sampling.trained_run import noise_of

    mine, joint, saved = result["parameters"], result["replaces"], result["replaces"] - result["parameters"]
    rows = [
        ("parameters", mine, joint),
        ("parameters saved", saved, None),
        *((label, result["held_out"][key], result["joint"].get(key)) for key, label in FIGURES.items()),
    ]
    layers, took = result["network"]["layers"], show.duration(result["seconds"])
    head = f"{result['output']}: {layers} layers, {result['step']:,} steps, {noise_of(result)}, {took}"
    rows_read = f"{result['held_out']['rows']:,} {result['held_out']['split']} rows"
    return head + "\n\n" + show.table((rows_read, result["name"], "D_h and D_w"), rows)


def _listing(decoders: list[dict]) -> str:
    """One line per decoder; a star marks the one that `sample` takes by default."""
    headers = ("decoder", "layers", "parameters", "noise", "L_w", "accuracy", "L_w clean", "clean", "steps", "of step")
    rows = [
        (
            f"{decoder['name']}{' *' * decoder['default']}{'' if decoder['usable'] else ' (other checkpoint)'}",
            decoder["layers"],
            decoder["parameters"],
            decoder["noise"],
            *(decoder["held_out"].get(key) for key in FIGURES),
            decoder["step"],
            decoder["checkpoint_step"],
        )
        for decoder in decoders
    ]
    return show.table(headers, rows) + "\n\n* the default, used if --decoder names none"
