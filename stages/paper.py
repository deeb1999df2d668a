"""The paper's tables and figures: planned, run at a small scale, written as a script, and gathered from a folder."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldlm import memory
from ldlm.config import PaperConfig
from ldlm.errors import InputError
from ldlm.location import check_output_folder
from ldlm.paper import costs, exhibits, pictures, results, script
from ldlm.paper.jobs import changed, unique
from ldlm.paper.plan import USED, Plan, Size
from ldlm.paper.settings import PAPER, TINY
from ldlm.progress import SILENT, Progress


def plan(
    config: PaperConfig, names: Sequence[str], out: Path | None = None, progress: Progress = SILENT
) -> dict[str, Any]:
    """Stages of tables and figures with tokens, FLOPs, disk and hours; given `out`, only of what is missing there."""
    plans = _plans(config, names)
    if config.text is not None:
        _check_text(Path(config.text), out)
    jobs = unique(job for made in plans for job in made.jobs)
    left = [job for job in jobs if out is None or not job.done(out)]
    card, devices = _card(config)
    with progress.task("count", sum(job.kind != "text" for job in left), "job") as task:
        found = costs.of_jobs(left, config.scale, card, devices, task.advance)
    return {"exhibits": list(names), "scale": config.scale, **found}


def commands(config: PaperConfig, name: str, out: Path, file: str) -> str:
    """The commands of a table at `--scale paper` as a shell script, whose help gives its file name as `file`."""
    (made,) = _plans(config, [name])
    if not made.jobs:
        raise InputError(
            f"{name} is computed and takes no commands, so it has no script; ldlm paper {name} --output DIR makes it"
        )
    card, devices = _card(config)
    return script.text(made, str(out), file, card=costs.card(card), devices=devices)


def run(
    config: PaperConfig, names: Sequence[str], out: Path, *, report: bool = False, progress: Progress = SILENT
) -> list[tuple[dict[str, Any], results.Result]]:
    """Run what is missing of tables and figures at the tiny scale, and write each one's results so far.

    With `report` nothing is run. `out` gets `table-1-tiny.json` and `.md`, and for figures `.png`. The jobs of all
    tables form one list, so processes that share it idle only at its end; a job that fails leaves out only what needs
    it, and raises `InputError` after everything else.
    """
    check_output_folder(out)
    plans = _plans(config, names)
    if report:
        plans = [_reported(config, made, out) for made in plans]
    from ldlm.evaluation import mauve  # imports torch, as the next does, which neither the list nor a script needs
    from ldlm.paper.runner import Runner

    runner = Runner(out.absolute(), None if config.text is None else Path(config.text).absolute(), progress)
    if report and not out.is_dir():
        raise InputError(f"there is no folder {out}, so there is nothing to report; run it first")
    if report and config.text is not None:
        _check_text(Path(config.text), out)
    if not report:
        if config.scale == PAPER:
            raise InputError("--scale paper is for a scheduler: it prints a script; --report gathers its results")
        jobs = unique(job for made in plans for job in made.jobs)
        if any("--mauve" in job.words and not job.done(out) for job in jobs):
            mauve.library()  # else it were missed after hours of training
        memory.keep_freed()
        runner.run(jobs)
    written = []
    for made in plans:
        found = results.collect(made, out)
        record = results.write(found, out, _command(config, made, runner.text_name), report=report)
        pictures.draw(found, out)
        written.append((record, found))
    runner.check()
    return written


def check(config: PaperConfig, names: Sequence[str]) -> None:
    """`InputError` for a table or figure that there is none of, or that can't be made so."""
    _plans(config, names)


def _check_text(source: Path, out: Path | None) -> None:
    """`InputError` if there is no such text, or the output holds another one."""
    from ldlm.features import textfiles
    from ldlm.paper import text

    if out is None:
        textfiles.fingerprints([source])
    else:
        text.check(out, source)


