"""`ldlm sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ldlm.cli import show
from ldlm.cli.options import Command, Options, changed, default_settings, method_of, path_option, require, stage_options
from ldlm.config import AnySampleConfig, SampleConfig
from ldlm.errors import InputError

OF_TRACE = ("trace_text", "trace_frames", "trace_times")
TOKEN_SETTINGS = ("top_p", "nucleus_rule", "drawing", "end", "schedule", "mode", "update")


@click.command(cls=Command, short_help="draw texts from a run, or trace one on its way from noise")
@stage_options(SampleConfig, named_samplers=True, token_samplers=TOKEN_SETTINGS)
@path_option("--run", "trained run or exported model")
@path_option("--output", "file to write, one JSON object per text; without it texts are printed", metavar="F.jsonl")
@path_option("--trace", "instead of --output: folder for a page and a GIF of one text on its way from noise")
def command(options: Options, run: str | None, output: str | None, trace: str | None) -> None:
    """Draw texts: noise, the reverse process and, for LDLM, one pass through the decoder.

    Text i depends on its seed, 1,000,000 SEED + i, and not on the batch. Without --output the texts are printed and no
    file is written; with it, the same command resumes an interrupted file.

    --prompt continues a text, with a run that was trained with --set model.condition=prefix; texts begin with it.

    --trace shows one of these texts on its way from noise: the decoded estimates at times t, and the probability of
    each token.

    Token-level runs (train --method mdlm, duo, candi, flm) have samplers of their own, with 128 steps by default.
    --steps, --eta and --temperature apply to these as well; set others as in --set sampler.step_size=0.5.

    \b
    Examples:
      ldlm sample --run model --num-samples 5
      ldlm sample --run run --num-samples 1000 --output samples.jsonl
      ldlm sample --run run --prompt "The sea was calm" --prompt-guidance 1.5 --output continued.jsonl
      ldlm sample --run run --trace-text 3 --trace trace
      ldlm sample --run run-mdlm --sampler remdm --eta 0.015 --top-p 0.9 --output mdlm.jsonl
    """
    config = options.build_drawing(method_of(run), default_settings(run, options.given()))
    if options.flags[("prompting", "prompt")] is not None and config.prompting.prompt is None:
        raise InputError("--prompt none means no prompt; to continue that word, give it in a file, with --prompts")
    if output is not None and trace is not None:
        raise InputError("--output writes texts and --trace shows one; give them in two commands")
    if trace is None and isinstance(config, SampleConfig) and (idle := changed(config, OF_TRACE)):
        raise InputError(f"{', '.join(idle)} {'is' if len(idle) == 1 else 'are'} for --trace; add --trace DIR")
    if trace is not None:
        return _trace(options, config, run, trace)
    if output is None and options.overwrite:
        raise InputError("--overwrite replaces a file of texts, and without --output none is written; leave it out")
    from ldlm import files
    from ldlm.stages import sample as stage

    run_path = require(run, "--run", "run")
    if options.dry_run:
        return options.show_plan(stage.plan(config, run_path))
    if output is None:
        drawn = stage.draw(config, run_path, progress=show.Terminal())
        return options.show(drawn, lambda: _printed(config, drawn))
    out = Path(output)
    result = stage.run(config, run_path, out, overwrite=bool(options.overwrite), progress=show.Terminal())
    result = {"output": str(out), **result}

    def text() -> str:
        count = result["config"]["num_samples"]
        first = [row["text"] for _, row in zip(range(3), files.read_jsonl(out), strict=False)]
        heading = ["the first of them:"] if count > len(first) else []
        return "\n\n".join([f"{out}: {_counted(count)}, {_how(config, result)}", *heading, *first])

    options.show(result, text)


def _printed(config: AnySampleConfig, result: dict[str, Any]) -> str:
    """All texts, each under its seed."""
    special = result["boundaries"]["tokens"]
    texts = [f"seed {row['seed']:,}\n{show.wrapped(row['text'], special)}" for row in result["texts"]]
    return "\n\n".join([f"{_counted(len(texts))}, {_how(config, result)}", *texts])


def _counted(texts: int) -> str:
    return "1 text" if texts == 1 else f"{texts:,} texts"


def _how(config: AnySampleConfig, result: dict[str, Any]) -> str:
    """A phrase that says how the texts were drawn."""
    steps = "1 step" if config.sampler.steps == 1 else f"{config.sampler.steps} steps"
    if "decoder" in result:
        return f"{steps} each, decoder {result['decoder']}"
    said = f"sampler {result['config']['sampler']['name']} of {result['method']}, {steps} each"
    if "evaluations_per_text" in result:
        rows = "1 row" if result["rows"] == 1 else f"{result['rows']:,} rows"
        said += f", {rows} and {result['evaluations_per_text']:.1f} evaluations of the network"
    return said


def _trace(options: Options, config: SampleConfig, run: str | None, folder: str) -> None:
    from ldlm.stages import trace as stage

    run_path, out = require(run, "--run", "run"), require(folder, "--trace", "trace")
    if options.dry_run:
        return options.show_plan(stage.plan(config, run_path))
    made = stage.run(config, run_path, out, overwrite=bool(options.overwrite), progress=show.Terminal())
    result = {"output": str(out), **made.manifest}
    options.show(
        result,
        lambda: "\n\n".join(
            [f"{out}: {result['frames']} frames; open {out / 'trace.html'} or {out / 'trace.gif'}", result["text"]]
        ),
    )
