"""`ldlm evaluate`."""

from __future__ import annotations

from pathlib import Path

import click
from ldlm.cli import show
from ldlm.cli.options import Command, Options, path_option, stage_options

from ldlm.config import EvaluateConfig
from ldlm.errors import InputError


@click.command(cls=Command, short_help="score anybody's texts: perplexity, entropy, diversity")
@click.argument("texts", nargs=-1, metavar="F.jsonl...")
@stage_options(EvaluateConfig, overwrite=False)
@path_option("--reference", "real text to compare with", metavar="FILE")
def command(options: Options, texts: tuple[str, ...], reference: str | None) -> None:
    """Generative perplexity under a scorer, with entropy and diversity beside it, since collapse lowers perplexity.

    The files are JSON lines with a "text" field, or plain text with a text per line, made by anybody's model.

    \b
    Example:
      ldlm evaluate samples.jsonl --reference real.jsonl --scorer gpt2-large --max-tokens 128
    """
    config = options.build()
    if not texts:
        raise InputError("no texts to evaluate; for example ldlm evaluate samples.jsonl")
    from ldlm.stages import evaluate as stage

    paths, real = [Path(text) for text in texts], None if reference is None else Path(reference)
    if options.dry_run:
        return options.show_plan(stage.plan(config, paths, real))
    results = stage.run(config, paths, real, progress=show.Terminal())
    record = results[0] if len(paths) == 1 else {"files": results[: len(paths)]}
    if real is not None:
        record = {**record, "reference": results[-1]}
    options.show(record, lambda: _table(results))


def _table(results: list[dict]) -> str:
    rows = [
        (
            r["file"] + (" (reference)" if r["role"] == "reference" else ""),
            r["gen_ppl"],
            r["entropy"],
            r["diversity"],
            r["num_texts"],
        )
        for r in results
    ]
    first = results[0]
    foot = f"protocol {first['protocol']}, scorer {first['scorer']}, at most {first['max_tokens']} tokens a text"
    return show.table(("", "gen. ppl", "entropy", "diversity", "texts"), rows) + "\n\n" + foot