def _plans(config: PaperConfig, names: Sequence[str]) -> list[Plan]:
    """The plans of tables and figures; `InputError` for settings that change nothing in any of them."""
    plans = [_plan(config, name) for name in names]
    used = {name for made in plans for name in made.used}
    settings = {name for several in USED.values() for name in several}
    idle = [name for name in changed(config, PaperConfig()) if name in settings - used]
    if idle:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in idle)
        change, them = ("change", "them") if idle[1:] else ("changes", "it")
        raise InputError(f"{flags} {change} nothing in {' '.join(names)}, by what is measured there; leave {them} out")
    return plans


def _plan(config: PaperConfig, name: str) -> Plan:
    exhibit = exhibits.load(name)
    if config.scale == PAPER and (config.text or config.steps):
        raise InputError("--text and --steps are for --scale tiny; --scale paper uses the paper's text and steps")
    if config.scale == TINY and config.device_name not in (None, costs.CORE) and config.device == "cpu":
        raise InputError(f"--device-name {config.device_name} is not a CPU, and --device is cpu; leave one of them out")
    if "sample_seconds" in exhibit.columns and config.devices not in (None, 1):
        raise InputError(f"{name} has the times of one card; leave --devices {config.devices} out")
    size = Size(
        scale=config.scale,
        seeds=config.seeds or (2 if config.scale == TINY else 1),
        steps=config.steps,
        texts=config.texts,
        sampling_seeds=config.sampling_seeds,
        mauve=_mauve(config),
        device=config.device,
    )
    made = Plan(exhibit, size, tuple(exhibit.chosen(config.row)))
    if "sampling_seeds" not in made.used:  # one set of texts or none, and where they are timed as many as it says
        texts = size.texts if "texts" in made.used else None
        made = replace(made, size=replace(size, texts=texts, sampling_seeds=None))
    if not made.rows:
        what = " ".join([name, *(["--row", *config.row] if config.row else [])])
        raise InputError(f"{what} needs a GPU: at --scale tiny it would say little; see --scale paper")
    return made


def _reported(config: PaperConfig, made: Plan, out: Path) -> Plan:
    """The plan whose results are in `out`: MAUVE may have been computed on a machine that had what it takes."""
    if config.mauve != "auto":
        return made
    other = replace(made, size=replace(made.size, mauve=not made.size.mauve))
    return max(made, other, key=lambda one: sum(job.done(out) for job in one.jobs))


def _mauve(config: PaperConfig) -> bool:
    """Whether to compute MAUVE; on auto, always at the paper's scale, where another machine runs the script.

    `InputError` if it is asked for with fewer texts than it takes; auto leaves it out there.
    """
    if config.mauve == "off":
        return False
    from ldlm.evaluation.mauve import FEWEST

    enough = config.texts is None or config.texts >= FEWEST
    if config.mauve == "on" and not enough:
        raise InputError(f"MAUVE needs at least {FEWEST} texts; raise --texts {config.texts}, or leave --mauve out")
    there = config.mauve == "on" or config.scale == PAPER or importlib.util.find_spec("mauve") is not None
    return enough and there


def _card(config: PaperConfig) -> tuple[str, int]:
    """The device whose hours are counted, and how many there are."""
    name = config.device_name or (costs.CORE if config.scale == TINY else "A100-80GB")
    return name, config.devices or (2 if name == costs.CORE else 1)


def _command(config: PaperConfig, made: Plan, text: str | None) -> str:
    """The command that makes a result, without what does not change it."""
    given = {
        "scale": config.scale, "row": config.row, "seeds": config.seeds, "text": text,
        "steps": config.steps, "texts": config.texts, "sampling-seeds": config.sampling_seeds,
        "mauve": None if config.mauve == "auto" else config.mauve,
    }  # fmt: skip
    words = ["ldlm", "paper", made.exhibit.name]
    for flag, value in given.items():
        if value and (flag in ("scale", "row") or flag.replace("-", "_") in made.used):
            words += [f"--{flag}", *(value if isinstance(value, tuple) else [str(value)])]
    return shlex.join([*words, "--output", "DIR"])
