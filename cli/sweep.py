"""`ldlm sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ldlm.cli import show
from ldlm.cli.options import Command, Options, method_of, path_option, require, stage_options
from ldlm.config import LDLM, FrontierConfig
from ldlm.errors import InputError
from ldlm.location import beside


@click.command(cls=Command, short_help="measure quality against evaluations, over solvers, grids, guidance and rivals")
@stage_options(FrontierConfig, named_samplers=True)
@click.option(
    "--run", "runs", metavar="DIR...", multiple=True, help="trained run or exported model, or several on one frontier"
)
@path_option("--reference", "real text, shown as a star in the plot", metavar="FILE")
@click.option(
    "--external",
    "externals",
    multiple=True,
    metavar="NAME=FILE,NFE,SECONDS",
    help="texts of another model, with evaluations and seconds per text",
)
@path_option(
    "--output",
    "folder for tables, plot and texts  [default: sweep, in the run; beside an exported model or the first of several]",
)
def command(
    options: Options, runs: tuple[str, ...], reference: str | None, externals: tuple[str, ...], output: str | None
) -> None:
    """Draw with every solver, time grid and guidance at every budget, score the texts, and draw the finalists again.

    A run of a rival is drawn with each of its samplers, or with those of --token-samplers. Several runs share one
    frontier, over evaluations and over seconds, and the sweep of each is in a folder of its own inside the output. The
    same command resumes an interrupted sweep.

    \b
    Examples:
      ldlm sweep --run run --scorer gpt2-large --reference real.jsonl --budgets 16 32 64 128
      ldlm sweep --run run run-mdlm run-duo --scorer gpt2-large --reference real.jsonl
      ldlm sweep --run run-mdlm exported --scorer gpt2-large --token-samplers remdm remdm:schedule=cap,eta=0.01
    """
    config = options.build()
    from ldlm.evaluation.frontier import External
    from ldlm.stages import sweep as stage

    paths = [Path(run) for run in runs]
    if options.sampler is not None and runs and LDLM not in (methods := [method_of(run) for run in runs]):
        raise InputError(
            f"--sampler {options.sampler} is a sampler of LDLM, and runs of {' and '.join(dict.fromkeys(methods))} do "
            f"not have it; choose among theirs with --token-samplers"
        )
    others = [External.parse(one) for one in externals]
    if options.dry_run:
        return options.show_plan(stage.plan(config, paths))
    paths = paths or [require(None, "--run", "run")]
    made = stage.run(
        config,
        paths,
        _default_output(paths) if output is None else Path(output),
        reference=None if reference is None else Path(reference),
        externals=others,
        overwrite=bool(options.overwrite),
        progress=show.Terminal(),
    )
    result = {"output": str(made.path), **made.manifest}
    options.show(result, lambda: _points(result) if "points" in result else _finalists(result))


def _default_output(paths: list[Path]) -> Path:
    """`sweep` in the run; or beside an exported model, which is to be shared, or beside the first of several runs."""
    from ldlm.sampling import pretrained

    if len(paths) == 1 and pretrained.model_type(paths[0]) is None:
        return paths[0] / "sweep"
    return beside(paths[0], "sweep")


def _points(result: dict[str, Any]) -> str:
    from ldlm.evaluation.fronts import NO_WIN, cells

    head, rows = cells(result)
    foot = f"{result['texts']:,} texts each, scorer {result['scorer']}; all of it in {result['output']}/table.md"
    return show.table(head, rows) + f"\n\n{NO_WIN}\n{foot}"


def _finalists(result: dict[str, Any]) -> str:
    from ldlm.evaluation.frontier import read_finalists, verdict
    from ldlm.evaluation.scores import FIGURES

    finalists = read_finalists(result)
    head = ("evaluations", "solver", "grid", "w", "final", "temp.", "gen. ppl", "entropy", "diversity", "s/text")
    rows: list[tuple[Any, ...]] = [
        (
            row.budget, row.solver, row.grid, row.guidance, row.final, row.temperature,
            row.gen_ppl, row.entropy, row.diversity, row.seconds,
        )
        for row in finalists
    ]  # fmt: skip
    if result["real"] is not None:
        figures = (result["real"][name] for name in FIGURES)
        rows.append(("real text", *[""] * 5, *figures, ""))
    decoders = " and ".join(dict.fromkeys(row.decoder for row in finalists))
    foot = (
        f"{result['texts']:,} texts each, decoder {decoders}, scorer {result['scorer']}; all of it in "
        f"{result['output']}/table.md"
    )
    if (fewest := result["diversity_texts"]) < result["texts"]:
        few = "text" if fewest == 1 else f"{fewest:,}"
        foot = f"diversity of the first {few} of each, as many as the smallest set has; {foot}"
    return show.table(head, rows) + "\n\n" + verdict(finalists) + "\n" + foot
