"""`ldlm extract-features`."""

from __future__ import annotations

import click

from ldlm import files
from ldlm.cli import show
from ldlm.cli.options import Command, Options, more_options, path_option, require_place, stage_options
from ldlm.config import ExtractConfig, LaunchConfig
from ldlm.location import locate


@click.command(cls=Command, short_help="run the frozen encoder over text once, into a feature store")
@stage_options(ExtractConfig)
@more_options(LaunchConfig, "launch")
@path_option("--output", "folder of the feature store, or s3://bucket/prefix", anywhere=True)
def command(options: Options, launch: LaunchConfig, output: str | None) -> None:
    """Tokenise and pack text, run the frozen encoder over it, and store the normalised hidden states.

    The store can be trained on once it is sealed. The same command resumes an interrupted extraction.
    Several processes share the work, on one machine or many, if they run the same command.

    \b
    Examples:
      ldlm extract-features --encoder gpt2 --data corpus.jsonl --validation-docs 1000 --seq-len 128 --output features
      ldlm extract-features --encoder gpt2 --dataset openwebtext --validation-docs 1000 --seq-len 1024 --output features
      ldlm extract-features --dataset wikitext --dataset-config wikitext-103-raw-v1 --dry-run
    """
    config = options.build()
    from ldlm.stages import extract_features as stage

    if options.dry_run:
        return options.show_plan(stage.plan(config, None if output is None else locate(output), launch))
    out = require_place(output, "--output", "features")
    made = stage.run(config, out, overwrite=bool(options.overwrite), progress=show.Terminal(), launch=launch)
    if not made.complete:
        part = {"output": str(made.path), "done": launch.only}
        return options.show(part, lambda: show.pairs(part))
    result = {"output": str(made.path), **made.manifest}
    options.show(result, lambda: _table(result))


def _table(result: dict) -> str:
    largest, without = (
        (result["statistics"][key] or {"largest_std": 1.0})["largest_std"] for key in ("all", "without_position_0")
    )
    return show.pairs(
        {
            "output": result["output"],
            "rows": " + ".join(f"{count:,} {split}" for split, count in result["rows"].items() if count),
            "tokens": result["tokens"],
            "states": f"{result['shapes']['seq_len']} x {result['shapes']['hidden_dim']}, {result['codec']}",
            "size": files.amount(result["bytes"]),
            "largest std": f"{largest:.3g} (without position 0: {without:.3g})",
        }
    )
