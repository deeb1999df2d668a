"""The command group, and how exceptions become a last line and an exit status."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

import ldlm
from ldlm import memory, waiting
from ldlm.cli import show
from ldlm.errors import InputError, Stopped, StorageError

EPILOG = """\b
First steps:
  ldlm quickstart --output quickstart     everything below, on little stories, on a laptop
\b
The stages, each reading what the one before wrote:
  ldlm extract-features --encoder gpt2 --data corpus.jsonl --validation-docs 1000 --output features
  ldlm train --features features --output run --preset owt-128
  ldlm finetune-decoder --run run --features features --layers 2
  ldlm sample --run run --num-samples 1000 --output samples.jsonl
  ldlm evaluate samples.jsonl --scorer gpt2-large
  ldlm report run
  ldlm export --run run --output model
"""


INTERRUPTED = 130  # 128 + SIGINT, the convention of shells
TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h: schedulers take it as "run it again"

# System errors that are not bugs: no room, no permission, a file where a folder should be.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_FOLDER = {errno.ENOTDIR, errno.EEXIST}
SYSTEM_ERRORS = NO_ROOM | NO_FOLDER | {errno.EROFS, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}


class Commands(click.Group):
    """Commands in the order of the pipeline. An error that the user can correct gives one line and exit status 1."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        show.open_streams()
        return super().main(*arguments, **options)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (InputError, StorageError) as error:
            leave(ctx, f"Error: {error}", 1)
        except Stopped as stopped:
            leave(ctx, f"{stopped}; the same command continues from there", TEMPORARY_FAILURE)
        except KeyboardInterrupt:
            leave(ctx, "\ninterrupted; the same command continues from what was kept, if anything", INTERRUPTED)
        except OSError as error:
            if error.errno not in SYSTEM_ERRORS:
                raise
            leave(ctx, f"Error: {_refused(error)}", 1)


def _refused(error: OSError) -> str:
    """One line on what the system refused, with the remedy where one is known."""
    path = None if error.filename is None else Path(os.fsdecode(error.filename))
    above = () if path is None or error.errno not in NO_FOLDER else (path, *path.parents)
    if file := next((part for part in above if part.is_file()), None):
        return f"{file} is a file, and a folder is needed there; choose another path"
    where = "" if path is None else f"{path}: "
    room = "; make room and run the same command again" if error.errno in NO_ROOM else ""
    return f"{where}{error.strerror}{room}"


def leave(ctx: click.Context, line: str, status: int) -> NoReturn:
    """End the command with a last line on stderr, even if stderr is closed."""
    if "--overwrite" in sys.argv:  # with it the command would start over
        line = line.replace("the same command", "the same command, without --overwrite,")
    show.Terminal().write(f"{line}\n")
    ctx.exit(status)


@click.group(
    cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(ldlm.__version__, prog_name="ldlm")
def main() -> None:
    """Train and sample latent diffusion language models, jointly with their latent space."""
    memory.keep_freed()
    waiting.bound_spinning()


def _register() -> None:
    from ldlm.cli import (
        distill,
        evaluate,
        export,
        extract,
        features,
        finetune,
        interpolate,
        likelihood,
        paper,
        plot,
        pretrain,
        quickstart,
        report,
        sample,
        stories,
        sweep,
        train,
    )

    main.add_command(quickstart.command, "quickstart")
    main.add_command(stories.command, "stories")
    main.add_command(pretrain.command, "pretrain-encoder")
    main.add_command(extract.command, "extract-features")
    main.add_command(features.command, "features")
    main.add_command(train.command, "train")
    main.add_command(plot.command, "plot")
    main.add_command(finetune.command, "finetune-decoder")
    main.add_command(distill.command, "distill")
    main.add_command(sample.command, "sample")
    main.add_command(sweep.command, "sweep")
    main.add_command(interpolate.command, "interpolate")
    main.add_command(likelihood.command, "likelihood")
    main.add_command(evaluate.command, "evaluate")
    main.add_command(report.command, "report")
    main.add_command(export.command, "export")
    main.add_command(paper.command, "paper")


_register()
