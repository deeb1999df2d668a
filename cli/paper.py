"""`ldlm paper`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldlm import files
from ldlm.cli import show
from ldlm.cli.options import Command, Options, changed, path_option, require, stage_options
from ldlm.config import PaperConfig, names_of
from ldlm.errors import InputError

if TYPE_CHECKING:
    from ldlm.paper.results import Result

LIST = "list"


@click.command(cls=Command, short_help="the paper's tables and figures: list, table-1 … table-9, figure-1 … figure-6")
@click.argument("names", nargs=-1, required=True, metavar="list|table-N|figure-N...")
@stage_options(PaperConfig, overwrite=False)
@path_option("--output", "folder for everything; tables that share it share features, runs and texts")
@path_option("--script", "with --scale paper: file for the commands, instead of printing them", metavar="FILE")
@click.option("--report", is_flag=True, help="run nothing; write the table from what is there")
def command(options: Options, names: tuple[str, ...], output: str | None, script: str | None, report: bool) -> None:
    """Reproduce tables and figures of the paper, row by row, beside the paper's own figures.

    `list` shows all of them with the state of their evidence: reproduced if all orderings of the paper are held,
    partly reproduced if all were measured, one is held and none is reversed, contradicted if one is reversed, else
    undecided. The same command
    resumes an interrupted one. Commands with the same --output share the work, and --dry-run with --output counts only
    what is missing there.

    \b
    Examples:
      ldlm paper list
      ldlm paper table-1 --dry-run
      ldlm paper table-1 figure-3 --text novels.txt --output tables
      ldlm paper table-1 --row mse ce --seeds 1 --output tables
      ldlm paper table-8 --scale paper --device-name H100 --devices 8 --dry-run
      ldlm paper table-8 --scale paper --devices 8 --output /data/table-8 --script table-8.sh
    """
    config = options.build()
    if LIST in names:
        others = [*(name for name in names if name != LIST), *changed(config, names_of(PaperConfig))]
        given = {"--output": output, "--script": script, "--report": report, "--dry-run": options.dry_run}
        others += [flag for flag, value in given.items() if value]
        if others:
            raise InputError(f"list shows all tables and figures; leave {' '.join(others)} out")
        from ldlm.paper import evidence

        found = [one.to_json() for one in evidence.of_all()]
        return options.show(found, lambda: _listing(found))
    from ldlm.stages import paper as stage

    names = tuple(dict.fromkeys(names))
    if options.dry_run:
        plan = stage.plan(config, names, None if output is None else Path(output), show.Terminal())
        return options.show(plan, lambda: _plan(plan))
    if config.scale == "paper" and not report:
        return _script(options, config, names, output, script)
    if script is not None:
        why = "--report writes none" if report else "--scale tiny runs them itself"
        raise InputError(f"--script is for the commands of --scale paper; {why}")
    if idle := changed(config, ("device_name", "devices")):
        are, them = ("are", "them") if idle[1:] else ("is", "it")
        why = "for --dry-run and for the script of --scale paper"
        raise InputError(f"{' and '.join(idle)} {are} {why}; leave {them} out")
    stage.check(config, names)
    if report and changed(config, ("device",)):
        raise InputError("--report runs nothing on a device; leave --device out")
    out = require(output, "--output", "tables")
    made = stage.run(config, names, out, report=report, progress=show.Terminal())
    records = [record for record, _ in made]
    result = records[0] if len(records) == 1 else {"tables": records}
    options.show({"output": str(out), **result}, lambda: "\n\n".join(_table(out, *one) for one in made))


def _listing(found: list[dict[str, Any]]) -> str:
    rows = [
        (one["name"], one["section"], one["rows"], _state(one), one["orderings"] or "-", one["title"]) for one in found
    ]
    return show.table(("", "section", "rows", "evidence", "the paper's orderings", "title"), rows)


def _state(one: dict[str, Any]) -> str:
    return one["state"] if one["scale"] is None else f"{one['state']} ({one['scale']}, {one['date']})"


def _plan(plan: dict[str, Any]) -> str:
    lines = [*plan["stages"], {"stage": "in all", **plan["total"]}]
    rows = [
        (one["stage"], one["count"], _short(one["tokens"]), _short(one["flops"]), files.amount(one["bytes"]),
         f"{one['device_hours']:,.1f}")
        for one in lines
    ]  # fmt: skip
    foot = (
        f"{' '.join(plan['exhibits'])}, scale {plan['scale']}: {plan['hours']:,.1f} hours on {plan['devices']} "
        f"{plan['device_name']} ({_short(plan['flops_per_second'])} FLOP/s each, assumed)"
    )
    return show.table(("stage", "jobs", "tokens", "FLOPs", "disk", "device hours"), rows) + f"\n\n{foot}"


def _short(count: float) -> str:
    return f"{count:.3g}"


def _script(
    options: Options, config: PaperConfig, names: tuple[str, ...], output: str | None, script: str | None
) -> None:
    from ldlm.location import check_output
    from ldlm.stages import paper as stage

    if len(names) > 1:
        raise InputError(f"a script makes one table or figure, and these are {len(names)}; ask for them one by one")
    (name,) = names
    text = stage.commands(config, name, Path(output or name), f"{name}.sh" if script is None else Path(script).name)
    if script is None:
        return options.show({"script": text}, lambda: text.removesuffix("\n"))
    check_output(Path(script), f"{name}.sh", flag="--script", without="the script is printed")
    files.write_atomic(Path(script), text)
    options.show({"output": script}, lambda: f"the commands of {name} are in {script}")


def _table(out: Path, record: dict[str, Any], result: Result) -> str:
    from ldlm.paper.results import caption

    head, rows = result.table()
    lines = [show.table(head, rows), "", caption(record), "", *result.verdicts(), "", f"all of it in {out}"]
    return "\n".join(lines)
