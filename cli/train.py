"""`ldlm train`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from ldlm import artifact, launcher
from ldlm import config as configs
from ldlm.cli import show
from ldlm.cli.options import Command, Options, online_options, path_option, require, require_place, stage_options
from ldlm.config import AnyTrainConfig, TrainConfig
from ldlm.errors import InputError, Occupied
from ldlm.location import beside, folder_name, locate

ONLINE = "online"
GPT2_POSITIONS = 1_024
TEXT = (
    "encoder", "kind", "layer", "seq_len", "data", "dataset", "dataset_config", "revision", "split", "text_column",
    "validation_data", "validation_split", "validation_docs", "detokenizer", "stats_tokens",
)  # fmt: skip


@click.command(cls=Command, short_help="train LDLM, or a rival method on the same rows")
@stage_options(TrainConfig, methods=True, presets=True)
@path_option(
    "--features",
    "feature store, or `online` to run the encoder inside the training step",
    metavar="DIR|online",
    anywhere=True,
)
@path_option("--output", "folder of the run")
@click.option(
    "--fit",
    metavar="SIZE",
    help="choose --accumulate and --recompute to fit devices of this much memory, like 80GB; a tenth stays in reserve",
)
@click.option(
    "--devices",
    type=click.IntRange(min=1),
    metavar="INT",
    help="with --dry-run: processes that share a batch, one per device  [default: torchrun's, or 1]",
)
@click.option("--allow-partial", is_flag=True, help="train on the shards that an unsealed store has")
@online_options(TEXT)
def command(
    options: Options,
    features: str | None,
    output: str | None,
    fit: str | None,
    devices: int | None,
    allow_partial: bool,
    online: dict[str, Any],
) -> None:
    """Train the latent encoder, the denoiser and the decoders jointly on a feature store.

    With --method, train a rival on the tokens of the store instead: MDLM (and ReMDM), Duo, CANDI or FLM, all with the
    same backbone. The same command resumes from the newest checkpoint. --dump-config shows every setting, and --set
    changes one.

    \b
    Examples:
      ldlm train --features features --output run --preset tiny --steps 2000
      ldlm train --features features --output run --preset owt-128 --set recipe.sigma_dec=3
      ldlm train --method mdlm --features features --output run-mdlm --preset tiny
      ldlm train --features online --encoder gpt2 --data corpus.jsonl --seq-len 1024 --output run --preset owt-1024
      ldlm train --preset owt-1024 --dry-run --json
      ldlm train --preset owt-1024 --seq-len 4096 --devices 8 --fit 40GB --dry-run
    """
    config = options.build()
    if fit is not None and (chosen := [f for f in ("accumulate", "recompute") if options.flags[(f,)] is not None]):
        raise InputError(f"--fit chooses accumulate and recompute itself; leave --{chosen[0]} out")
    from ldlm.stages import train as stage

    if options.dry_run:
        shapes, kind = _shapes(options, features, online, allow_partial)
        plan = stage.plan(config, shapes, features=kind, devices=devices, fit=fit)
        return options.show_plan(plan) if launcher.reports() else None
    if devices is not None:
        raise InputError("--devices is for --dry-run; torchrun --nproc-per-node sets how many processes train")
    store = require_place(features, "--features", "features")
    out = require(output, "--output", "run")
    if features == ONLINE:
        store = _prepare_online(online, config, out, fit, overwrite=bool(options.overwrite))
    elif online:
        raise InputError(f"--{next(iter(online)).replace('_', '-')} is for --features online; a store has its own")
    made = stage.run(
        config,
        store,
        out,
        allow_partial=allow_partial,
        overwrite=bool(options.overwrite),
        fit=fit,
        progress=show.Terminal(),
    )
    if not launcher.reports():
        return
    result = {"output": str(made.path), **made.manifest}
    options.show(result, lambda: _table(result))


def _prepare_online(
    online: dict[str, Any], config: AnyTrainConfig, out: Path, fit: str | None, *, overwrite: bool
) -> Path:
    """A store of tokens and statistics beside the run, for the encoder to work from."""
    from ldlm.stages import extract_features, train

    if not online.get("data") and not online.get("dataset"):
        raise InputError("--features online needs the text: --data FILE… or --dataset NAME, and --encoder")
    # The processes of this training divide the work, and not the tasks of an array, which train runs of their own.
    launch = configs.LaunchConfig(share=f"{launcher.rank()}/{launcher.processes()}")
    same = {"codec": "online", "seed": config.seed, "device": config.device}
    place = beside(out, f"{folder_name(out)}-features")
    if not _is_online(place):
        raise InputError(
            f"{place} is for the tokens and statistics of this run, and holds something else; choose another --output"
        )
    progress = show.Terminal()
    settings = configs.from_dict(configs.ExtractConfig, {**online, **same})
    try:
        extract_features.run(settings, place, progress=progress, launch=launch)
    except Occupied:  # only now: --overwrite may be meant for the run alone, and the store may still fit
        if not overwrite:
            raise
        # What the training refuses is found before anything is deleted, and first what all processes are refused for:
        # each of them has the run to itself while it looks for the rest, so that one would be refused for another.
        extract_features.check_overwrite(place, launch)
        train.check_ahead(config, settings, place, out, fit=fit)
        extract_features.run(settings, place, overwrite=True, progress=progress, launch=launch)
    progress.note(f"tokens and statistics are in {place}, which later commands take as --features")
    return place


def _is_online(place: Path) -> bool:
    """Whether a location holds nothing yet, or a store of the codec `online`, begun or finished."""
    if (place / "config.yaml").is_file():
        return artifact.recorded_config(place).get("codec") == ONLINE
    return artifact.is_open(place, "features")


def _shapes(
    options: Options, features: str | None, online: dict[str, Any], allow_partial: bool
) -> tuple[configs.Shapes, str | None]:
    """Sizes for a dry run, and the kind of the features: the store's, the encoder's or, without either, the preset's.

    A preset has no kind.
    """
    if features == ONLINE and "encoder" in online:
        from ldlm.stages import extract_features

        extract = configs.from_dict(configs.ExtractConfig, online)
        return extract_features.shapes(extract), extract.kind
    if features is not None and features != ONLINE:
        from ldlm.features.store import FeatureStore

        if online:
            raise InputError(f"--{next(iter(online)).replace('_', '-')} is for --features online; a store has its own")
        store = FeatureStore(locate(features), allow_partial=allow_partial)
        return store.shapes, store.encoder["kind"]
    if others := [name for name in online if name != "seq_len"]:
        raise InputError(f"--{others[0].replace('_', '-')} is for --features online; add it, or leave the option out")
    if options.preset is None:
        raise InputError("a dry run takes its sizes from --features DIR or --preset NAME; give one of them")
    shapes = configs.preset(options.preset).shapes
    if "seq_len" not in online:
        return shapes, None
    length = configs.from_dict(configs.ExtractConfig, {"seq_len": online["seq_len"]}).seq_len
    if length > GPT2_POSITIONS:
        show.Terminal().note(
            f"rows of {length:,} tokens need an encoder with as many positions: GPT-2 has {GPT2_POSITIONS:,}, "
            f"ModernBERT 8,192; `ldlm pretrain-encoder --positions {length}` makes one"
        )
    return dataclasses.replace(shapes, seq_len=length), None


# The held-out figures that the table shows, if the method has them.
_FIGURES = {
    "L_diff, denoising": "l_diff",
    "  predicting the mean instead": "l_diff_mean",
    "L_h, hidden states under noise": "l_h",
    "L_w, tokens under noise": "l_w",
    "token accuracy under noise": "token_accuracy",
    "token accuracy, clean": "token_accuracy_clean",
    "latent standard deviation": "latent_std",
    "loss, nats per token": "loss",
    "  standard error": "loss_se",
    "  estimate of a bound, NELBO": "nelbo",
}


def _table(result: dict) -> str:
    held_out = result["held_out"]
    rows = [(words, held_out[name]) for words, name in _FIGURES.items() if name in held_out]
    size, took = sum(result["parameters"].values()), show.duration(result["seconds"])
    head = f"{result['output']}: {result['step']:,} steps, {size:,} parameters, {took}"
    return head + "\n\n" + show.table((f"{held_out['split']} rows", ""), rows)
